"""The border for labels: from those of a user to numbers of classes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from skdcgmm import _distributed


def encode(y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Classes, and the number of the class of each image, -1 where unknown.

    Raises
    ------
    ValueError
        If there are no labels, or those of no classification.
    TypeError
        If some are numbers and others names.
    """
    if y is None:
        raise ValueError(
            "DCGMMClassifier requires y to be passed, but the target y is None. Give each image "
            "its class, or -1 where it is unknown."
        )
    own = column_or_1d(as_array(y), warn=True)
    of_all = _distributed.gather(own)
    labels = np.concatenate(of_all)
    if any(value is None or value != value for value in labels.tolist()):
        raise ValueError("y contains NaN or None. Give -1 where the class is unknown.")
    assert_all_finite(labels, input_name="y")
    if labels.dtype.kind in "US" and (labels == "-1").any():
        raise ValueError(
            "y holds '-1' among names: with -1 for unknown, y must be of dtype object, such as "
            "np.array(['cat', -1], dtype=object)."
        )
    known = np.flatnonzero(labels != -1) if labels.dtype.kind in "biufO" else np.arange(len(labels))
    if not len(known):
        raise ValueError(
            f"y must hold the class of some images; all of {len(labels)} are -1, which is unknown."
        )
    values = labels[known]
    if values.dtype == object:
        named = [isinstance(value, str) for value in values]
        if any(named) and not all(named):
            # As one array, numbers would become names.
            raise TypeError(
                "y must hold numbers or names of classes, not both, and -1 where unknown; got "
                f"{sorted({type(value).__name__ for value in values})}."
            )
        # Numbers among unknowns of another kind are numbers still.
        values = np.array(values.tolist())
    if values.dtype == object:
        raise ValueError("y must hold numbers or names of classes, and -1 where unknown.")
    with warnings.catch_warnings():
        # With few labels, many classes for each are no sign of a regression.
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        check_classification_targets(values)
    classes, numbers = np.unique(values, return_inverse=True)
    if len(classes) == 1 and len(known) < len(labels):
        raise ValueError(
            "y must hold at least two classes besides -1, which means unknown; got 1 class, "
            f"{classes[0]}. If -1 is one of two classes, name it otherwise."
        )
    encoded = np.full(len(labels), -1, dtype=np.int64)
    encoded[known] = numbers
    first = sum(len(part) for part in of_all[: _distributed.rank()])
    return classes, encoded[first : first + len(own)]


def as_array(y: Any) -> Any:
    """Labels as an array, if they are a tensor."""
    return y.detach().cpu().numpy() if isinstance(y, Tensor) else y

"""Fitted estimators as plain values and arrays, in files without code."""

import os
from typing import Any, TypeVar

from sklearn.mixture import GaussianMixture
from sklearn.utils.validation import check_is_fitted

from skdcgmm import files
from skdcgmm.analysis import outliers
from skdcgmm.model import ordinary_tensors, patches, specs
from skdcgmm.model.stack import Stack
from skdcgmm.published import objective as layerwise
from skdcgmm.published.stack import LayerwiseStack
from skdcgmm.training import Standing, joint

E = TypeVar("E")

# What scikit-learn adds to an estimator, other than its parameters and what it has learnt.
_NOT_SAVED = (
    "_skl_callbacks", "_callback_fit_ctx", "_skl_callbacks_to_teardown", "_parent_callback_ctx",
    "_metadata_request", "_sklearn_version",
)  # fmt: skip
# Objects that a file may hold besides plain values and arrays.
CLASSES: dict[str, type] = {"JointProgress": joint.Progress} | {
    cls.__name__: cls for cls in (patches.Patches, patches.Resolution, patches.Sums)
} | {
    cls.__name__: cls
    for cls in (
        specs.ConvGMM, specs.MaxPool, layerwise.Progress, layerwise.LayerProgress,
        layerwise.ScheduleState, Standing, outliers.Calibrated, outliers.Extremes,
        outliers.Surprise, outliers.Sum, outliers.Density, GaussianMixture,
    )
}  # fmt: skip


def packed(state: dict[str, Any]) -> dict[str, Any]:
    """The state of an estimator with its stack as plain values and arrays."""
    if "_stack" not in state:
        return dict(state)
    progress = files.arrays_of(state["_progress"])
    return {**state, "_stack": state["_stack"].pack(), "_progress": progress}


def unpacked(state: dict[str, Any]) -> dict[str, Any]:
    """The state that was `packed`."""
    if "_stack" not in state:
        return state
    with ordinary_tensors():
        kind = Stack if state["_stack"]["joint"] else LayerwiseStack
        stack = kind.unpack(state["_stack"])
        return {**state, "_stack": stack, "_progress": files.tensors_of(state["_progress"])}


def save(estimator: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator to a file."""
    check_is_fitted(estimator)
    state = {k: v for k, v in estimator.__getstate__().items() if k not in _NOT_SAVED}
    files.write(path, type(estimator).__name__, state, CLASSES)


def load(cls: type[E], path: str | os.PathLike[str]) -> E:
    """Read an estimator of a class that `save` has written.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not whole, of another class, or of another version.
    """
    try:
        state = files.read(path, cls.__name__, CLASSES)
        parameters = set(cls._get_param_names())  # type: ignore[attr-defined]
        missing = (parameters | {"_stack"}) - set(state)
        odd = [n for n in set(state) - parameters if n.startswith("__") or hasattr(cls, n)]
        if missing or odd:
            raise ValueError(f"it lacks {sorted(missing)} and has {sorted(odd)}")
        made = cls.__new__(cls)
        made.__setstate__(state)  # type: ignore[attr-defined]
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever the parts of a file lead to that do not fit
        raise ValueError(
            f"path={str(path)!r} holds no {cls.__name__} that can be loaded ({error}). Give a "
            f"file that {cls.__name__}.save has written."
        ) from error
    return made

"""Responsibilities as features: the estimator as a transformer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from skdcgmm._learning import LearningDCGMM
from skdcgmm._network import Network
from skdcgmm._stream import refuse_stream
from skdcgmm._validation import answer


class FeaturesMixin(TransformerMixin, LearningDCGMM):
    """What makes features of responsibilities."""

    transform_layers: int | str | Sequence[int | str] | None

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Train the stack, and return the responsibilities as features.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : Ignored
        **fit_params
            Of `fit`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            As of `transform`.

        Raises
        ------
        TypeError
            If X comes in batches, whose order may change.
        """
        refuse_stream(X, "fit_transform", "fit, then transform")
        return super().fit_transform(X, y, **fit_params)

    def transform(self, X: Any) -> Any:
        """Responsibilities of the clusters, or of the components of chosen layers, as features.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            `n_clusters` features; with `transform_layers`, those of one layer after the other, each
            in the order (row, column, component).
        """
        if self.transform_layers is None:
            return self._apply(X, lambda network, x: network.cluster_probabilities(x))
        images = self._check_fitted_images(X)
        return answer(X, self._responsibilities(images, self._transform_names()))

    def _check_network(self, network: Network) -> None:
        if self.transform_layers is not None:
            self._mixture_names(network, "transform_layers", self.transform_layers)

    def _transform_names(self) -> list[str]:
        return self._mixture_names(self._network, "transform_layers", self.transform_layers)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the features that `transform` returns.

        Parameters
        ----------
        input_features : Ignored

        Returns
        -------
        ndarray of str
            Such as "cluster3"; with `transform_layers`, such as "convgmm1_0_2_17", a component by
            row and column of its window, and "convgmm2_17" where there is one window.
        """
        check_is_fitted(self)
        if self.transform_layers is None:
            names = [f"cluster{index}" for index in range(self._network.n_clusters)]
            return np.array(names, dtype=object)
        names = []
        for layer in self._transform_names():
            n_components, rows, columns = self._network.mixtures[layer].output_shape
            for row, column, component in product(range(rows), range(columns), range(n_components)):
                place = f"_{row}_{column}" if rows * columns > 1 else ""
                names.append(f"{layer}{place}_{component}")
        return np.array(names, dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

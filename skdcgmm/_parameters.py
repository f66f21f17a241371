"""Fitted parameters as arrays in the units and the order of a user's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skdcgmm import _categorical
from skdcgmm._gaussian import computing
from skdcgmm._network import Network
from skdcgmm.layers import CategoricalEmission, GaussianEmission, MixtureLayer

FloatArray = NDArray[np.floating[Any]]
Arrays = dict[str, FloatArray]


def _to_user(values: Tensor, layer: MixtureLayer) -> FloatArray:
    """(P, K, D) in order channel, row, column to (..., K, D) in order row, column, channel.

    Axes of positions are in front where there are several mixtures.
    """
    by_channel = values.view(*values.shape[:2], layer.input_shape[0], -1)  # (P, K, C, pixels)
    ordered = by_channel.mT.flatten(2)  # (P, K, D)
    lead = () if layer.n_mixtures == 1 else layer.output_shape[1:]
    return ordered.reshape(*lead, *ordered.shape[1:]).cpu().numpy()


def _from_user(values: Tensor, layer: MixtureLayer) -> Tensor:
    """The inverse of `_to_user`."""
    n_channels = layer.input_shape[0]
    ordered = values.reshape(layer.n_mixtures, layer.n_components, -1, n_channels)
    return ordered.mT.flatten(2)  # (P, K, D)


def _units(network: Network, layer: MixtureLayer) -> tuple[Tensor, Tensor]:
    """Shift and scale of a layer's inputs, () or (D,): those of the images for the first."""
    if layer is network.first:
        return network.shift.flatten(), network.scale.flatten()
    return torch.zeros_like(network.shift), torch.ones_like(network.scale)


def weights(network: Network, name: str) -> FloatArray:
    """Mixture weights (..., K)."""
    values = network.log_weights()[name].detach().exp().movedim(0, -1)  # (rows, columns, K)
    return (values[0, 0] if values.shape[:2] == (1, 1) else values).cpu().numpy()


def means(network: Network, name: str) -> FloatArray:
    """Means (..., K, D); those of what tables draw are the tables."""
    layer = network.mixtures[name]
    emission = layer.emission
    if isinstance(emission, CategoricalEmission):
        tables = _categorical.tables(emission.logits.detach())
        return _to_user(emission.to_windows(tables), layer)
    shift, scale = _units(network, layer)
    return _to_user(layer.gaussian.means.detach() * scale + shift, layer)


def covariances(network: Network, name: str) -> FloatArray:
    """Variances (..., K, D), or (..., K) if spherical."""
    layer = network.mixtures[name]
    _, scale = _units(network, layer)
    values = (scale / layer.gaussian.root_precisions.detach()).square()  # (P, K, D or 1)
    if not layer.emission.spherical:
        return _to_user(values, layer)
    lead = () if layer.n_mixtures == 1 else layer.output_shape[1:]
    return values.reshape(*lead, -1).cpu().numpy()


def set_weights(network: Network, name: str, values: Tensor) -> None:
    """Set the weights."""
    layer = network.mixtures[name]
    layer.set_weights(values.movedim(-1, 0).reshape(layer.n_components, *layer.emission.positions))


def set_means(network: Network, name: str, values: Tensor) -> None:
    """Set the means."""
    layer = network.mixtures[name]
    emission, ordered = layer.emission, _from_user(values, layer)
    if isinstance(emission, CategoricalEmission):
        emission.logits.copy_(_categorical.logits(emission.from_windows(ordered)))
    else:
        shift, scale = _units(network, layer)
        layer.gaussian.means.copy_((ordered - shift) / scale)


def set_covariances(network: Network, name: str, values: Tensor) -> None:
    """Set the variances."""
    layer = network.mixtures[name]
    _, scale = _units(network, layer)
    if layer.emission.spherical:
        values = values.reshape(layer.n_mixtures, layer.n_components, 1)
    else:
        values = _from_user(values, layer)
    layer.gaussian.set_variances(values / scale.square())


Reader = Callable[[Network, str], FloatArray]
Writer = Callable[[Network, str, Tensor], None]


class FittedParametersMixin:
    """Parameters of all mixture layers as dictionaries by name, which can be assigned to."""

    _network: Network

    @property
    def weights_(self) -> Arrays:
        """Mixture weights."""
        return self._read(weights)

    @weights_.setter
    def weights_(self, values: Mapping[str, ArrayLike]) -> None:
        self._write("weights_", values, weights, set_weights)

    @property
    def means_(self) -> Arrays:
        """Means."""
        return self._read(means)

    @means_.setter
    def means_(self, values: Mapping[str, ArrayLike]) -> None:
        self._write("means_", values, means, set_means)

    @property
    def covariances_(self) -> Arrays:
        """Variances."""
        return self._read(covariances)

    @covariances_.setter
    def covariances_(self, values: Mapping[str, ArrayLike]) -> None:
        self._write("covariances_", values, covariances, set_covariances)

    @property
    def precisions_(self) -> Arrays:
        """Inverse variances."""
        return {name: 1 / values for name, values in self.covariances_.items()}

    @precisions_.setter
    def precisions_(self, values: Mapping[str, ArrayLike]) -> None:
        with np.errstate(divide="ignore"):
            inverses = {name: 1 / np.asarray(value) for name, value in values.items()}
        self._write("precisions_", inverses, covariances, set_covariances)

    @property
    def clusters_(self) -> NDArray[np.integer[Any]]:
        """The cluster of each top component."""
        check_is_fitted(self)
        return self._network.clusters.cpu().numpy().copy()

    @property
    def cluster_centers_(self) -> FloatArray:
        """Mean image of each cluster, (n_clusters, n_features)."""
        check_is_fitted(self)
        network = self._network
        with computing(network.scale.device):
            means = network.component_means().permute(0, 2, 3, 1).flatten(1)  # (K, D)
            weights = network.top.log_weights.detach().flatten().exp()  # (K,)
            shares = network.cluster_tables * weights[:, None]  # (K, n_clusters)
            return ((shares / shares.sum(0)).mT @ means).detach().cpu().numpy()

    @property
    def n_parameters_(self) -> int:
        """Number of free parameters."""
        check_is_fitted(self)
        return self._network.n_parameters

    def _names(self, reader: Reader) -> list[str]:
        """Layers that have the parameter: only Gaussians have covariances."""
        return [
            name
            for name, layer in self._network.mixtures.items()
            if reader is not covariances or isinstance(layer.emission, GaussianEmission)
        ]

    def _read(self, reader: Reader) -> Arrays:
        check_is_fitted(self)
        with computing(self._network.scale.device):
            return {name: reader(self._network, name) for name in self._names(reader)}

    @torch.no_grad()
    def _write(
        self, name: str, values: Mapping[str, ArrayLike], reader: Reader, writer: Writer
    ) -> None:
        check_is_fitted(self)
        if not isinstance(values, Mapping):
            raise TypeError(f"{name} must be a dictionary by layer name; got {type(values)}.")
        checked = {
            key: self._check_values(name, key, value, reader) for key, value in values.items()
        }
        with computing(self._network.scale.device):
            for key, tensor in checked.items():
                writer(self._network, key, tensor)

    def _check_values(self, name: str, layer_name: str, value: ArrayLike, reader: Reader) -> Tensor:
        """New values of a parameter, finite, of its shape and in its range."""
        names = self._names(reader)
        if reader is weights:
            own = [n for n in names if self._network.mixtures[n].logits is not None]
            if layer_name in names and layer_name not in own:
                raise ValueError(
                    f"{name} of {layer_name!r} follow from the tables above it, which are the "
                    f"means_ of the next layer: set those, or the weights_ of {own}."
                )
        if layer_name not in names:
            raise ValueError(f"{name} must have keys among {names}; got {layer_name!r}.")
        parameter = f"{name}[{layer_name!r}]"
        array = np.array(value, dtype=np.float64)
        expected = reader(self._network, layer_name).shape
        if array.shape != expected:
            raise ValueError(f"{parameter} must be of shape {expected}; got shape {array.shape}.")
        if not np.isfinite(array).all():
            raise ValueError(f"{parameter} must be finite; got nan or inf.")
        layer = self._network.mixtures[layer_name]
        tables = reader is means and isinstance(layer.emission, CategoricalEmission)
        if tables or reader is weights:
            cells = array.reshape(*array.shape[:-1], -1, layer.input_shape[0]) if tables else array
            if cells.min() < 0 or not np.allclose(cells.sum(-1), 1, atol=1e-5):
                raise ValueError(
                    f"{parameter} must be non-negative and sum to 1 over components; got sums "
                    f"from {cells.sum(-1).min()} and values from {cells.min()}."
                )
        if reader is covariances and array.min() <= 0:
            raise ValueError(f"{parameter} must be positive; got {array.min()}.")
        return torch.from_numpy(array).to(self._network.scale)

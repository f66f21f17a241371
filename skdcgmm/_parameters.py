"""Fitted parameters as arrays in the units and the order of a user's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skdcgmm._network import Network
from skdcgmm.layers import MixtureLayer

FloatArray = NDArray[np.floating[Any]]
Arrays = dict[str, FloatArray]
Units = tuple[Tensor, Tensor]  # shift and scale of a layer's inputs


def _lead(layer: MixtureLayer) -> tuple[int, ...]:
    """Axes of positions in front of a parameter: none where all share one mixture."""
    return () if layer.n_mixtures == 1 else layer.output_shape[1:]


def _to_user(values: Tensor, layer: MixtureLayer) -> FloatArray:
    """(P, K, D) in order channel, row, column to (..., K, D) in order row, column, channel."""
    by_channel = values.view(*values.shape[:2], layer.input_shape[0], -1)  # (P, K, C, pixels)
    ordered = by_channel.mT.flatten(2)  # (P, K, D)
    return ordered.reshape(*_lead(layer), *ordered.shape[1:]).cpu().numpy()


def _from_user(values: Tensor, like: Tensor, layer: MixtureLayer) -> Tensor:
    """The inverse of `_to_user`, to the shape of `like`."""
    ordered = values.reshape(*like.shape[:2], -1, layer.input_shape[0])  # (P, K, pixels, C)
    return ordered.mT.reshape(like.shape)


def _units(network: Network, layer: MixtureLayer) -> Units:
    """Shift and scale of a layer's inputs: those of the images for the first, else 0 and 1."""
    if layer is network.layers[0]:
        return network.shift, network.scale
    return torch.zeros_like(network.shift), torch.ones_like(network.scale)


def weights(layer: MixtureLayer, _: Units) -> FloatArray:
    """Mixture weights (..., K)."""
    values = layer.log_weights.exp().detach().movedim(0, -1)  # (rows, columns, K)
    return values.reshape(*_lead(layer), -1).cpu().numpy()


def means(layer: MixtureLayer, units: Units) -> FloatArray:
    """Means (..., K, D)."""
    shift, scale = units
    return _to_user(layer.emission.means.detach() * scale + shift, layer)


def covariances(layer: MixtureLayer, units: Units) -> FloatArray:
    """Variances (..., K, D), or (..., K) if spherical."""
    _, scale = units
    values = (scale / layer.emission.root_precisions.detach()).square()  # (P, K, D or 1)
    if layer.emission.spherical:
        return values.reshape(*_lead(layer), -1).cpu().numpy()
    return _to_user(values, layer)


def set_weights(layer: MixtureLayer, _: Units, values: Tensor) -> None:
    """Set the weights."""
    layer.set_weights(values.movedim(-1, 0).reshape(layer.logits.shape))


def set_means(layer: MixtureLayer, units: Units, values: Tensor) -> None:
    """Set the means."""
    shift, scale = units
    emission = layer.emission
    emission.means.copy_(_from_user((values - shift) / scale, emission.means, layer))


def set_covariances(layer: MixtureLayer, units: Units, values: Tensor) -> None:
    """Set the variances."""
    _, scale = units
    roots = layer.emission.root_precisions
    smallest = float(values.min() / scale**2)
    layer.emission.min_variance = min(layer.emission.min_variance, smallest)
    values = scale / values.sqrt()
    spherical = layer.emission.spherical
    roots.copy_(values.view(roots.shape) if spherical else _from_user(values, roots, layer))


Reader = Callable[[MixtureLayer, Units], FloatArray]
Writer = Callable[[MixtureLayer, Units, Tensor], None]


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
    def n_parameters_(self) -> int:
        """Number of free parameters."""
        check_is_fitted(self)
        return sum(
            sum(parameter.numel() for parameter in layer.parameters()) - layer.n_mixtures
            for layer in self._network.mixtures.values()
        )

    def _read(self, reader: Reader) -> Arrays:
        check_is_fitted(self)
        mixtures = self._network.mixtures
        return {
            name: reader(layer, _units(self._network, layer)) for name, layer in mixtures.items()
        }

    @torch.no_grad()
    def _write(
        self, name: str, values: Mapping[str, ArrayLike], reader: Reader, writer: Writer
    ) -> None:
        check_is_fitted(self)
        if not isinstance(values, Mapping):
            raise TypeError(f"{name} must be a dictionary by layer name; got {type(values)}.")
        checked = [
            (*self._layer_units(name, key), self._check_values(name, key, value, reader))
            for key, value in values.items()
        ]
        for layer, units, tensor in checked:
            writer(layer, units, tensor)

    def _layer_units(self, name: str, layer_name: str) -> tuple[MixtureLayer, Units]:
        mixtures = self._network.mixtures
        if layer_name not in mixtures:
            raise ValueError(f"{name} must have keys among {list(mixtures)}; got {layer_name!r}.")
        return mixtures[layer_name], _units(self._network, mixtures[layer_name])

    def _check_values(self, name: str, layer_name: str, value: ArrayLike, reader: Reader) -> Tensor:
        """New values of a parameter, finite, of its shape and in its range."""
        parameter = f"{name}[{layer_name!r}]"
        array = np.array(value, dtype=np.float64)
        expected = reader(*self._layer_units(name, layer_name)).shape
        if array.shape != expected:
            raise ValueError(f"{parameter} must be of shape {expected}; got shape {array.shape}.")
        if not np.isfinite(array).all():
            raise ValueError(f"{parameter} must be finite; got nan or inf.")
        if reader is weights and (array.min() < 0 or not np.allclose(array.sum(-1), 1, atol=1e-5)):
            raise ValueError(
                f"{parameter} must be non-negative and sum to 1 over components; got sums from "
                f"{array.sum(-1).min()} and values from {array.min()}."
            )
        if reader is covariances and array.min() <= 0:
            raise ValueError(f"{parameter} must be positive; got {array.min()}.")
        return torch.from_numpy(array).to(self._network.scale)

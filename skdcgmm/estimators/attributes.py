"""Layers by name: their parameters as the estimator's, what they have learnt, and a table."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from html import escape
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_html_repr
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skdcgmm.data import FloatArray
from skdcgmm.estimators import checks, planning
from skdcgmm.model import computing
from skdcgmm.model.pixels import Pixels, no_ends
from skdcgmm.model.pixels.gaussian import INTERNAL_VARIANCE
from skdcgmm.model.pixels.pyramid import Details
from skdcgmm.model.specs import Layer, NamedSpecs, is_named, name_layers
from skdcgmm.model.stack import BaseStack, Tables
from skdcgmm.model.tree import n_active
from skdcgmm.model.windows import Size

Arrays = dict[str, FloatArray]


def _to_user(values: Tensor, layer: Layer, n_channels: int) -> FloatArray:
    """(P, K, D) in order channel, row, column to (..., K, D) in order row, column, channel.

    Axes of positions are in front where there are several mixtures; (P, K) has no order.
    """
    if values.ndim == 3:
        by_channel = values.view(*values.shape[:2], n_channels, -1)
        values = by_channel.mT.flatten(2)  # (P, K, D)
    lead = () if layer.n_mixtures == 1 else layer.windows.grid
    return cast("FloatArray", values.reshape(*lead, *values.shape[1:]).cpu().numpy())


def _from_user(values: Tensor, layer: Layer, n_channels: int) -> Tensor:
    """The inverse of `_to_user`."""
    n_lead = 0 if layer.n_mixtures == 1 else 2
    shape = (layer.n_mixtures, *values.shape[n_lead:])  # (P, K) or (P, K, D)
    if len(shape) == 2:
        return values.reshape(shape)
    by_pixel = values.reshape(*shape[:2], -1, n_channels)  # (P, K, pixels, C)
    return by_pixel.mT.flatten(2)


def _by_layer(name: str, doc: str) -> Any:
    """An attribute of arrays by layer name, which can be assigned to."""

    def read(estimator: Any) -> Arrays:
        return cast("Arrays", estimator._read(name))

    def write(estimator: Any, values: Mapping[str, ArrayLike]) -> None:
        estimator._write(name, values)

    return property(read, write, doc=doc)


class NamedLayers(BaseEstimator):
    """Parameters of layers by name, and fitted ones as dictionaries, which can be assigned to."""

    layers: Any
    image_shape: tuple[int, ...] | None
    _stack: BaseStack

    # --- as they were asked for -----------------------------------------------------------------

    def _named_layers(self) -> NamedSpecs:
        """Layers that have parameters, by name; none for presets and 'auto'."""
        if not isinstance(self.layers, list | tuple):
            return []
        return [
            (name, spec) for name, spec in name_layers(self.layers) if hasattr(spec, "get_params")
        ]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Get the parameters of this estimator.

        Parameters
        ----------
        deep : bool, default=True
            Whether to include the layers by name and their parameters, such as
            `convgmm1__n_components`.

        Returns
        -------
        dict of str to Any
        """
        params: dict[str, Any] = super().get_params(deep=False)
        if deep:
            for name, spec in self._named_layers():
                params.setdefault(name, spec)
                for key, value in spec.get_params().items():
                    params[f"{name}__{key}"] = value
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters of this estimator, of its layers by name, or whole layers by name.

        Parameters
        ----------
        **params
            Such as `max_epochs=10`, `convgmm1__n_components=25` or `convgmm1=ConvGMM(25)`.

        Returns
        -------
        self
        """
        if "layers" in params:
            self.layers = params.pop("layers")
        nested = [key for key in params if "__" in key]
        if nested and isinstance(self.layers, str):
            raise ValueError(
                f"Invalid parameter {nested[0]!r}: layers={self.layers!r} has no layers by name. "
                "Give layers as a list, such as [ConvGMM(50, 4), ConvGMM(50)]."
            )
        for index, (name, _) in enumerate(self._named_layers()):
            if name in params:
                layers = list(self.layers)
                spec = params.pop(name)
                layers[index] = (name, spec) if is_named(layers[index]) else spec
                self.layers = layers
        super().set_params(**params)
        return self

    # --- as they were learnt --------------------------------------------------------------------

    weights_ = _by_layer("weights", "Mixture weights.")
    means_ = _by_layer("means", "Means.")
    covariances_ = _by_layer("covariances", "Variances.")
    precisions_ = _by_layer("precisions", "Inverse variances.")
    detail_means_ = _by_layer("detail_means", "Means of the details of upper layers.")
    detail_covariances_ = _by_layer("detail_covariances", "Variances of these details.")

    @property
    def n_parameters_(self) -> int:
        """Number of free parameters."""
        check_is_fitted(self)
        return self._stack.n_parameters

    @torch.no_grad()
    def _read(self, name: str) -> Arrays:
        """A parameter of all layers that have it."""
        check_is_fitted(self)
        stack = self._stack
        if name == "precisions":
            return {layer: 1 / values for layer, values in self._read("covariances").items()}
        with computing(stack.like.device):
            if name == "weights":
                weights = stack().layer_log_weights()  # each (K, rows, columns)
                by_place = {layer: w.exp().permute(1, 2, 0) for layer, w in weights.items()}
                return {
                    layer: (w[0, 0] if w.shape[:2] == (1, 1) else w).cpu().numpy()
                    for layer, w in by_place.items()
                }
            arrays = {key: module.arrays() for key, module in self._emissions(name).items()}
        kind = name.removeprefix("detail_")
        return {
            layer: _to_user(of_layer[kind], *self._order(layer, name))
            for layer, of_layer in arrays.items()
            if kind in of_layer
        }

    def _emissions(self, name: str) -> Mapping[str, Pixels | Tables]:
        """What has a parameter of that name, by layer."""
        stack = self._stack
        if name.startswith("detail_"):
            return stack.gaussians
        return {layer: stack.emission(layer) for layer in stack.names}

    def _order(self, key: str, name: str) -> tuple[Layer, int]:
        """A layer, and the channels in the values of a parameter; details are in one order only."""
        layer = self._stack.mixtures[key]
        ordered = not isinstance(self._emissions(name)[key], Details)
        return layer, layer.windows.input_shape[0] if ordered else 1

    @torch.no_grad()
    def _write(self, name: str, values: Mapping[str, ArrayLike]) -> None:
        """Set a parameter of layers, once all new values are of the present shape and in range."""
        present = self._read(name)
        if not isinstance(values, Mapping):
            raise TypeError(f"{name}_ must be a dictionary by layer name; got {type(values)}.")
        stack = self._stack
        checked = {
            key: torch.from_numpy(self._check_values(name, key, value, present)).to(
                stack.like.device
            )
            for key, value in values.items()
        }
        with computing(stack.like.device):
            for key, tensor in checked.items():
                if name == "weights":
                    stack.set_weights(key, tensor.movedim(-1, 0))
                else:
                    kind = "means" if name.endswith("means") else "covariances"
                    values_of_layer = _from_user(tensor, *self._order(key, name))
                    self._emissions(name)[key].assign(kind, values_of_layer)
            if name != "weights" and stack.kind != "atoms":
                # Draws of Gaussians that a user sets are theirs, whatever the images of `fit`.
                stack.ends = no_ends(stack.image_shape[0]).to(stack.ends)

    def _check_values(
        self, name: str, key: str, value: ArrayLike, present: Arrays
    ) -> NDArray[np.float64]:
        """New values of a parameter, finite, of its shape and in its range; precisions inverted."""
        stack, parameter = self._stack, f"{name}_[{key!r}]"
        if key not in present:
            raise ValueError(f"{name}_ must have keys among {list(present)}; got {key!r}.")
        if name == "weights" and stack.weight_logits(key) is None:
            own = [n for n in stack.names if stack.weight_logits(n) is not None]
            raise ValueError(
                f"weights_ of {key!r} follow from the tables above it, which are the means_ of the "
                f"next layer: set those, or the weights_ of {own}."
            )
        array = np.array(value, dtype=np.float64)
        if array.shape != present[key].shape:
            raise ValueError(
                f"{parameter} must be of shape {present[key].shape}; got shape {array.shape}."
            )
        if name == "precisions":
            with np.errstate(divide="ignore"):
                array = 1 / array
        if not np.isfinite(array).all():
            raise ValueError(f"{parameter} must be finite; got nan or inf.")
        emission = None if name == "weights" else self._emissions(name)[key]
        if name == "weights" or (name == "means" and isinstance(emission, Tables)):
            n_below = stack.mixtures[key].windows.input_shape[0]
            cells = array.reshape(-1, n_below) if name == "means" else array
            if array.min() < 0 or not np.allclose(cells.sum(-1), 1, atol=1e-5):
                raise ValueError(
                    f"{parameter} must be non-negative and sum to 1 over components; got sums "
                    f"from {cells.sum(-1).min()} and values from {array.min()}."
                )
        elif not name.endswith("means") and array.min(initial=1) <= 0:
            raise ValueError(f"{parameter} must be positive; got {array.min()}.")
        return array

    # --- as a table -----------------------------------------------------------------------------

    def summary(self) -> str:
        """Describe the stack as text: a table of its layers.

        Before `fit` it is the stack that the parameters ask for, by `layers="auto"` that for very
        many images; after it the fitted one, with the number of active components: those that have
        at least a tenth of an equal weight; of mixtures at each position, their mean number.

        Returns
        -------
        str

        Raises
        ------
        NotFittedError
            If the estimator is not fitted, and the parameters do not say for what images.
        """
        title = type(self).__name__
        if hasattr(self, "_stack"):
            return _table(self._stack, title, _notes(self), fitted=True)
        shape = checks.check_image_shape(self.image_shape)
        if shape is None:
            raise NotFittedError(f"This {title} has no stack yet. Call fit, or set image_shape.")
        pixels, *_ = planning.kinds_of(self, shape)
        outline = planning.build(self, shape, sys.maxsize, device="meta", pixels=pixels)
        return _table(outline, title, ["Not fitted."], fitted=False)

    def _html_repr(self) -> str:
        """What notebooks show."""
        drawn: str = estimator_html_repr(self)
        # A representation must not fail: without images, or with bad parameters, none is drawn.
        with suppress(Exception):
            drawn += f"<pre>{escape(self.summary())}</pre>"
        return drawn


# What there is to say of a layer, as text.
_HEAD = ("layer", "window", "positions", "components", "active", "parameters")


def _table(stack: BaseStack, title: str, notes: list[str], *, fitted: bool) -> str:
    """A table of the layers, from the image upwards.

    Parameters
    ----------
    stack : BaseStack
    title : str
    notes : list of str
        Lines below the table.
    fitted : bool
        Whether the stack has learnt which components to use.

    Returns
    -------
    str
    """
    rows = [_HEAD, *_rows(stack, fitted=fitted)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([f"{title}, {_kind(stack)}", *lines, *notes])


def _kind(stack: BaseStack) -> str:
    kind = "one density" if stack.is_density else "layer-wise stack"
    channels, height, width = stack.image_shape
    if (height, width) == (1, 1):
        return f"{kind} of rows of {channels} features"
    return f"{kind} of images of {height} x {width} x {channels}"


def _size(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


@torch.no_grad()
def _rows(stack: BaseStack, *, fitted: bool) -> list[tuple[str, ...]]:
    log_weights = stack().layer_log_weights() if fitted else {}
    rows: list[tuple[str, ...]] = []
    for layer in stack.layers:
        kernel, stride, grid = layer.windows.kernel, layer.windows.stride, layer.windows.grid
        window, positions = _size(kernel), _size(grid)
        if stride != kernel and grid != (1, 1):
            window += f" by {_size(stride)}"
        if not layer.is_mixture:
            rows.append((layer.name, window, positions, "", "", ""))
            continue
        each, active = "" if layer.n_mixtures == 1 else " at each", ""
        if fitted:
            weights = log_weights[layer.name].exp()  # (K, rows, columns)
            if layer.n_mixtures == 1:
                weights = weights.mean((1, 2), keepdim=True)  # (K, 1, 1)
            active = f"{n_active(weights):.0f}"
        components = f"{layer.n_components}{each}"
        parameters = f"{stack.layer_n_parameters(layer.name):,}"
        rows.append((layer.name, window, positions, components, active, parameters))
    return rows


def _notes(estimator: Any) -> list[str]:
    """Lines on a fitted estimator, below the table of its layers."""
    stack, last = estimator._stack, estimator.history_[-1]
    lines = [f"{stack.n_parameters:,} parameters."]
    if stack.pyramid is not None:
        least = stack.pixels.least_variance / INTERNAL_VARIANCE
        lines.append(
            "Pixels in a pyramid: means of windows go up, every layer emits details, with "
            f"variances of at least {least:.2g} of those over all images. Or set pixels to tiles."
        )
    if stack.kind == "atoms":
        n_ends = int(stack.ends.isfinite().sum())
        least = stack.pixels.least_variance / INTERNAL_VARIANCE
        lines.append(
            f"Pixels at their own resolution: variances of at least {least:.2g} of those of all "
            f"pixels; {n_ends} {'end is an atom' if n_ends == 1 else 'ends are atoms'}. Or set "
            "pixels to tiles, or to a pyramid."
        )
    if bits := estimator.pixels_bits_:
        compared = ", ".join(f"{kind} {value:.3g}" for kind, value in bits.items())
        lines.append(f"Chosen by held-out bits a value of short trainings: {compared}.")
    if estimator.n_clusters not in (None, stack.top.n_components):
        lines.append(
            f"{estimator.n_clusters} clusters, merged from {stack.top.n_components} components."
        )
    if stack.image_shape[1:] == (1, 1):
        lines.append("Rows are plain features; for images, set image_shape.")
    held_out = ""
    if "validation_loss" in last:
        held_out = f", {last['validation_loss']:.4g} held out"
        if estimator._fitted_objective == "joint":
            best = max(estimator.history_, key=lambda row: row["validation_loss"])
            held_out = f", {best['validation_loss']:.4g} held out after epoch {best['epoch']:.0f}"
    end = ", until it stood still" if estimator.converged_ else ""
    lines.append(f"{estimator.n_iter_} epochs; log-likelihood {last['loss']:.4g}{held_out}{end}.")
    return lines

"""Layers by name, and their parameters as the estimator's: `convgmm1__n_components`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sklearn.base import BaseEstimator

from skdcgmm.layers import LayerSpec

NamedSpecs = list[tuple[str, LayerSpec]]


def is_named(entry: object) -> bool:
    """Whether an entry of `layers` is a (name, spec) pair."""
    return isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[0], str)


def name_layers(layers: list[Any]) -> NamedSpecs:
    """Give unnamed specs names: their kind and their number among layers of that kind."""
    count: Counter[str] = Counter()
    named = []
    for entry in layers:
        if is_named(entry):
            named.append((entry[0], entry[1]))
        else:
            kind = getattr(entry, "kind", "layer")
            count[kind] += 1
            named.append((f"{kind}{count[kind]}", entry))
    return named


def check_layers(layers: object, reserved: set[str]) -> NamedSpecs:
    """Named specs from a list of specs or of (name, spec) pairs.

    Parameters
    ----------
    layers : list of LayerSpec or of (str, LayerSpec)
    reserved : set of str
        Names that no layer may have: the estimator's own parameters.

    Raises
    ------
    TypeError
        If `layers` is no list, or an entry is no layer.
    ValueError
        If the list is empty, or a name is taken twice, reserved or unusable.
    """
    if not isinstance(layers, list | tuple):
        raise TypeError(
            "layers must be 'auto', the name of a preset, or a list of layers such as "
            f"[ConvGMM(50, kernel_size=4, shared=False), ConvGMM(50)]; got {layers!r}."
        )
    named = name_layers(list(layers))
    if not named:
        raise ValueError("layers must hold at least one layer, such as [ConvGMM(49)]; got [].")
    for name, spec in named:
        if not isinstance(spec, LayerSpec):
            raise TypeError(
                "layers must hold ConvGMM and MaxPool layers, or (name, layer) pairs; "
                f"got {spec!r} as {name!r}."
            )
        if not name or "__" in name or name in reserved:
            raise ValueError(
                f"layers has a layer named {name!r}. A name must not be empty, contain '__', or be "
                "a parameter of the estimator: choose another."
            )
    twice = [name for name, times in Counter(name for name, _ in named).items() if times > 1]
    if twice:
        raise ValueError(
            f"layers must have unique names; {twice} occur more than once. Rename one."
        )
    return named


class LayersMixin(BaseEstimator):
    """Parameters of named layers as parameters of the estimator that holds them."""

    layers: Any

    def _named_layers(self) -> NamedSpecs:
        """Layers that have parameters, by name; none for presets and 'auto'."""
        if not isinstance(self.layers, list | tuple):
            return []
        return [
            (name, spec)
            for name, spec in name_layers(list(self.layers))
            if hasattr(spec, "get_params")
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

    def set_params(self, **params: Any) -> LayersMixin:
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
        names = [name for name, _ in self._named_layers()]
        nested = [key for key in params if "__" in key]
        if nested and isinstance(self.layers, str):
            raise ValueError(
                f"Invalid parameter {nested[0]!r}: layers={self.layers!r} has no layers by name. "
                "Give layers as a list, such as [ConvGMM(50, 4), ConvGMM(50)]."
            )
        for name in names:
            if name in params:
                self._replace_layer(names.index(name), params.pop(name))
        super().set_params(**params)
        return self

    def _replace_layer(self, index: int, spec: LayerSpec) -> None:
        layers = list(self.layers)
        entry = layers[index]
        layers[index] = (entry[0], spec) if is_named(entry) else spec
        self.layers = layers

"""Networks and the progress of trainings as plain values and arrays, which any file can hold."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skdcgmm._build import build
from skdcgmm._network import Network
from skdcgmm._tree import JointNetwork
from skdcgmm.layers import FlooredGaussianEmission, GaussianEmission

# The arrays of a network that hold integers; all others are of one floating type.
_COUNTS = ("clusters", "coverage")


def pack(network: Network) -> dict[str, Any]:
    """What a network consists of: its layers with all sizes spelt out, and its arrays."""
    class_logits = getattr(network, "class_logits", None)
    return {
        "layers": [(name, layer.spec) for name, layer in network.named_layers()],
        "image_shape": network.image_shape,
        "joint": isinstance(network.first.emission, FlooredGaussianEmission),
        "n_clusters": network.n_clusters,
        "n_classes": None if class_logits is None else class_logits.shape[1],
        "arrays": arrays_of(dict(network.state_dict())),
    }


def unpack(packed: dict[str, Any]) -> Network:
    """The network that `pack` has seen, on the CPU.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        If the parts do not fit each other.
    """
    state = tensors_of(packed["arrays"])
    with torch.device("meta"):  # no memory yet, whatever sizes the layers claim
        network = build(packed["layers"], packed["image_shape"], joint=packed["joint"])
        if packed["n_classes"] is not None:
            if not isinstance(network, JointNetwork):
                raise ValueError("only a stack that is one density has classes")
            network.add_classes(packed["n_classes"])
    _check_arrays(state, network)
    for name, _ in list(network.named_buffers()):
        # Of those of the scale, the data decide on the shape.
        module, _, buffer = name.rpartition(".")
        setattr(network.get_submodule(module), buffer, state[name])
    network.load_state_dict(state, assign=True)
    network.n_clusters = operator.index(packed["n_clusters"])
    # Tables of clusters take memory, whatever the size of the file.
    if not 1 <= network.n_clusters <= network.top.n_components:
        raise ValueError(
            f"it has {network.n_clusters} clusters of {network.top.n_components} components"
        )
    for layer in network.mixtures.values():
        if isinstance(layer.emission, GaussianEmission):
            layer.gaussian.set_min_variance(layer.gaussian.min_variance)
            # A component that has none takes no image, and only draws would fail.
            if not (layer.gaussian.root_precisions > 0).all():
                raise ValueError("its precisions are not positive")
    return network


def _check_arrays(state: dict[str, Tensor], network: Network) -> None:
    """Raise an error if arrays have types, values or shapes that no training gives them.

    Of most values and of the parameters' shapes, others ask.
    """
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for name, array in state.items():
        dtypes[name in _COUNTS].add(array.dtype)
    if dtypes[True] != {torch.int64} or dtypes[False] not in ({torch.float32}, {torch.float64}):
        raise ValueError(f"its arrays are of types that no network has: {dtypes}")
    for name, buffer in network.named_buffers():
        shapes = [buffer.shape]
        if name in ("shift", "scale"):
            shapes.append(torch.Size((network.image_shape[0], 1, 1)))
        elif name.endswith("min_variance"):
            module = network.get_submodule(name.rpartition(".")[0])
            assert isinstance(module, GaussianEmission)
            shapes.append(module.means.shape[2:])
        if state[name].shape not in shapes:
            raise ValueError(f"its {name} are of another network")
    if state["shift"].shape != state["scale"].shape:
        raise ValueError("its shift and its scale differ in shape")
    for name in {"shift", "scale", "class_logits"} & set(state):
        if not state[name].isfinite().all():
            raise ValueError(f"its {name} are not finite")


def arrays_of(value: Any) -> Any:
    """A tree of lists, dictionaries and named tuples with arrays in place of tensors."""
    return _replace(value, Tensor, lambda tensor: tensor.detach().cpu().numpy().copy())


def tensors_of(value: Any) -> Any:
    """The inverse of `arrays_of`."""
    return _replace(value, np.ndarray, lambda array: torch.from_numpy(array.copy()))


def _replace(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {key: _replace(each, kind, function) for key, each in value.items()}
    if isinstance(value, list):
        return [_replace(each, kind, function) for each in value]
    if hasattr(value, "_fields"):
        return type(value)(*(_replace(each, kind, function) for each in value))
    return value

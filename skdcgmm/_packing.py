"""Networks and the progress of trainings as plain values and arrays, which any file can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skdcgmm._build import build
from skdcgmm._network import Network
from skdcgmm._tree import JointNetwork
from skdcgmm.layers import FlooredGaussianEmission, GaussianEmission


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
    for name in ("coverage", "clusters"):
        if state[name].shape != getattr(network, name).shape:
            raise ValueError(f"its {name} are of another network")
    for name, _ in list(network.named_buffers()):
        # Of those of the scale, the data decide on the shape.
        module, _, buffer = name.rpartition(".")
        setattr(network.get_submodule(module), buffer, state[name])
    network.load_state_dict(state, assign=True)
    network.n_clusters = packed["n_clusters"]
    for layer in network.mixtures.values():
        if isinstance(layer.emission, GaussianEmission):
            layer.gaussian.set_min_variance(layer.gaussian.min_variance)
    return network


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

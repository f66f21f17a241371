"""Fitted estimators in files of arrays and plain values: reading one runs no code of its own."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture

from skdcgmm import _annealing, _joint, _layerwise, _outliers
from skdcgmm._checkpoint import pack_generator, unpack_generator
from skdcgmm._files import replacing, target
from skdcgmm.layers import ConvGMM, LayerSpec, MaxPool

Arrays = dict[str, NDArray[Any]]

FORMAT = 1
_KEY = "skdcgmm"
# What a file may hold besides plain values: objects that are no more than their attributes.
_CLASSES: dict[str, type] = {
    "ConvGMM": ConvGMM,
    "MaxPool": MaxPool,
    "JointProgress": _joint.Progress,
    "LayerwiseProgress": _layerwise.Progress,
    "LayerProgress": _layerwise.LayerProgress,
    "ScheduleState": _annealing.ScheduleState,
    "Surprise": _outliers.Surprise,
    "Typicality": _outliers.Typicality,
    "Sum": _outliers.Sum,
    "Density": _outliers.Density,
    "GaussianMixture": GaussianMixture,
    "LogisticRegression": LogisticRegression,
}
_NAMES = {cls: name for name, cls in _CLASSES.items()}


def write(path: str | os.PathLike[str], kind: str, state: dict[str, Any]) -> None:
    """Write a state to a file of the safetensors format, the plain values as JSON in its header.

    Parameters
    ----------
    path : str or path-like
    kind : str
        What the state is of.
    state : dict
        Of plain values, arrays, and what may hold them.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    TypeError
        If the state holds something else.
    """
    if Path(path).is_dir() or not target(path).parent.is_dir():
        raise FileNotFoundError(
            f"path must be a file in a folder that is there; got {str(path)!r}."
        )
    arrays: Arrays = {}
    values = {name: encode(value, name, arrays) for name, value in state.items()}
    text = json.dumps({"format": FORMAT, "kind": kind, "state": values})
    metadata = {_KEY: text, "digest": _digest(text, arrays)}
    with replacing(Path(path)) as file:
        file.write_bytes(save(arrays, metadata))


def read(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The state that `write` has written.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If it is not whole, of something else, or of a later version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be a file that save has written; got {str(path)!r}.")
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _KEY not in metadata:
        raise ValueError("it was not written by skdcgmm")
    if metadata.get("digest") != _digest(metadata[_KEY], arrays):
        raise ValueError("it has been changed since it was written")
    content = json.loads(metadata[_KEY])
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']}, and this version reads {FORMAT}")
    if content["kind"] != kind:
        raise ValueError(f"it holds a {content['kind']}: call {content['kind']}.load")
    state = {name: decode(value, arrays) for name, value in content["state"].items()}
    _check_classes(state)
    return state


def _check_classes(state: dict[str, Any]) -> None:
    """Raise an error if an estimator and its network do not have the same number of classes."""
    if "classes_" not in state:
        return
    n_classes = state["_network"]["n_classes"]
    if n_classes is not None and np.shape(state["classes_"]) != (n_classes,):
        raise ValueError(f"its classes_ are not {n_classes}")


def _digest(text: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def encode(value: Any, name: str, arrays: Arrays) -> Any:
    """A value as JSON; arrays are put among the others by name.

    Raises
    ------
    TypeError
        If the value is of another kind.
    """

    def tagged(kind: str, **parts: Any) -> dict[str, Any]:
        return {"type": kind, **parts}

    def each(items: Any) -> list[Any]:
        return [encode(item, f"{name}.{index}", arrays) for index, item in enumerate(items)]

    def by_name(items: dict[str, Any]) -> dict[str, Any]:
        return {key: encode(item, f"{name}.{key}", arrays) for key, item in items.items()}

    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.generic):
        return tagged("scalar", value=encode(np.asarray(value), name, arrays))
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        if name in arrays:  # dots in keys may make two names one
            name = f"{name}#{len(arrays)}"
        arrays[name] = np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
        return tagged("array", name=name)
    if isinstance(value, np.ndarray) and value.dtype.kind in "UO" and value.ndim == 1:
        return tagged("names", object=value.dtype == object, items=each(value))
    if type(value) in _NAMES:
        state = value._asdict() if hasattr(value, "_asdict") else vars(value)
        return tagged("object", cls=_NAMES[type(value)], state=by_name(state))
    if type(value) in (list, tuple):
        return tagged(type(value).__name__, items=each(value))
    if type(value) is dict and all(type(key) is str for key in value):
        return tagged("dict", items=by_name(value))
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.random.RandomState):
        return tagged("generator", state=pack_generator(value))
    raise TypeError(
        f"{name} cannot be saved: it is a {type(value).__name__}, and a file holds plain values, "
        "arrays of numbers or names, and layers of this library. Set it to such a value, or use "
        "pickle."
    )


def decode(value: Any, arrays: Arrays) -> Any:
    """The value that `encode` has seen."""
    if not isinstance(value, dict):
        return value
    match value["type"]:
        case "array":
            return arrays[value["name"]]
        case "scalar":
            return decode(value["value"], arrays)[()]
        case "names":
            items = [decode(item, arrays) for item in value["items"]]
            return np.array(items, dtype=object if value["object"] else str)
        case "list":
            return [decode(item, arrays) for item in value["items"]]
        case "tuple":
            return tuple(decode(item, arrays) for item in value["items"])
        case "dict":
            return {key: decode(item, arrays) for key, item in value["items"].items()}
        case "generator":
            return unpack_generator(value["state"])
        case "object":
            cls = _CLASSES[value["cls"]]
            state = {key: decode(item, arrays) for key, item in value["state"].items()}
            if issubclass(cls, tuple | LayerSpec):
                return cls(**state)
            odd = [name for name in state if hasattr(cls, name)]
            if odd:
                raise ValueError(f"a {value['cls']} has no {odd}")
            # Those of scikit-learn: parameters that another version added keep their defaults.
            made = cls() if cls.__module__.startswith("sklearn.") else cls.__new__(cls)
            vars(made).update(state)
            return made
        case other:
            raise ValueError(f"{other!r} is no kind of value")

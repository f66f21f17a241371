"""Trees of plain values and arrays, for pickles, files and checkpoints, which run no code."""

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor

Arrays = dict[str, NDArray[Any]]
Classes = Mapping[str, type]

FORMAT = 2
_KEY = "skdcgmm"


def arrays_of(value: Any) -> Any:
    """A tree of lists, dictionaries and named tuples with arrays in place of tensors."""
    return _replace(value, Tensor, lambda tensor: tensor.detach().cpu().numpy().copy())


def tensors_of(value: Any) -> Any:
    """A tree with tensors in place of arrays: the inverse of `arrays_of`."""
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


def write(path: str | os.PathLike[str], kind: str, state: dict[str, Any], classes: Classes) -> None:
    """Write a state to a file of the safetensors format, the plain values as JSON in its header.

    Parameters
    ----------
    path : str or path-like
        An earlier file there is replaced once the new one is whole.
    kind : str
        What the state is of.
    state : dict
        Of plain values, arrays, and what may hold them.
    classes : dict of str to type
        Of objects that it may hold, which are no more than their attributes.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    TypeError
        If the state holds something else.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir() or not target.parent.is_dir():
        raise FileNotFoundError(
            f"path must be a file in a folder that is there; got {str(path)!r}."
        )
    arrays: Arrays = {}
    names = {cls: name for name, cls in classes.items()}
    values = {name: _encode(value, name, arrays, names) for name, value in state.items()}
    text = json.dumps({"format": FORMAT, "kind": kind, "state": values})
    with _replacing(target) as file:
        file.write_bytes(save(arrays, {_KEY: text}))


def read(path: str | os.PathLike[str], kind: str, classes: Classes) -> dict[str, Any]:
    """Read the state that `write` has written.

    Parameters
    ----------
    path : str or path-like
    kind : str
        What the state must be of.
    classes : dict of str to type
        Of objects that it may hold.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If it is not whole, of something else, or of another version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be a file that save has written; got {str(path)!r}.")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = json.loads(metadata[_KEY])
        found = content["format"], content["kind"]
        if found == (FORMAT, kind):
            state = content["state"]
            return {name: _decode(value, arrays, classes) for name, value in state.items()}
    except Exception as error:  # whatever the bytes of a broken file lead to
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"it is no whole file of skdcgmm ({what})") from error
    if found[0] != FORMAT:
        raise ValueError(f"its format is {found[0]}, and this version reads {FORMAT}")
    remedy = "give it to fit as checkpoint" if found[1] == "checkpoint" else f"call {found[1]}.load"
    raise ValueError(f"it holds a {found[1]}: {remedy}")


def _encode(value: Any, name: str, arrays: Arrays, names: Mapping[type, str]) -> Any:
    """A value as JSON; arrays are put among the others by name.

    Raises
    ------
    TypeError
        If the value is of another kind.
    """

    def each(items: Any) -> list[Any]:
        return [_encode(item, f"{name}.{i}", arrays, names) for i, item in enumerate(items)]

    def by_name(items: dict[str, Any]) -> dict[str, Any]:
        return {k: _encode(item, f"{name}.{k}", arrays, names) for k, item in items.items()}

    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.generic):
        return {"type": "scalar", "value": _encode(np.asarray(value), name, arrays, names)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        if name in arrays:  # dots in keys may make two names one
            name = f"{name}#{len(arrays)}"
        arrays[name] = np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
        return {"type": "array", "name": name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "UO" and value.ndim == 1:
        return {"type": "names", "object": value.dtype == object, "items": each(value)}
    if type(value) in names:
        state = value._asdict() if hasattr(value, "_asdict") else vars(value)
        return {"type": "object", "cls": names[type(value)], "state": by_name(state)}
    if type(value) in (list, tuple, torch.Size):
        return {"type": "list" if type(value) is list else "tuple", "items": each(value)}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"type": "dict", "items": by_name(value)}
    if isinstance(value, torch.device | os.PathLike):
        return str(value)
    if isinstance(value, RandomState):
        return {"type": "generator", "state": by_name(dict(value.get_state(legacy=False)))}
    raise TypeError(
        f"{name} cannot be saved: it is a {type(value).__name__}, and a file holds plain values, "
        "arrays of numbers or names, and layers of this library. Set it to such a value, or use "
        "pickle."
    )


def _decode(value: Any, arrays: Arrays, classes: Classes) -> Any:
    """The value that `_encode` has seen."""
    if not isinstance(value, dict):
        return value

    def each(items: list[Any]) -> list[Any]:
        return [_decode(item, arrays, classes) for item in items]

    def by_name(items: dict[str, Any]) -> dict[str, Any]:
        return {key: _decode(item, arrays, classes) for key, item in items.items()}

    match value["type"]:
        case "array":
            return arrays.pop(value["name"])
        case "scalar":
            return _decode(value["value"], arrays, classes)[()]
        case "names":
            return np.array(each(value["items"]), dtype=object if value["object"] else str)
        case "list":
            return each(value["items"])
        case "tuple":
            return tuple(each(value["items"]))
        case "dict":
            return by_name(value["items"])
        case "generator":
            return _random_state(by_name(value["state"]))
        case "object":
            cls = classes[value["cls"]]
            state = by_name(value["state"])
            if issubclass(cls, tuple):
                return cls(**state)
            # Parameters that another version of scikit-learn added keep their defaults.
            made = cls() if cls.__module__.startswith("sklearn.") else cls.__new__(cls)
            if odd := [name for name in state if hasattr(cls, name)]:
                raise ValueError(f"a {value['cls']} has no {odd}")
            vars(made).update(state)
            return made
        case other:
            raise ValueError(f"{other!r} is no kind of value")


def _random_state(state: dict[str, Any]) -> RandomState:
    """The random generator of a state, as of `get_state`."""
    kind = getattr(np.random, state["bit_generator"], None)
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
        raise ValueError(f"{state['bit_generator']} is no bit generator")
    # numpy does not check them, and reads what is there in memory.
    places = {"pos": state["state"].get("pos", 0), "buffer_pos": state.get("buffer_pos", 0)}
    if not (0 <= places["pos"] <= 624 and 0 <= places["buffer_pos"] <= 4):
        raise ValueError(f"the state of a random generator is out of range: {places}")
    rng = RandomState(kind())
    rng.set_state(state)
    return rng


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A file beside `target` to write to, which takes its place once it is whole."""
    # Its length does not depend on that of the name, which may be the longest possible.
    beside = target.with_name(f"skdcgmm-{uuid.uuid4().hex}")
    try:
        yield beside
        with beside.open("r+b") as file:  # some systems sync only what may be written
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)

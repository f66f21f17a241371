"""A file from which a training that was stopped can go on."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from skdcgmm import _annealing, _distributed, _joint, _layerwise
from skdcgmm._files import replacing, target
from skdcgmm._training import Objective, Standing

# What a file may hold besides tensors and plain values: reading it runs no code of its own.
_TYPES: list[Any] = [
    _joint.Progress, _layerwise.Progress, _layerwise.LayerProgress, _annealing.ScheduleState,
]  # fmt: skip
_VERSION = 1
# What it does hold.
_PARTS = {
    "version", "parameters", "start", "images", "network", "progress", "standing", "epoch",
}  # fmt: skip


class Checkpoint:
    """What a training has reached, written from time to time.

    Of several processes the first one writes the file, and tells the others what it has read.

    Parameters
    ----------
    path : str or path-like
    minutes : float
        Time between two writings.
    parameters : dict of str to str
        Those of the training; a file of another one is refused.
    rng : RandomState
        At the start of the training.

    Attributes
    ----------
    saved : dict or None
        What an earlier training has left in the file.
    rng : RandomState
        As at the start of that training, or as given.

    Raises
    ------
    ValueError
        If the file cannot be read, or is of a training with other parameters.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        minutes: float,
        parameters: dict[str, str],
        rng: np.random.RandomState,
    ) -> None:
        self._path = Path(path)
        self._seconds = 60 * minutes
        self._written = time.monotonic()
        self._origin = {"version": _VERSION, "parameters": parameters, "start": pack_generator(rng)}
        self.saved: dict[str, Any] | None
        self.saved, *_ = _distributed.gather(self._load())
        self.rng = rng
        if self.saved is not None:
            self._check("version", self.saved["version"], _VERSION)
            for name, value in parameters.items():
                self._check(name, self.saved["parameters"].get(name), value)
            self._origin["start"] = self.saved["start"]
            self.rng = unpack_generator(self.saved["start"])

    def _load(self) -> dict[str, Any] | None:
        if not self._path.exists():
            return None
        try:
            with torch.serialization.safe_globals(_TYPES):
                saved = dict(torch.load(self._path, map_location="cpu", weights_only=True))
            if missing := _PARTS - set(saved):
                raise ValueError(f"it lacks {sorted(missing)}")
            return saved
        except Exception as error:  # whatever the bytes of a broken file lead to
            raise ValueError(
                f"checkpoint={str(self._path)!r} cannot be read ({error!r}). Delete the file, or "
                "give another path."
            ) from error

    def _check(self, name: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise ValueError(
                f"checkpoint={str(self._path)!r} is of another training: its {name} is {found}, "
                f"not {expected}. Delete the file, or give another path."
            )

    def check_images(self, images: str) -> None:
        """Compare what the training starts from with what the earlier one has.

        Parameters
        ----------
        images : str
            What tells the images of one training from those of another.

        Raises
        ------
        ValueError
            If they differ.
        """
        self._origin["images"] = images
        if self.saved is not None:
            self._check("X", self.saved["images"], images)

    def restore(
        self, network: nn.Module, rng: np.random.RandomState
    ) -> tuple[Any, Standing] | None:
        """Put a network and a generator where the earlier training left them; and its progress."""
        if self.saved is None:
            return None
        network.load_state_dict(self.saved["network"])
        rng.set_state(unpack_generator(self.saved["epoch"]).get_state(legacy=False))
        return self.saved["progress"], Standing(*self.saved["standing"])

    def start_epoch(self, rng: np.random.RandomState) -> None:
        """Note how the order of the images is drawn."""
        self._epoch = pack_generator(rng)

    def note(self, network: nn.Module, objective: Objective, standing: Standing) -> None:
        """Write what the training has reached, if it is time."""
        if time.monotonic() - self._written >= self._seconds:
            self._write(
                {
                    "network": network.state_dict(),
                    "progress": objective.progress,
                    "standing": list(standing),
                    "epoch": self._epoch,
                }
            )

    def _write(self, state: dict[str, Any]) -> None:
        if _distributed.rank() == 0:
            with replacing(self._path) as file:
                torch.save({**state, **self._origin}, file)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the training is done."""
        if _distributed.rank() == 0:
            target(self._path).unlink(missing_ok=True)


def pack_generator(rng: np.random.RandomState) -> dict[str, Any]:
    """The state of a random generator in plain values."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        return np.asarray(value).tolist()

    packed: dict[str, Any] = plain(rng.get_state(legacy=False))
    return packed


def unpack_generator(state: dict[str, Any]) -> np.random.RandomState:
    """A random generator in the state that `pack_generator` has seen."""
    kind = getattr(np.random, state["bit_generator"])
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
        raise ValueError(f"{state['bit_generator']} is no bit generator")
    # numpy does not check them, and reads what is there in memory.
    places = {"pos": state["state"].get("pos", 0), "buffer_pos": state.get("buffer_pos", 0)}
    if not (0 <= places["pos"] <= 624 and 0 <= places["buffer_pos"] <= 4):
        raise ValueError(f"the state of a random generator is out of range: {places}")

    def arrays(values: dict[str, Any]) -> dict[str, Any]:
        return {
            name: np.array(value, dtype=np.uint64) if isinstance(value, list) else value
            for name, value in values.items()
        }

    rng = np.random.RandomState(kind())
    rng.set_state({**arrays(state), "state": arrays(state["state"])})
    return rng

"""Images in memory, or mapped from a file: rows that become tensors a batch at a time."""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skdcgmm import _distributed
from skdcgmm._batch import Batch
from skdcgmm._gaussian import computing
from skdcgmm._moments import Moments
from skdcgmm._training import Batches
from skdcgmm.layers import Shape

FloatArray = NDArray[np.floating[Any]]
Index = slice | NDArray[np.integer[Any]]

# Numbers in the tensors that a batch of predictions may fill: bounds the memory of predictions.
_BATCH_NUMBERS = 2**25
# Values that are looked at together where each is looked at once.
_BLOCK_VALUES = 2**20
# Images of a sample, and values in them at most.
_N_SAMPLE, _SAMPLE_VALUES = 10_000, 2**27


class Epochs(NamedTuple):
    """What training goes through.

    Attributes
    ----------
    n_batches : int
        Of an epoch.
    batches : callable
        Makes the batches of the next epoch.
    validation : callable or None
        Makes the batches of the images held out.
    held_out : ndarray or None
        Their numbers among those of all processes, in random order.
    """

    n_batches: int
    batches: Batches
    validation: Batches | None
    held_out: NDArray[np.integer[Any]] | None = None


@dataclass(frozen=True)
class Images:
    """Rows of pixels, of this process.

    Attributes
    ----------
    rows : ndarray of shape (n_samples, height * width * channels)
        Of any real type that float32 holds exactly, or float64; perhaps mapped from a file.
    shape : (channels, height, width)
    row_shape : tuple of int
        Shape of an image as the user gave it.
    weight : ndarray of shape (n_samples,) or None
        Relative weights; None weighs all the same.
    y : ndarray of int of shape (n_samples,) or None
        Number of the class of each image, -1 where unknown.
    complete : bool
        Whether it is known that no value is missing.
    shares : tuple of int or None
        Numbers of images of the processes that train together, by rank; None is this one alone.
    rank : int
        This one among them.
    """

    rows: NDArray[Any]
    shape: Shape
    row_shape: tuple[int, ...]
    weight: FloatArray | None = None
    y: NDArray[np.int64] | None = None
    complete: bool = False
    shares: tuple[int, ...] | None = None
    rank: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_images(self) -> int:
        """Number of images of all processes."""
        return len(self) if self.shares is None else sum(self.shares)

    @property
    def first(self) -> int:
        """Number of the first image among those of all processes."""
        return 0 if self.shares is None else sum(self.shares[: self.rank])

    @property
    def dtype(self) -> torch.dtype:
        """The type to compute in: double precision for rows in double precision."""
        return torch.float64 if self.rows.dtype == np.float64 else torch.float32

    @property
    def identity(self) -> str:
        """What tells these images, labels and weights from others, of all processes."""
        digest = hashlib.sha256()
        # All of them: it takes less time than to look at their mean and variance.
        for block in blocks(self.rows):
            digest.update(np.ascontiguousarray(block).data)
        for values in (self.weight, self.y):
            digest.update(b"none" if values is None else np.ascontiguousarray(values).data)
        digests = _distributed.gather(digest.hexdigest()[:16])
        return f"{self.n_images} of shape {self.shape}, {' '.join(digests)}"

    def joined(self) -> Images:
        """The same as a share of the images of all processes.

        Raises
        ------
        ValueError
            If the processes have images of several shapes or types.
        """
        if _distributed.n_processes() == 1:
            return self
        kinds = _distributed.gather((self.shape, str(self.dtype)))
        if len(set(kinds)) > 1:
            raise ValueError(f"X must be of one shape and type in all processes; got {kinds}.")
        ranked = _distributed.gather(len(self))
        return replace(self, shares=tuple(ranked), rank=_distributed.rank())

    def take(self, index: NDArray[Any]) -> Images:
        """Some of the images of this process, for itself."""
        weight = None if self.weight is None else self.weight[index]
        y = None if self.y is None else self.y[index]
        rows = self.rows[index]
        release(self.rows)
        return replace(self, rows=rows, weight=weight, y=y, shares=None)

    def collect(self, index: NDArray[np.integer[Any]]) -> Images:
        """Some of the images of all processes, in each of them."""
        if self.shares is None:
            return self.take(index)
        place = np.flatnonzero(self._is_own(index))
        parts = _distributed.gather((place, self.take(index[place] - self.first)))
        order = np.argsort(np.concatenate([place for place, _ in parts]))

        def together(name: str) -> NDArray[Any] | None:
            values = [getattr(images, name) for _, images in parts]
            return None if values[0] is None else np.concatenate(values)[order]

        weight, y = together("weight"), together("y")
        rows = np.concatenate([images.rows for _, images in parts])[order]
        complete = all(images.complete for _, images in parts)
        return replace(self, rows=rows, weight=weight, y=y, complete=complete, shares=None)

    def of_all(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the images of all processes, given those of this one."""
        return values if self.shares is None else np.concatenate(_distributed.gather(values))

    def of_own(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the images of this process, given those of all."""
        return values[self.first : self.first + len(self)]

    def sample(
        self, n_images: int, rng: np.random.RandomState, *, weighted: bool = False
    ) -> Images:
        """Some images of all processes, or all, drawn by their weights or evenly."""
        share = None
        if weighted and self.weight is not None:
            weight = self.of_all(self.weight)
            share = weight / weight.sum()
        n_drawn = min(n_images, self.n_images)
        return self.collect(rng.choice(self.n_images, n_drawn, replace=False, p=share))

    def hide(self, mask: NDArray[np.bool_]) -> Images:
        """The same with pixels missing where the mask (n_samples, features) is true."""
        if not mask.any():
            return self
        rows = self.rows.astype(np.float64 if self.dtype == torch.float64 else np.float32)
        rows[mask] = np.nan
        return replace(self, rows=rows, complete=False)

    def tensor(self, index: Index, like: Tensor) -> Tensor:
        """Some images (N, C, H, W), copied, with the dtype and device of `like`."""
        channels, height, width = self.shape
        rows = _send(np.array(self.rows[index]), like)
        release(self.rows)
        x = rows.to(like).view(-1, height, width, channels)  # (N, H, W, C)
        return x.permute(0, 3, 1, 2)  # (N, C, H, W)

    def batch(self, index: NDArray[np.integer[Any]], like: Tensor) -> Batch:
        """Some images to learn from: of those of all processes, the ones that this one has."""
        own = index if self.shares is None else index[self._is_own(index)] - self.first
        x = self.tensor(own, like)
        weight = None if self.weight is None else _send(self.weight[own], like).to(x)
        y = None if self.y is None else _send(self.y[own], like)
        return Batch(x, weight, y, self._label_weight, len(index), self.complete)

    def epochs(
        self,
        rng: np.random.RandomState,
        batch_size: int,
        validation_fraction: float | None,
        like: Tensor,
    ) -> Epochs:
        """Epochs in random order, the same in all processes, but for some images held out."""
        order = rng.permutation(self.n_images)
        n_held_out = 0
        if validation_fraction is not None:
            n_held_out = round(validation_fraction * self.n_images)
            n_held_out = min(self.n_images - 1, max(1, n_held_out))
        held_out, kept = order[:n_held_out], order[n_held_out:]
        images = self
        if self.weight is not None:
            images = replace(self, weight=self.weight / self.of_all(self.weight)[kept].mean())

        def batches(index: NDArray[np.integer[Any]]) -> Iterator[Batch]:
            # Of equal size, so that the last few images weigh no more than others.
            for part in np.array_split(index, -(-len(index) // batch_size)):
                yield images.batch(part, like)

        return Epochs(
            -(-len(kept) // batch_size),
            lambda: batches(rng.permutation(kept)),
            (lambda: batches(held_out)) if n_held_out else None,
            held_out if n_held_out else None,
        )

    @cached_property
    def _label_weight(self) -> float:
        """Number of images that a label stands for, by weight."""
        if self.y is None:
            return 1.0
        y = self.of_all(self.y)
        weight = np.ones(len(y)) if self.weight is None else self.of_all(self.weight)
        return float(weight.sum() / weight[y >= 0].sum())

    def _is_own(self, index: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        return (self.first <= index) & (index < self.first + len(self))

    @staticmethod
    def batch_size(numbers_per_image: int) -> int:
        """Number of images whose passes through a network fill a bounded memory."""
        return max(1, _BATCH_NUMBERS // numbers_per_image)

    def slices(self, size: int) -> Iterator[slice]:
        """Consecutive slices of at most `size` images; one that is empty, if there are none."""
        return (slice(start, start + size) for start in range(0, max(1, len(self)), size))

    def moments(self, *, by_feature: bool) -> Moments:
        """Mean and variance of the observed values of all processes, by feature or over all."""
        total = Moments.none()
        for block in blocks(self.rows):
            total = total.add(Moments.of(block, by_feature=by_feature))
        if self.shares is None:
            return total
        first, *others = _distributed.gather(total)
        for moments in others:
            first = first.add(moments)
        return first

    def map(
        self, function: Callable[[Tensor], Tensor], like: Tensor, numbers_per_image: int
    ) -> NDArray[Any]:
        """Apply a function of image tensors (N, C, H, W) in batches of bounded memory.

        Real values are answered in the type to compute in.
        """
        answers: Tensor | None = None
        with computing(like.device), torch.no_grad():
            for part in self.slices(self.batch_size(numbers_per_image)):
                values = function(self.tensor(part, like))
                if answers is None:
                    # At once: small parts, kept between large ones, would fragment the memory.
                    shape = (len(self), *values.shape[1:])
                    dtype = self.dtype if values.is_floating_point() else values.dtype
                    answers = torch.empty(shape, dtype=dtype, device="cpu")
                answers[part] = values
        assert answers is not None
        return answers.numpy()


def _send(values: NDArray[Any], like: Tensor) -> Tensor:
    """Values as they are, on the device of `like`, which need not wait for them."""
    sent = torch.from_numpy(values)
    if like.device.type == "cuda":
        sent = sent.pin_memory().to(like.device, non_blocking=True)
    return sent


def is_complete(rows: NDArray[Any], check: Callable[[NDArray[Any]], Any]) -> bool:
    """Whether no value of the rows is NaN; `check` raises an error for what they must not hold."""
    if rows.dtype.kind != "f":
        return True
    complete = True
    for block in blocks(rows):
        with np.errstate(over="ignore", invalid="ignore"):
            fine = np.isfinite(block.sum(dtype=np.float64))
        if not fine:
            check(block)
            complete = complete and not np.isnan(block).any()
    return complete


def blocks(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """All rows, some at a time."""
    n_rows = max(1, _BLOCK_VALUES // max(1, rows.shape[1]))
    for start in range(0, len(rows), n_rows):
        yield rows[start : start + n_rows]
        release(rows)


def sample_size(shape: Shape) -> int:
    """Number of images by whose sample all are judged, which memory holds."""
    return min(_N_SAMPLE, max(1, _SAMPLE_VALUES // math.prod(shape)))


def release(rows: NDArray[Any]) -> None:
    """Give pages of a file that rows are mapped from back to the system.

    They stay in its cache, but no longer count as memory of this process, which would grow to the
    size of the file.
    """
    base: Any = rows
    shared = False
    while base is not None and not isinstance(base, mmap.mmap):
        # Changes of a private map are nowhere else, and only NumPy's maps say what they are.
        shared = isinstance(base, np.memmap) and base.mode != "c"
        base = getattr(base, "base", None)
    if base is not None and shared and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)

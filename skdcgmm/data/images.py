"""Images in memory, or mapped from a file: rows that become tensors a batch at a time."""

import hashlib
import math
import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

# Numbers in the tensors that a batch of predictions may fill: bounds the memory of predictions.
_BATCH_NUMBERS = 2**25
# Values that are looked at together where each is looked at once.
_BLOCK_VALUES = 2**20
# Images of a sample, and values in them at most.
_N_SAMPLE, _SAMPLE_VALUES = 10_000, 2**27

# Types of tensors that NumPy has, too.
_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)

# What is beyond double precision ends as a moment that is not finite.
_beyond = np.errstate(over="ignore", invalid="ignore")


class Batch(NamedTuple):
    """Some images, and what is known of them.

    Attributes
    ----------
    x : Tensor of shape (N, C, H, W)
    weight : Tensor of shape (N,) or None
        Of mean 1 over the images trained on; None weighs all the same.
    y : Tensor of int of shape (N,) or None
        Number of the class of each image, -1 where unknown.
    label_weight : float
        Number of images that a label stands for.
    complete : bool
        Promise that no pixel is missing, which spares a look at all of them.
    """

    x: Tensor
    weight: Tensor | None = None
    y: Tensor | None = None
    label_weight: float = 1.0
    complete: bool = False


# Gives some of the images that training has not seen, at most a number.
HeldOut = Callable[[int], "Images"]


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
    held_out : HeldOut or None
    """

    n_batches: int
    batches: Callable[[], Iterable[Batch]]
    validation: Callable[[], Iterable[Batch]] | None = None
    held_out: HeldOut | None = None

    def judged_by(self, images: "Images | None", batch_size: int, like: Tensor) -> "Epochs":
        """Epochs judged by images of the user's own, if there are some, in their order."""
        if images is None:
            return self
        validation = partial(images.in_order, batch_size, like)
        return self._replace(validation=validation, held_out=images.evenly)


class Moments(NamedTuple):
    """Number, mean and summed squared differences of the observed values of each feature.

    Attributes
    ----------
    n_values, mean, squares : ndarray of shape (features,)
    """

    n_values: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    @_beyond
    def of(cls, rows: NDArray[Any]) -> "Moments":
        """Moments of some rows; NaN are not observed."""
        values = rows.astype(np.float64)
        seen = ~np.isnan(values)
        values[~seen] = 0
        count = seen.sum(0).astype(np.float64)
        mean = values.sum(0) / np.maximum(count, 1)
        values -= mean
        values[~seen] = 0
        return cls(count, mean, np.square(values, out=values).sum(0))

    @_beyond
    def add(self, other: "Moments") -> "Moments":
        """Moments of the values of both.

        References
        ----------
        T. Chan, G. Golub, R. LeVeque: Algorithms for Computing the Sample Variance: Analysis and
        Recommendations. The American Statistician 37(3), 1983.
        """
        count = self.n_values + other.n_values
        share = other.n_values / np.maximum(count, 1)
        difference = other.mean - self.mean
        return Moments(
            count,
            self.mean + share * difference,
            self.squares + other.squares + self.n_values * share * np.square(difference),
        )

    @property
    def variance(self) -> NDArray[np.float64]:
        """Mean squared difference from the mean; 0 where nothing is observed."""
        return self.squares / np.maximum(self.n_values, 1)


@dataclass(frozen=True)
class Images:
    """Rows of pixels.

    Attributes
    ----------
    rows : ndarray of shape (n_samples, height * width * channels)
        Of any real type that float32 holds exactly, or float64, in any order of bytes; perhaps
        mapped from a file.
    shape : (channels, height, width)
    row_shape : tuple of int
        Shape of an image as the user gave it.
    weight : ndarray of shape (n_samples,) or None
        Relative weights; None weighs all the same.
    y : ndarray of int of shape (n_samples,) or None
        Number of the class of each image, -1 where unknown.
    complete : bool
        Whether it is known that no value is missing.
    held_out : ndarray of int or None
        Numbers of the images that are not to be learnt from.
    """

    rows: NDArray[Any]
    shape: tuple[int, int, int]
    row_shape: tuple[int, ...]
    weight: FloatArray | None = None
    y: NDArray[np.int64] | None = None
    complete: bool = False
    held_out: IntArray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def kept(self) -> IntArray:
        """Numbers of the images to learn from."""
        everyone = np.arange(len(self))
        return everyone if self.held_out is None else np.setdiff1d(everyone, self.held_out)

    def hold_out(self, rng: RandomState, share: float | None) -> "Images":
        """The images, of which a share, drawn at random, is not to be learnt from; None: all are.

        At least one, but for a single image.
        """
        if share is None:
            return self
        n_held_out = max(0, min(len(self) - 1, max(1, round(share * len(self)))))
        return replace(self, held_out=rng.permutation(len(self))[:n_held_out])

    @property
    def dtype(self) -> torch.dtype:
        """The type to compute in: double precision for rows in double precision."""
        return torch.float64 if _native(self.rows.dtype) == np.float64 else torch.float32

    @property
    def integers(self) -> str | None:
        """Name of the type of the rows, if they hold whole numbers."""
        return self.rows.dtype.name if self.rows.dtype.kind in "iu" else None

    @property
    def identity(self) -> str:
        """What tells these images, labels and weights from others."""
        digest = hashlib.sha256()
        # All of them: it takes less time than to look at their mean and variance.
        for block in blocks(self.rows):
            digest.update(np.ascontiguousarray(block).data)
        for values in (self.weight, self.y):
            digest.update(b"none" if values is None else np.ascontiguousarray(values).data)
        return f"{len(self)} of shape {self.shape}, {digest.hexdigest()[:16]}"

    def take(self, index: NDArray[Any]) -> "Images":
        """Some of the images."""
        weight = None if self.weight is None else self.weight[index]
        y = None if self.y is None else self.y[index]
        rows = self.rows[index]
        release(self.rows)
        return replace(self, rows=rows, weight=weight, y=y, held_out=None)

    def sample(self, n_images: int, rng: RandomState, *, weighted: bool = False) -> "Images":
        """Some of the images to learn from, or all, drawn by their weights or evenly."""
        kept, share = self.kept, None
        if weighted and self.weight is not None:
            share = self.weight[kept] / self.weight[kept].sum()
        n_drawn = min(n_images, len(kept))
        return self.take(rng.choice(kept, n_drawn, replace=False, p=share))

    def hide(self, mask: NDArray[np.bool_]) -> "Images":
        """Images with pixels missing where the mask (n_samples, features) is true."""
        if not mask.any():
            return self
        rows = self.rows.astype(np.float64 if self.dtype == torch.float64 else np.float32)
        rows[mask] = np.nan
        return replace(self, rows=rows, complete=False)

    def tensor(self, index: slice | IntArray, like: Tensor) -> Tensor:
        """Some images (N, C, H, W), copied, with the dtype and device of `like`."""
        channels, height, width = self.shape
        rows = _send(np.array(self.rows[index], _native(self.rows.dtype)), like)
        release(self.rows)
        x = rows.to(like).view(-1, height, width, channels)  # (N, H, W, C)
        return x.permute(0, 3, 1, 2)  # (N, C, H, W)

    def batch(self, index: slice | IntArray, like: Tensor, label_weight: float = 1.0) -> Batch:
        """Some images to learn from."""
        x = self.tensor(index, like)
        weight = None if self.weight is None else _send(self.weight[index], like).to(x)
        y = None if self.y is None else _send(self.y[index], like)
        return Batch(x, weight, y, label_weight, self.complete)

    def epochs(
        self,
        rng: RandomState,
        batch_size: int,
        like: Tensor,
        total: Callable[[Any], Any] = lambda value: value,
    ) -> Epochs:
        """Epochs in random order, but for the images held out.

        Parameters
        ----------
        rng : RandomState
        batch_size : int
        like : Tensor
            Of the type of the batches, where they are to be.
        total : callable
            From a number of images to that of all processes which train together: their batches,
            as many in each, have `batch_size` images together.
        """
        # One draw more than needed, so that a seed goes on to give what it has given.
        kept = rng.permutation(self.kept)
        held_out = np.empty(0, dtype=np.intp) if self.held_out is None else self.held_out
        images, label_weight = self, 1.0
        if self.y is not None:
            weight = np.ones(len(self)) if self.weight is None else self.weight
            label_weight = total(weight.sum()) / total(weight[self.y >= 0].sum())
        if self.weight is not None:
            mean = total(self.weight[kept].sum()) / total(len(kept))
            images = replace(self, weight=self.weight / mean)

        def batches(index: IntArray, n_batches: int) -> Iterator[Batch]:
            # Of equal size, so that the last few images weigh no more than others.
            for part in np.array_split(index, n_batches):
                yield images.batch(part, like, label_weight)

        n_batches = -(-total(len(kept)) // batch_size)
        epochs = Epochs(n_batches, lambda: batches(rng.permutation(kept), n_batches))
        if not total(len(held_out)):
            return epochs
        validation = partial(batches, held_out, max(1, -(-len(held_out) // batch_size)))
        return epochs._replace(
            validation=validation, held_out=lambda n_images: self.take(held_out[:n_images])
        )

    def in_order(self, batch_size: int, like: Tensor) -> Iterator[Batch]:
        """Batches of all images, to judge progress by."""
        label_weight = 1.0 if self.y is None else len(self) / max(1, (self.y >= 0).sum())
        for start in range(0, len(self), batch_size):
            yield self.batch(slice(start, start + batch_size), like, label_weight)

    def evenly(self, n_images: int) -> "Images":
        """Some images, or all, evenly from the first to the last."""
        n_taken = min(n_images, len(self))
        return self.take(np.linspace(0, len(self) - 1, n_taken).astype(int))

    @staticmethod
    def batch_size(numbers_per_image: int) -> int:
        """Number of images whose passes through a stack fill a bounded memory."""
        return max(1, _BATCH_NUMBERS // numbers_per_image)

    def moments(self) -> "Moments":
        """Mean and variance of the observed values, by feature."""
        none = np.zeros(self.rows.shape[1])
        total = Moments(none, none, none)
        for block in blocks(self.rows):
            total = total.add(Moments.of(block))
        return total

    def map(
        self, function: Callable[[Tensor], Tensor], like: Tensor, numbers_per_image: int
    ) -> NDArray[Any]:
        """Apply a function of image tensors (N, C, H, W) in batches of bounded memory.

        Real values are answered in the type to compute in.
        """
        answers: Tensor | None = None
        size = self.batch_size(numbers_per_image)
        # Also once if there are no images, for the shape of an answer.
        for start in range(0, max(1, len(self)), size):
            part = slice(start, start + size)
            values = function(self.tensor(part, like))
            if answers is None:
                # At once: small parts, kept between large ones, would fragment the memory.
                shape = (len(self), *values.shape[1:])
                dtype = self.dtype if values.is_floating_point() else values.dtype
                answers = torch.empty(shape, dtype=dtype, device="cpu")
            answers[part] = values
        assert answers is not None
        return answers.numpy()


def make_generator(random_state: Any, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded from a scikit-learn `random_state`."""
    seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    return torch.Generator(device=device).manual_seed(seed)


def as_array(values: Any, name: str) -> Any:
    """The numbers of a tensor, wherever it is; anything else as it is.

    Raises
    ------
    TypeError
        If it is a tensor without numbers of its own, or that holds only some of them.
    """
    if not isinstance(values, Tensor):
        return values
    try:
        dense = values.detach().cpu().resolve_conj().resolve_neg()
        if dense.is_floating_point() and dense.dtype not in _NUMPY_FLOATS:
            dense = dense.float()
        return dense.numpy()
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"{name} must be a dense tensor of numbers, or an array; got {type(values).__name__} "
            f"of layout {values.layout} on {values.device} ({error}). Convert it, as by "
            "to_dense(), with NaN for what is missing."
        ) from error


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in the order of bytes in which this machine computes."""
    return dtype.newbyteorder("=")


def _send(values: NDArray[Any], like: Tensor) -> Tensor:
    """Values as they are, on the device of `like`, which need not wait for them."""
    sent = torch.from_numpy(values)
    if like.device.type == "cuda":
        sent = sent.pin_memory().to(like.device, non_blocking=True)
    return sent


def is_complete(rows: NDArray[Any]) -> bool:
    """Whether no value of the rows is NaN.

    Raises
    ------
    ValueError
        If one is infinite.
    """
    if rows.dtype.kind != "f":
        return True
    complete, n_before = True, 0
    for block in blocks(rows):
        with np.errstate(over="ignore", invalid="ignore"):
            fine = np.isfinite(block.sum(dtype=np.float64))
        if not fine:
            infinite = np.argwhere(np.isinf(block))
            if len(infinite):
                row, feature = infinite[0]
                raise ValueError(
                    f"Input X contains infinity, first in row {n_before + row}, feature {feature}"
                )
            complete = complete and not np.isnan(block).any()
        n_before += len(block)
    return complete


def blocks(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """All rows, some at a time."""
    n_rows = max(1, _BLOCK_VALUES // max(1, rows.shape[1]))
    for start in range(0, len(rows), n_rows):
        yield rows[start : start + n_rows]
        release(rows)


def sample_size(shape: tuple[int, int, int]) -> int:
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

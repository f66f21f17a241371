"""Images that come in batches, again in every epoch, and are never together in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from skdcgmm import _distributed
from skdcgmm._batch import Batch
from skdcgmm._images import Epochs, Images, sample_size
from skdcgmm._moments import Moments
from skdcgmm._validation import make_generator
from skdcgmm.layers import Shape


def is_stream(X: object) -> bool:
    """Whether X is a dataset, or another iterable of batches, rather than an array."""
    if isinstance(X, Dataset | DataLoader):
        return True
    array_like = any(
        hasattr(X, name) for name in ("ndim", "shape", "__array__", "__array_interface__")
    )
    others = isinstance(X, Sequence | Set | Mapping)
    return isinstance(X, Iterable) and not array_like and not others


class Stream:
    """Batches of images, gone through anew in every epoch.

    They are gone through once to begin with, for their number, their moments, and some of them,
    drawn at random, to start from.

    Parameters
    ----------
    source : Dataset or iterable of batches
        A batch is an array or a tensor of images, or a tuple whose first element is one.
    read : callable
        From a batch, and whether it is the first one, to images.
    batch_size : int
        For a dataset.
    rng : RandomState
        Draws what is kept, and shuffles a dataset.

    Attributes
    ----------
    n_images : int
        Of all processes.
    n_batches : int

    Raises
    ------
    ValueError
        If the source holds no images, or can be gone through only once.
    """

    def __init__(
        self,
        source: Any,
        read: Callable[[Any, bool], Images],
        batch_size: int,
        rng: np.random.RandomState,
    ) -> None:
        if isinstance(source, Iterator):
            raise ValueError(
                "X must start anew whenever it is iterated over, once an epoch; got "
                f"{type(source).__name__}, which ends after one pass. Give a DataLoader or an "
                "object whose __iter__ makes a new iterator, or call partial_fit with each batch."
            )
        self._source, self._read, self._batch_size = source, read, batch_size
        self._moments = Moments.none()
        self._complete = True
        self.n_batches = n_own = 0
        # Of its own, since processes may keep different numbers of images.
        draws = np.random.RandomState(rng.randint(np.iinfo(np.int32).max))
        kept: Images | None = None
        for chunk in self._chunks(shuffle=None):
            images = read(chunk, self.n_batches == 0)
            if kept is None:
                shape = (sample_size(images.shape), images.rows.shape[1])
                rows = np.empty(shape, images.rows.dtype)
                kept = replace(images, rows=rows)
            if images.rows.dtype != kept.rows.dtype:
                raise ValueError(
                    f"X must have batches of one type; got {kept.rows.dtype} and "
                    f"{images.rows.dtype}. Convert them."
                )
            _keep(kept.rows, images.rows, n_own, draws)
            self._moments = self._moments.add(Moments.of(images.rows, by_feature=True))
            self._complete = self._complete and images.complete
            self.n_batches += 1
            n_own += len(images)
        counts = _distributed.gather(self.n_batches)
        if kept is None or len(set(counts)) > 1:
            raise ValueError(
                "X must have batches of images, as many in all processes; got "
                f"{counts if len(counts) > 1 else 'none'}."
            )
        self.n_images = sum(_distributed.gather(n_own))
        self._kept = replace(kept, rows=kept.rows[:n_own], complete=self._complete).joined()

    @property
    def shape(self) -> Shape:
        """Channels, height and width."""
        return self._kept.shape

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of an image as the user gave it."""
        return self._kept.row_shape

    @property
    def dtype(self) -> torch.dtype:
        """The type to compute in."""
        return self._kept.dtype

    @property
    def identity(self) -> str:
        """What tells these images from others, in whatever order they come."""
        moments = self.moments(by_feature=False)
        return (
            f"{self.n_images} of shape {self.shape} in {self.n_batches} batches, of mean "
            f"{moments.mean:.6g} and variance {moments.variance:.6g}"
        )

    def moments(self, *, by_feature: bool) -> Moments:
        """Mean and variance of the observed values of all processes, by feature or over all."""
        total = Moments.none()
        for moments in _distributed.gather(self._moments):
            total = total.add(moments)
        return total if by_feature else total.pooled()

    def sample(
        self, n_images: int, rng: np.random.RandomState, *, weighted: bool = False
    ) -> Images:
        """Some images of all processes, of those that were kept."""
        return self._kept.sample(n_images, rng, weighted=weighted)

    def epochs(
        self,
        rng: np.random.RandomState,
        batch_size: int,
        validation_fraction: float | None,
        like: Tensor,
    ) -> Epochs:
        """Epochs of the batches as they come; those of a dataset in random order."""
        if validation_fraction is not None:
            raise ValueError(
                "validation_fraction needs images in an array, of which some can be held out; X "
                "comes in batches. Choose validation_fraction=None."
            )

        def batches() -> Iterator[Batch]:
            n_batches = 0
            for chunk in self._chunks(shuffle=rng):
                n_batches += 1
                images = self._read(chunk, False)
                n_together = sum(_distributed.gather(len(images)))
                batch = images.batch(np.arange(len(images)), like)
                yield batch._replace(n_together=n_together)
            if n_batches != self.n_batches:
                raise ValueError(
                    f"X must have as many batches in every epoch as when it was first gone "
                    f"through, {self.n_batches}; got {n_batches}. Let its __iter__ start anew."
                )

        return Epochs(self.n_batches, batches, None)

    def _chunks(self, shuffle: np.random.RandomState | None) -> Iterator[Any]:
        source = self._source
        if isinstance(source, Dataset):
            size = self._batch_size
            if isinstance(source, Sized):
                # Of equal size, so that the last few images weigh no more than others.
                size = max(1, -(-len(source) // max(1, -(-len(source) // size))))
            ordered = shuffle is None or isinstance(source, IterableDataset)
            source = DataLoader(
                source,
                size,
                shuffle=not ordered,
                # One of its own, or it would draw from the global one.
                generator=make_generator(0 if shuffle is None else shuffle),
            )
        for chunk in source:
            yield chunk[0] if isinstance(chunk, tuple | list) else chunk


def refuse_stream(X: object, method: str, others: str) -> None:
    """Raise an error if X comes in batches, whose order may change, before anything is trained."""
    if is_stream(X):
        kind = type(X).__name__
        raise TypeError(f"{method} needs an array; got {kind}. Call {others}.")


def _keep(kept: NDArray[Any], rows: NDArray[Any], n_seen: int, rng: np.random.RandomState) -> None:
    """Let some rows take places among those kept, so that all seen have the same chance.

    References
    ----------
    J. S. Vitter: Random Sampling with a Reservoir. ACM TOMS 11(1), 1985, algorithm R.
    """
    number = n_seen + np.arange(len(rows))
    place = np.where(number < len(kept), number, (rng.rand(len(rows)) * (number + 1)).astype(int))
    chosen = place < len(kept)
    kept[place[chosen]] = rows[chosen]

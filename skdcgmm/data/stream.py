"""Images that come in batches, again in every epoch, and are never together in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from skdcgmm.data.images import Batch, Epochs, Images, Moments, as_array, sample_size


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
    n_batches : int
        Of an epoch.
    shape, row_shape, dtype, integers
        As of `Images`.
    complete : bool
        Whether no pixel was missing when the source was gone through.

    Raises
    ------
    ValueError
        If the source holds no images, or can be gone through only once.
    """

    def __init__(
        self, source: Any, read: Callable[[Any, bool], Images], batch_size: int, rng: RandomState
    ) -> None:
        if isinstance(source, Iterator):
            raise ValueError(
                "X must start anew whenever it is iterated over, once an epoch; got "
                f"{type(source).__name__}, which ends after one pass. Give a DataLoader or an "
                "object whose __iter__ makes a new iterator, or call partial_fit with each batch."
            )
        self._source, self._read, self._batch_size = source, read, batch_size
        self.complete = True
        self.n_batches = self._n_images = 0
        # Of its own, since processes may keep different numbers of images.
        draws = np.random.RandomState(rng.randint(np.iinfo(np.int32).max))
        kept: Images | None = None
        for chunk in self._chunks(shuffle=None):
            images = read(chunk, self.n_batches == 0)
            if kept is None:
                shape = (sample_size(images.shape), images.rows.shape[1])
                rows = np.empty(shape, images.rows.dtype)
                kept = replace(images, rows=rows)
                self._moments = images.moments()
            else:
                self._moments = self._moments.add(images.moments())
            if images.rows.dtype != kept.rows.dtype:
                raise ValueError(
                    f"X must have batches of one type; got {kept.rows.dtype} and "
                    f"{images.rows.dtype}. Convert them."
                )
            _keep(kept.rows, images.rows, self._n_images, draws)
            self.complete = self.complete and images.complete
            self.n_batches += 1
            self._n_images += len(images)
        if kept is None:
            raise ValueError("X must have batches of images; got none.")
        self._kept = replace(kept, rows=kept.rows[: self._n_images], complete=self.complete)
        self.shape, self.row_shape, self.dtype = kept.shape, kept.row_shape, kept.dtype
        self.integers = kept.integers

    def __len__(self) -> int:
        return self._n_images

    @property
    def identity(self) -> str:
        """What tells these images from others, in whatever order they come."""
        moments = self._moments
        return (
            f"{len(self)} of shape {self.shape} in {self.n_batches} batches, of mean "
            f"{moments.mean.mean():.6g} and variance {moments.variance.mean():.6g}"
        )

    def moments(self) -> Moments:
        """Mean and variance of the observed values, by feature."""
        return self._moments

    def sample(self, n_images: int, rng: RandomState, *, weighted: bool = False) -> Images:
        """Some images, of those that were kept."""
        return self._kept.sample(n_images, rng, weighted=weighted)

    def hold_out(self, rng: RandomState, share: float | None) -> "Stream":
        """The images, of which none can be held out."""
        if share is not None:
            raise ValueError(
                "validation_fraction needs images in an array, of which some can be held out; X "
                "comes in batches. Choose validation_fraction=None."
            )
        return self

    def epochs(
        self,
        rng: RandomState,
        batch_size: int,
        like: Tensor,
        total: Callable[[int], int] = int,
    ) -> Epochs:
        """Epochs of the batches as they come; those of a dataset in random order."""

        def batches() -> Iterator[Batch]:
            n_batches = 0
            for chunk in self._chunks(shuffle=rng):
                n_batches += 1
                yield self._read(chunk, False).batch(slice(None), like)
            if n_batches != self.n_batches:
                raise ValueError(
                    f"X must have as many batches in every epoch as when it was first gone "
                    f"through, {self.n_batches}; got {n_batches}. Let its __iter__ start anew."
                )

        return Epochs(self.n_batches, batches)

    def _chunks(self, shuffle: RandomState | None) -> Iterator[Any]:
        if isinstance(self._source, Dataset):
            parts = _parts(self._source, self._batch_size, shuffle)
            yield from (_stacked([_first(item) for item in part]) for part in parts)
        else:
            yield from (_first(chunk) for chunk in _collated(self._source))


def _first(item: Any) -> Any:
    """The images of a batch, or the image of an item, which may come with labels."""
    return item[0] if isinstance(item, tuple | list) and item else item


def _parts(source: Dataset[Any], size: int, shuffle: RandomState | None) -> Iterator[list[Any]]:
    """Items of a dataset, some at a time; in random order if they can be drawn."""
    if isinstance(source, IterableDataset):
        items = iter(source)
        while part := list(islice(items, size)):
            yield part
        return
    if not isinstance(source, Sized):
        raise TypeError(
            f"X must have a length, or be an IterableDataset; got {type(source).__name__}. Give it "
            "the method __len__."
        )
    order = np.arange(len(source)) if shuffle is None else shuffle.permutation(len(source))
    # Of equal size, so that the last few images weigh no more than others.
    several = getattr(source, "__getitems__", None)  # many at once, as a loader would
    for chosen in np.array_split(order, max(1, -(-len(order) // size))):
        if places := chosen.tolist():
            yield list(several(places)) if several else [source[place] for place in places]


def _stacked(images: list[Any]) -> Any:
    """Images as one array.

    Raises
    ------
    TypeError, ValueError
        If they are pictures or other objects, or of several sizes.
    """
    for image in images:
        if not isinstance(image, np.ndarray | np.generic | Tensor):
            raise TypeError(
                "X must have items that are arrays or tensors of an image, or tuples that begin "
                f"with one; got {type(image).__name__}. Convert them, as by np.asarray or by "
                "torchvision.transforms.ToTensor()."
            )
    arrays = [as_array(image, "X") for image in images]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise ValueError(
            f"X must have images of one size; got {shapes[0]} and {shapes[-1]}. Resize or crop "
            "them."
        )
    return np.stack(arrays)


def _collated(source: Iterable[Any]) -> Iterator[Any]:
    """What an iterable holds; what a loader cannot put into one batch is an error that says so."""
    if not isinstance(source, DataLoader):
        yield from source
        return
    batches = iter(source)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"X must give batches of images that are arrays or tensors of one size; its loader "
                f"ended with: {error}. Resize or convert them in its dataset, as by "
                "torchvision.transforms."
            ) from error
        yield batch


def _keep(kept: NDArray[Any], rows: NDArray[Any], n_seen: int, rng: RandomState) -> None:
    """Let some rows take places among those kept, so that all seen have the same chance.

    References
    ----------
    J. S. Vitter: Random Sampling with a Reservoir. ACM TOMS 11(1), 1985, algorithm R.
    """
    number = n_seen + np.arange(len(rows))
    place = np.where(number < len(kept), number, (rng.rand(len(rows)) * (number + 1)).astype(int))
    chosen = place < len(kept)
    kept[place[chosen]] = rows[chosen]

"""Labels of few images spread to their neighbours."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from skdcgmm.data import Images, IntArray, sample_size
from skdcgmm.model import computing

# Neighbours of an image, and how fast their weight falls with distance.
_N_NEIGHBOURS, _DECAY = 7, 4.0
# Neighbours by which clusters are merged.
_N_NEAR = 10
# Share of a label that comes from neighbours in a step, and number of steps.
_SPREAD, _N_STEPS = 0.99, 200
# Number of images whose distances to all others are held at a time.
_BLOCK = 1000
_TINY = 1e-9
# Largest number of values in the images among which labels spread.
_MAX_VALUES = 2**25


def spread_labels(images: Images, rng: RandomState, device: torch.device) -> Images:
    """The images, more of them with a class: some without get that of images like them."""
    assert images.y is not None
    if (images.y >= 0).all() or not (images.y >= 0).any():
        return images
    order = rng.permutation(len(images))
    order = order[np.argsort(images.y[order] < 0, kind="stable")]
    order = order[: min(sample_size(images.shape), _MAX_VALUES // images.rows.shape[1])]
    like, y = torch.zeros((), dtype=images.dtype, device=device), images.y.copy()
    with computing(device):
        y[order] = spread(images.tensor(order, like), y[order])
    return replace(images, y=y)


def spread(x: Tensor, y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give images without a label that of the images they resemble.

    Labels spread over the graph of nearest neighbours, where images resemble each other if one,
    moved by at most a pixel, correlates with the other; plain features if they are near. All
    classes spread alike, however many labels they have: labels are taken to be chosen class by
    class, and not to tell how frequent classes are.

    Parameters
    ----------
    x : Tensor of shape (N, C, H, W)
        NaN where missing.
    y : ndarray of int of shape (N,)
        Number of the class of each image, -1 where unknown; some are known.

    Returns
    -------
    ndarray of int of shape (N,)
        The known ones as they are; -1 for images that no label reaches.

    References
    ----------
    D. Zhou et al.: Learning with local and global consistency. NIPS 2003.

    L. Zelnik-Manor, P. Perona: Self-tuning spectral clustering. NIPS 2004, for the weights.
    """
    if (y >= 0).all() or len(y) == 1:
        return y
    graph = _graph(*_neighbours(x, min(_N_NEIGHBOURS, len(y) - 1)))
    known = (y[:, None] == np.arange(y.max() + 1)).astype(np.float64)  # (N, n_classes)
    mass = known.copy()
    for _ in range(_N_STEPS):
        mass = graph @ mass
        mass *= _SPREAD
        mass += known
    # Mass also tells where in the graph the labels of a class happen to lie.
    share = mass / np.maximum(mass.sum(0), _TINY)  # (N, n_classes)
    spread = np.where(share.any(1), share.argmax(1), -1)
    return np.where(y >= 0, y, spread)


def _neighbours(x: Tensor, n_neighbours: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Squared distances and indices of the nearest other images, both (N, n_neighbours)."""
    x = torch.where(x.isnan(), x.nanmean(0), x).nan_to_num()
    still = _comparable(x)  # (N, D)
    distances, indices = [], []
    for start in range(0, len(x), _BLOCK):
        block = still[start : start + _BLOCK]  # (M, D)
        squared = torch.cdist(block, still)  # (M, N)
        for view in _moved(x):
            squared = torch.minimum(squared, torch.cdist(block, _comparable(view)))
        squared.square_()
        own = torch.arange(len(block), device=x.device)
        squared[own, own + start] = torch.inf
        nearest = squared.topk(n_neighbours, largest=False)
        distances.append(nearest.values.cpu().numpy())
        indices.append(nearest.indices.cpu().numpy())
    return np.concatenate(distances), np.concatenate(indices)


def neighbours(images: Images, like: Tensor) -> IntArray:
    """Indices of the nearest other images, (N, n), of blurred ones, by their correlation."""
    n_neighbours = min(_N_NEAR, len(images) - 1)
    with computing(like.device):
        x = images.tensor(slice(None), like)
        x = torch.where(x.isnan(), x.nanmean(0), x).nan_to_num()
        still = _comparable(_blurred(_blurred(x)))  # (N, D)
        return np.concatenate(
            [_nearest(still, start, n_neighbours) for start in range(0, len(x), _BLOCK)]
        )


def _nearest(rows: Tensor, start: int, n_neighbours: int) -> IntArray:
    """Indices of the nearest other rows of a block of rows of unit length, (M, n)."""
    products = rows[start : start + _BLOCK] @ rows.T  # (M, N)
    own = torch.arange(len(products), device=rows.device)
    products[own, own + start] = -torch.inf
    return cast("IntArray", products.topk(n_neighbours).indices.cpu().numpy())


def _blurred(x: Tensor) -> Tensor:
    """Images (N, C, H, W), each pixel averaged with those beside it, the nearer the more."""
    for axis in (2, 3):
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        after = torch.cat([x.narrow(axis, 1, x.shape[axis] - 1), x.narrow(axis, -1, 1)], axis)
        x = (before + 2 * x + after) / 4
    return x


def _moved(x: Tensor) -> Iterator[Tensor]:
    """Images (N, C, H, W) moved by a pixel each way; values at the border stay there."""
    height, width = x.shape[2:]
    rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
    for step in (-1, 1):
        if height > 1:
            yield x[:, :, (rows + step).clamp(0, height - 1)]
        if width > 1:
            yield x[..., (columns + step).clamp(0, width - 1)]


def _comparable(x: Tensor) -> Tensor:
    """Images (N, C, H, W) as vectors (N, D), whose distances tell their correlation.

    Plain features are standardised one by one instead.
    """
    rows = x.flatten(1)
    plain = x.shape[2:] == (1, 1)
    axis = 0 if plain else 1
    rows = rows - rows.mean(axis, keepdim=True)
    # Of numbers near 1, whatever the units: squares would leave single precision.
    rows = rows / _positive(rows.abs().amax(axis, keepdim=True))
    squares = rows.square()
    of_all = squares.mean(0) if plain else squares.sum(1, keepdim=True)
    return rows / _positive(of_all.sqrt())


def _positive(x: Tensor) -> Tensor:
    """Numbers to divide by: 1 in place of 0."""
    return torch.where(x > 0, x, 1)


def _graph(distances: NDArray[Any], indices: NDArray[Any]) -> sparse.csr_array:
    """Symmetric graph of neighbours, (N, N), scaled by the roots of the degrees."""
    n_images, n_neighbours = indices.shape
    local = np.maximum(distances[:, -1].astype(np.float64), _TINY)  # (N,)
    weights = np.exp(-_DECAY * distances / np.sqrt(local[:, None] * local[indices]))
    rows = np.repeat(np.arange(n_images), n_neighbours)
    directed = sparse.csr_array((weights.ravel(), (rows, indices.ravel())), (n_images, n_images))
    graph = directed.maximum(directed.T)
    roots = np.maximum(graph.sum(1), _TINY) ** -0.5  # (N,)
    return sparse.diags_array(roots) @ graph @ sparse.diags_array(roots)

"""Mixtures over all windows of images, wherever they lie, in several resolutions.

The first layer of a stack looks where its windows tile, and knows what belongs at each place. These
look at every offset, share one mixture of Gaussians with full covariances, and so see what is wrong
in a small place on images that have no fixed places: boards, textures, parts that lie anyhow.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from skdcgmm.model.windows import Shape, Size

# Components, and least number of windows side by side that each of the D^2 numbers of one is
# learnt from, as a multiple of D.
N_COMPONENTS, _WINDOWS_EACH = 32, 5
# Variance added to each pixel of a window, as a share of the mean variance of pixels.
_FLOOR = 0.01
# Windows of a step, passes of k-means before the first, and exponent of the rate of the steps.
N_WINDOWS, _N_MEANS, _DECAY = 5000, 5, 0.7
# Positions along a side from which windows need not lie at every offset.
_DENSE = 14
# Whitened values that stay in the cache of a processor, and of a step on another device.
_CACHED, _AT_ONCE = 2**18, 2**26
_LOG_2_PI = math.log(2 * math.pi)


class Sums(NamedTuple):
    """Mean sufficient statistics of a mixture of Gaussians.

    Attributes
    ----------
    weights : Tensor of shape (K,)
    first : Tensor of shape (K, D)
    second : Tensor of shape (K, D, D)
    """

    weights: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, v: Tensor, responsibilities: Tensor) -> "Sums":
        """Statistics of values (N, D) with responsibilities (N, K)."""
        shares = responsibilities / max(1, len(v))  # (N, K)
        second = torch.stack([(v * share[:, None]).T @ v for share in shares.T])  # (K, D, D)
        return cls(shares.sum(0), shares.T @ v, second)

    def towards(self, other: "Sums", rate: float) -> "Sums":
        """A step from these statistics to others."""
        pairs = zip(self, other, strict=True)
        return Sums(*(torch.lerp(one, another, rate) for one, another in pairs))


class GaussianMixture(NamedTuple):
    """A mixture of Gaussians with full covariances, at given numbers.

    Attributes
    ----------
    log_weights : Tensor of shape (K,)
    means : Tensor of shape (K, D)
    whitening : Tensor of shape (K, D, D)
        Lower triangular; its square is the precision.
    """

    log_weights: Tensor
    means: Tensor
    whitening: Tensor

    @classmethod
    def of(cls, sums: Sums, floor: float) -> "GaussianMixture":
        """The likeliest mixture by statistics, with a variance of `floor` added to each value."""
        weights = sums.weights.double().clamp_min(1e-12)  # (K,)
        means = sums.first.double() / weights[:, None]  # (K, D)
        covariances = sums.second.double() / weights[:, None, None]  # (K, D, D)
        covariances = covariances - means[:, :, None] * means[:, None]  # (K, D, D)
        eye = torch.eye(means.shape[1], dtype=means.dtype, device=means.device)  # (D, D)
        roots = torch.linalg.cholesky(covariances + floor * eye)  # (K, D, D)
        whitening = torch.linalg.solve_triangular(roots, eye.expand_as(roots), upper=False)
        like = sums.weights
        log_weights = (weights / weights.sum()).log()  # (K,)
        return cls(log_weights.to(like), means.to(like), whitening.to(like))

    def scores(self, v: Tensor) -> Tensor:
        """Log of weight times density of each component, (N, K), of values (N, D)."""
        n_components, n_values = self.means.shape
        volume = self.whitening.diagonal(dim1=1, dim2=2).log().sum(1)  # (K,)
        constant = self.log_weights + volume - 0.5 * n_values * _LOG_2_PI  # (K,)
        whitened_means = (self.whitening @ self.means[..., None]).flatten()  # (K * D,)
        squares = v.new_empty(len(v), n_components)  # (N, K)
        n_numbers = _CACHED if v.device.type == "cpu" else _AT_ONCE
        n_at_once = max(1, n_numbers // len(whitened_means))
        for first in range(0, len(v), n_at_once):
            part = slice(first, first + n_at_once)
            whitened = torch.addmm(-whitened_means, v[part], self.whitening.flatten(0, 1).T)
            torch.sum(whitened.square_().view(-1, n_components, n_values), 2, out=squares[part])
        return constant - 0.5 * squares

    def log_prob(self, v: Tensor) -> Tensor:
        """Log density of values (N, D), (N,)."""
        return self.scores(v).logsumexp(1)


def resolutions(x: Tensor, kernel: Size) -> Iterator[Tensor]:
    """Images (N, C, H, W), and their halves in size while two windows fit side by side.

    What larger windows would see is the whole, of which they could not say where it is abnormal.
    """
    yield x
    while x.shape[2] >= 4 * kernel[0] and x.shape[3] >= 4 * kernel[1]:
        x = functional.avg_pool2d(x, 2)  # (N, C, H // 2, W // 2)
        yield x


def offsets(side: int, kernel: int, stride: int) -> Tensor:
    """First pixels of windows along a side, of which the last ends at the border."""
    starts = torch.arange(0, side - kernel + 1, stride, device="cpu")
    last = torch.tensor([side - kernel], device="cpu")
    return starts if int(starts[-1]) == side - kernel else torch.cat([starts, last])


def usual_stride(size: Size, kernel: Size) -> Size:
    """Strides at which windows of that kernel meet on images of a size: 1, on larger ones more."""
    strides = (max(1, min(side // _DENSE, k // 2)) for side, k in zip(size, kernel, strict=True))
    rows, columns = strides
    return rows, columns


def windows_at(x: Tensor, rows: Tensor, columns: Tensor, kernel: Size) -> Tensor:
    """Windows of images (N, C, H, W) at each pair of first rows and columns, (N, R, Q, D)."""
    down = rows[:, None] + torch.arange(kernel[0], device="cpu")  # (R, h)
    along = columns[:, None] + torch.arange(kernel[1], device="cpu")  # (Q, w)
    some = x[:, :, down.to(x.device)][..., along.to(x.device)]  # (N, C, R, h, Q, w)
    return some.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (N, R, Q, C * h * w)


def random_windows(x: Tensor, kernel: Size, n_windows: int, generator: torch.Generator) -> Tensor:
    """Complete windows (M, D) at random places of images (N, C, H, W)."""

    def draw(high: int) -> Tensor:
        numbers = torch.randint(high, (n_windows,), generator=generator, device="cpu")
        return numbers.to(x.device)

    image = draw(len(x))
    row, column = draw(x.shape[2] - kernel[0] + 1), draw(x.shape[3] - kernel[1] + 1)
    down = row[:, None, None] + torch.arange(kernel[0], device=x.device)[:, None]  # (M, h, 1)
    along = column[:, None, None] + torch.arange(kernel[1], device=x.device)  # (M, 1, w)
    v = x[image[:, None, None], :, down, along]  # (M, h, w, C)
    v = v.permute(0, 3, 1, 2).flatten(1)  # (M, D)
    return v[~v.isnan().any(1)]


class Resolution(NamedTuple):
    """A mixture of the windows of images in one resolution, and what goes on learning it.

    Attributes
    ----------
    sums : Sums
    floor : float
        Variance added to each pixel.
    """

    sums: Sums
    floor: float

    @classmethod
    def start(cls, v: Tensor, n_components: int, generator: torch.Generator) -> "Resolution":
        """Start from some windows (N, D), by a few passes of k-means."""
        n_components = min(n_components, len(v))
        order = torch.randperm(len(v), generator=generator, device="cpu").to(v.device)
        centers = v[order[:n_components]]  # (K, D)
        for _ in range(_N_MEANS):
            nearest = (centers.square().sum(1) - 2 * v @ centers.T).argmin(1)  # (N,)
            chosen = functional.one_hot(nearest, n_components).to(v)  # (N, K)
            centers = (chosen.T @ v) / chosen.sum(0).clamp_min(1)[:, None]  # (K, D)
        floor = _FLOOR * float(v.double().var(0, correction=0).mean())
        return cls(Sums.of(v, chosen), floor if floor > 0 else _FLOOR)

    @property
    def mixture(self) -> GaussianMixture:
        """The mixture at the present numbers."""
        return GaussianMixture.of(self.sums, self.floor)

    def learn(self, v: Tensor, rate: float) -> "Resolution":
        """A step of expectation maximisation from windows (N, D)."""
        if not len(v):
            return self
        responsibilities = self.mixture.scores(v).softmax(1)  # (N, K)
        return self._replace(sums=self.sums.towards(Sums.of(v, responsibilities), rate))


class Patches(NamedTuple):
    """Mixtures of the windows of images, one for each resolution.

    Attributes
    ----------
    kernel, stride : (height, width)
        Of windows; the stride is that in full resolution.
    center : Tensor of shape (C, 1, 1)
        Mean of the channels.
    scale : float
        Standard deviation of pixels about these.
    parts : list of Resolution
        From the full resolution on; none before the first step.
    n_steps : int
        Steps that have been learnt from.

    References
    ----------
    O. Cappé, E. Moulines: On-line Expectation-Maximization Algorithm for Latent Data Models. JRSS B
    71(3), 2009, of which this is the variant for mini-batches.
    """

    kernel: Size
    stride: Size
    center: Tensor
    scale: float
    parts: list[Resolution]
    n_steps: int

    @classmethod
    def of(cls, x: Tensor, kernel: Size, stride: Size) -> "Patches":
        """Windows in the units of some images (N, C, H, W), nothing learnt yet."""
        center = x.nanmean((0, 2, 3)).nan_to_num()[:, None, None]  # (C, 1, 1)
        scale = float((x - center).double().square().nanmean().sqrt())
        return cls(kernel, stride, center, scale if scale > 0 else 1.0, [], 0)

    def learn(self, x: Tensor, n_pixels: int, generator: torch.Generator) -> "Patches":
        """A step of expectation maximisation from windows of images (N, C, H, W).

        `n_pixels` is the number of pixels of all images that there are to learn from.
        """
        rate = (self.n_steps + 1) ** -_DECAY
        parts = list(self.parts)
        for level, some in enumerate(resolutions(self._in_units(x), self.kernel)):
            v = random_windows(some, self.kernel, N_WINDOWS, generator)  # (M, D)
            if level < len(parts):
                parts[level] = parts[level].learn(v, rate)
            elif level == len(parts) and len(v):
                n_apart = n_pixels // (4**level * math.prod(self.kernel))
                n_components = n_apart // (_WINDOWS_EACH * v.shape[1])
                n_components = max(1, min(N_COMPONENTS, n_components))
                parts.append(Resolution.start(v, n_components, generator))
        return self._replace(parts=parts, n_steps=self.n_steps + 1)

    def _in_units(self, x: Tensor) -> Tensor:
        return (x - self.center.to(x)) / self.scale

    def numbers_per_image(self, shape: Shape) -> int:
        """Numbers that `log_prob` holds for an image (C, H, W), an upper estimate."""
        channels, height, width = shape
        n_windows = math.prod(
            -(-side // stride) for side, stride in zip((height, width), self.stride, strict=True)
        )
        return n_windows * (5 * channels * math.prod(self.kernel) + 2 * N_COMPONENTS)

    def log_prob(self, x: Tensor) -> list[Tensor]:
        """Log density of the windows of images (N, C, H, W), for each resolution (N, R, Q).

        NaN where a pixel of the window is missing, -inf where values are beyond all.
        """
        found = []
        pairs = zip(resolutions(self._in_units(x), self.kernel), self.parts, strict=False)
        for level, (some, part) in enumerate(pairs):
            places = self._places((some.shape[2], some.shape[3]), level)
            v = windows_at(some, *places, self.kernel)  # (N, R, Q, D)
            mixture = GaussianMixture(*(number.to(x) for number in part.mixture))
            log_prob = mixture.log_prob(v.flatten(0, 2)).view(v.shape[:3])  # (N, R, Q)
            log_prob = log_prob.nan_to_num(nan=-math.inf, neginf=-math.inf)  # (N, R, Q)
            found.append(torch.where(v.isnan().any(3), math.nan, log_prob))
        return found

    def _places(self, size: Size, level: int) -> tuple[Tensor, Tensor]:
        """First rows and columns of the windows of images of a size, in some resolution."""
        rows, columns = (
            offsets(side, k, -(-stride // 2**level))
            for side, k, stride in zip(size, self.kernel, self.stride, strict=True)
        )
        return rows, columns

    def lowest(self, size: Size, values: list[Tensor]) -> Tensor:
        """The lowest value of all windows that see a pixel of images of a size, (N, H, W).

        Parameters
        ----------
        size : (height, width)
        values : list of Tensor of shape (N, R, Q)
            Of windows, as of `log_prob`; those that are NaN do not count. NaN where no window is.
        """
        lowest = values[0].new_full((len(values[0]), *size), math.inf)  # (N, H, W)
        for level, of_windows in enumerate(values):
            reduced = (size[0] // 2**level, size[1] // 2**level)
            rows, columns = (each.to(lowest.device) for each in self._places(reduced, level))
            seen = lowest.new_full((len(lowest), *reduced), math.inf)  # (N, h, w)
            known = torch.where(of_windows.isnan(), math.inf, of_windows)  # (N, R, Q)
            for down, along in product(*map(range, self.kernel)):
                at = (slice(None), (rows + down)[:, None], columns + along)
                seen[at] = torch.minimum(seen[at], known)
            # Pixels that a halved image has no room for are like those beside them.
            row = (torch.arange(size[0], device=seen.device) // 2**level).clamp_max(reduced[0] - 1)
            column = (torch.arange(size[1], device=seen.device) // 2**level).clamp_max(
                reduced[1] - 1
            )
            lowest = torch.minimum(lowest, seen[:, row[:, None], column])  # (N, H, W)
        return torch.where(lowest == math.inf, math.nan, lowest)

"""Kinds of pixels: what the components of a first layer emit into their windows.

A kind is one file: a module of raw parameters (`Pixels`), and the density at given numbers
(`PixelDensity`) that calling it gives. `skdcgmm.model.specs.KINDS` names them.
"""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from sklearn.cluster import KMeans, kmeans_plusplus
from torch import Tensor, nn

from skdcgmm.model.windows import Size, Windows

# Share of the pixels of a channel, and number, beyond which its lowest or highest value is an end.
_END_SHARE, _END_NUMBER = 0.01, 2
# Share of the average window's chance to be picked that every window has.
_PICK_FLOOR = 0.01
# Steps of k-means from which components of plain features start.
_N_MEANS_STEPS = 10


class PixelDensity(ABC):
    """Density of the windows of images under components, at given numbers.

    Attributes
    ----------
    windows : Windows
    """

    windows: Windows

    @abstractmethod
    def log_prob(self, x: Tensor, complete: bool = False) -> Tensor:
        """Log density of each window of images by component, in units of the layer.

        Parameters
        ----------
        x : Tensor of shape (N, C, H, W)
            Missing values are NaN: they are marginalised.
        complete : bool
            Promise that no value is missing, which spares a look at all of them.

        Returns
        -------
        Tensor of shape (N, K, rows, columns)
            Images come last in memory: what follows works on the components of many at once.
        """

    @abstractmethod
    def log_volume(self, x: Tensor, complete: bool = False) -> Tensor:
        """What the log density of each window loses in units of the images.

        (N, rows, columns), or (1, rows, columns) if it is the same for all images.
        """

    @abstractmethod
    def sample(
        self, components: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Images (N, C, H, W) drawn given the component (N, rows, columns) of each window."""

    @abstractmethod
    def log_bins(self, levels: Tensor) -> Tensor:
        """Log probability of each level (V,) that a value may round to, (P, K, D, V)."""

    @abstractmethod
    def mean(self, weights: Tensor) -> Tensor:
        """Mean images (N, C, H, W) given weights (N, K, rows, columns) of the components.

        Of the components only: values are taken to be independent of each other given those.
        """


class Pixels(nn.Module, ABC):
    """Raw parameters of a kind of pixels; calling them gives the density.

    Parameters
    ----------
    windows : Windows
    n_components : int
    positions : (rows, columns)
        Of windows that have a mixture of their own; (1, 1) if all share one.

    Attributes
    ----------
    scale : Tensor of shape () or (C, 1, 1)
        How much of the images is one in the units of the layer.
    """

    scale: Tensor

    def __init__(self, windows: Windows, n_components: int, positions: Size) -> None:
        super().__init__()
        self.windows, self.n_components, self.positions = windows, n_components, positions

    @abstractmethod
    def forward(self) -> PixelDensity:
        """The density at the present parameters."""

    @abstractmethod
    def set_units(
        self, count: Tensor, mean: Tensor, variance: Tensor, x: Tensor, reg_covar: float | None
    ) -> None:
        """Bring images to the units of the layer, and bound its parameters.

        Parameters
        ----------
        count, mean, variance : Tensor of shape (C, H, W), in double precision
            Of the observed values of the images to train on.
        x : Tensor of shape (N, C, H, W)
            Some of these images.
        reg_covar : float or None
            Least variance in units of the images; None chooses.
        """

    @abstractmethod
    def start(
        self, x: Tensor, generator: torch.Generator, chosen: Tensor | None = None
    ) -> Tensor | None:
        """Start at random, given some images (N, C, H, W)."""

    def anneal(self, done: float) -> None:
        """Change, given the share of training that is done, what is not learnt."""

    @property
    @abstractmethod
    def n_parameters(self) -> int:
        """Free parameters; those of values beyond the border do not count."""

    @abstractmethod
    def arrays(self) -> dict[str, Tensor]:
        """What users see, by name, in units of the images.

        The shape is (P, K, D), or (P, K) for one number a component, with the D values of a window
        in the order (channel, row, column).
        """

    @abstractmethod
    def assign(self, name: str, values: Tensor) -> None:
        """Set one of the `arrays`."""


def choose_windows(
    windows: Tensor, n_components: int, grid: Size, kernel: Size, generator: torch.Generator
) -> Tensor:
    """Numbers of the windows (P, M, D) of each mixture that components start from, (P, K).

    Parts of the input are drawn with probability proportional to the squared distance from the
    mean window: most windows at a border are blank, and components that start there would never
    leave. Whole images are drawn evenly, since far ones may be outliers; inputs of one position,
    such as what is above plain features, by k-means++: few of them leave little room to move past
    another component.
    """
    whole = grid == (1, 1)
    if whole and kernel == (1, 1):
        rows = windows[0].cpu().numpy()
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        _, chosen = kmeans_plusplus(rows, min(n_components, len(rows)), random_state=seed)
        return torch.from_numpy(np.resize(chosen, n_components))[None].to(windows.device)
    distance = (windows - windows.mean(1, keepdim=True)).square().sum(2)  # (P, M)
    weights = distance + _PICK_FLOOR * distance.mean(1, keepdim=True) + 1e-12  # (P, M)
    weights = torch.ones_like(weights) if whole else weights
    # Gumbel noise draws without replacement; `multinomial` allows only 2^24 candidates.
    uniform = torch.rand(
        weights.shape, generator=generator, dtype=torch.float32, device=generator.device
    )
    noise = -(-uniform.clamp_min(1e-30).log()).log()  # (P, M)
    order = (weights.log() + noise.to(weights)).argsort(1, descending=True)  # (P, M)
    # More components than windows, which weights of zero may leave, share them.
    turn = torch.arange(n_components, device=order.device) % order.shape[1]  # (K,)
    return order[:, turn]


def few_centres(rows: Tensor, n_components: int, generator: torch.Generator) -> Tensor:
    """Centres of plain features (N, D) to start components from, (1, K, D).

    By k-means++ and a few steps of k-means. In many dimensions, a row is as far from others of its
    kind as from all else, and components that start from single rows stay where they are.
    """
    values = np.unique(rows.cpu().numpy(), axis=0)  # so that rows given twice weigh no more
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    n_centres = min(n_components, len(values))
    means = KMeans(n_centres, n_init=1, max_iter=_N_MEANS_STEPS, random_state=seed)
    centres = means.fit(values).cluster_centers_
    chosen = centres[np.resize(np.arange(n_centres), n_components)]
    return torch.from_numpy(chosen).to(rows)[None]


def take_windows(windows: Tensor, chosen: Tensor) -> Tensor:
    """The windows (P, K, D) of each mixture whose numbers (P, K) are given, of all (P, M, D)."""
    return windows.gather(1, chosen[..., None].expand(-1, -1, windows.shape[2]))


def n_inside(windows: Windows, positions: Size) -> float:
    """Values of a window that are inside the border, averaged over separate mixtures."""
    if math.prod(positions) == 1:
        return windows.n_values
    return windows.input_shape[0] * windows.mean_area


def no_ends(n_channels: int) -> Tensor:
    """Ends of channels, (2, C, 1, 1), whose values have none: infinite."""
    ends = torch.tensor([-math.inf, math.inf], device="cpu")
    return ends[:, None, None, None].repeat(1, n_channels, 1, 1)


def find_ends(x: Tensor) -> Tensor:
    """Lowest and highest value of each channel of images, (2, C, 1, 1), if many have just that.

    Infinite where a hundredth of the values, or less, are at an end.
    """
    values = x.movedim(1, 0).flatten(1)  # (C, N * H * W)
    n_seen = (~values.isnan()).sum(1)  # (C,)
    lowest = values.nan_to_num(nan=math.inf).amin(1)  # (C,)
    highest = values.nan_to_num(nan=-math.inf).amax(1)
    enough = (_END_SHARE * n_seen).clamp_min(_END_NUMBER)  # (C,)
    many = [(values == end[:, None]).sum(1) > enough for end in (lowest, highest)]
    ends = [torch.where(many[0], lowest, -math.inf), torch.where(many[1], highest, math.inf)]
    return torch.stack(ends)[..., None, None]


def find_steps(x: Tensor) -> Tensor:
    """Smallest difference between two values of each channel of images, (C, 1, 1); 0 of none."""
    steps = []
    for values in x.movedim(1, 0).flatten(1):
        differences = values[~values.isnan()].unique().diff()
        steps.append(differences.min() if len(differences) else differences.new_zeros(()))
    return torch.stack(steps)[:, None, None]

"""The raw parameters of a stack; calling it gives its density at the present numbers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.nn import functional

from skdcgmm.model import tables
from skdcgmm.model.pixels import (
    Pixels,
    choose_windows,
    find_ends,
    n_inside,
    no_ends,
    take_windows,
)
from skdcgmm.model.pixels.atoms import Atoms
from skdcgmm.model.pixels.pyramid import Details, Pyramid, Units, floors
from skdcgmm.model.specs import KINDS, Layer, lay_out
from skdcgmm.model.tree import Level, Mixtures, Tree
from skdcgmm.model.windows import Shape, Size, Windows

# Share of the average table in tables that start as responsibilities of a window.
_START_AVERAGE = 0.2
_MIN_START_PROBABILITY = 1e-4
# Error of a detail by rounding, in units of the last place of the largest.
_ROUNDING = 16
# Images whose details are looked at together.
_SPLIT = 500
# Weight of a component that has been emptied: small enough not to matter, large enough to have a
# logarithm.
MIN_WEIGHT = 1e-12


class BaseStack(nn.Module, ABC):
    """Named layers, and the parameters of what the components of each mixture emit.

    Parameters
    ----------
    layers : sequence of Layer
        From the image upwards; the last is a mixture over a single position.

    Attributes
    ----------
    emissions : ModuleList
        What the components of the mixtures emit, from the image upwards.
    ends : Tensor of shape (2, C, 1, 1)
        Lowest and highest value of each channel, where many pixels have just that; else infinite.
    """

    # Whether windows must tile.
    tiling: bool
    # Kind of what the first layer emits.
    kind = "tiles"
    ends: Tensor
    n_classes: int | None = None
    pyramid: Pyramid | None = None

    def __init__(self, layers: Sequence[Layer], emissions: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.emissions = nn.ModuleList(emissions)
        self.register_buffer("ends", no_ends(self.image_shape[0]))

    @abstractmethod
    def forward(self) -> Mixtures:
        """What the stack says and draws at the present parameters."""

    def set_units(
        self, count: Tensor, mean: Tensor, variance: Tensor, x: Tensor, reg_covar: float | None
    ) -> None:
        """Bring images to the units of the layers, and bound the variances.

        Parameters
        ----------
        count, mean, variance : Tensor of shape (C, H, W), in double precision
            Of the observed values of the images to train on.
        x : Tensor of shape (N, C, H, W)
            Some of the images, which tell how much details vary, and where values end.
        reg_covar : float or None
            Least variance in units of the images; None chooses.
        """
        self.ends = find_ends(x).to(self.ends)
        self.pixels.set_units(count, mean, variance, x, reg_covar)

    @abstractmethod
    def start(self, x: Tensor, generator: torch.Generator) -> None:
        """Start every mixture at random, given some images (N, C, H, W)."""

    def anneal(self, done: float) -> None:
        """Change, given the share of training that is done, what is not learnt."""
        self.pixels.anneal(done)

    @abstractmethod
    def weight_logits(self, name: str) -> nn.Parameter | None:
        """Weights of a mixture, before the softmax over the first axis; None if it has none."""

    @property
    def is_density(self) -> bool:
        """Whether the stack is one density, so that calling it gives a `Tree`."""
        first, *upper = self.layers
        return self.tiling or (not upper and first.windows.kernel == first.windows.size)

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width of an image."""
        return self.layers[0].windows.input_shape

    @property
    def mixtures(self) -> dict[str, Layer]:
        """The mixture layers by name, from the image upwards."""
        return {layer.name: layer for layer in self.layers if layer.is_mixture}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the mixture layers, from the image upwards."""
        return tuple(self.mixtures)

    @property
    def top(self) -> Layer:
        """The last layer, whose components are the clusters, or are merged into them."""
        return self.layers[-1]

    @property
    def top_weights(self) -> Tensor:
        """Mixture weights of the top layer, (K,)."""
        return cast("Tensor", self.weight_logits(self.top.name)).detach().softmax(0).flatten()

    @property
    def pixels(self) -> Pixels:
        """What the components of the first layer emit."""
        return cast("Pixels", self.emissions[0])

    @property
    def scale(self) -> Tensor:
        """Units of the channels of images, (C, 1, 1)."""
        return self.pixels.scale

    @property
    def like(self) -> Tensor:
        """A tensor of the type of the parameters, where they are."""
        return next(self.parameters())

    def emission(self, name: str) -> "Pixels | Tables":
        """What the components of a mixture emit."""
        return cast("Pixels | Tables", self.emissions[self.names.index(name)])

    def same_layers(self, other: "BaseStack", *, n_components: bool = True) -> bool:
        """Whether another stack has the same layers on the same images.

        With as many components, unless `n_components` is false.
        """

        def outline(stack: BaseStack) -> list[Any]:
            specs = [clone(layer.spec) for layer in stack.layers]
            if not n_components:
                specs = [s.set_params(n_components=1) if hasattr(s, "shared") else s for s in specs]
            kind = type(stack), stack.image_shape, stack.kind, stack.n_classes
            names = [(layer.name, layer.windows[1:]) for layer in stack.layers]
            return [*kind, *names, *map(str, specs)]

        return outline(self) == outline(other)

    def pack(self) -> dict[str, Any]:
        """What the stack consists of: its layers with all sizes spelt out, and its arrays."""
        return {
            "joint": self.tiling,
            "pixels": self.kind,
            "layers": [(layer.name, layer.spec) for layer in self.layers],
            "image_shape": self.image_shape,
            "n_classes": self.n_classes,
            "arrays": {name: value.numpy(force=True) for name, value in self.state_dict().items()},
        }

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> Self:
        """The stack that `pack` has seen, on the CPU.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            If the parts do not fit each other.
        """
        layers = lay_out(packed["layers"], packed["image_shape"], tiling=cls.tiling)
        with torch.device("meta"):  # no memory yet, whatever sizes the layers claim
            made: Any = cls
            stack: Self = made(layers, packed["n_classes"], pixels=packed["pixels"])
        arrays = {name: torch.from_numpy(array.copy()) for name, array in packed["arrays"].items()}
        dtypes = {array.dtype for array in arrays.values()}
        if dtypes not in ({torch.float32}, {torch.float64}):
            raise ValueError(f"its arrays are of types that no stack has: {dtypes}")
        stack.load_state_dict(arrays, assign=True)
        return stack

    @torch.no_grad()
    def set_weights(self, name: str, weights: Tensor) -> None:
        """Set mixture weights, components first."""
        logits = cast("Tensor", self.weight_logits(name))
        logits.copy_(weights.clamp_min(MIN_WEIGHT).log().reshape(logits.shape))

    @property
    def gaussians(self) -> dict[str, Pixels]:
        """What the components of upper layers emit besides, by the names of these."""
        return {}

    def layer_n_parameters(self, name: str) -> int:
        """Free parameters of a mixture; those of values beyond the border do not count."""
        logits = self.weight_logits(name)
        n_weights = 0 if logits is None else logits.numel() - logits[0].numel()
        n_details = self.gaussians[name].n_parameters if name in self.gaussians else 0
        return n_weights + self.emission(name).n_parameters + n_details

    @property
    def n_parameters(self) -> int:
        """Free parameters."""
        return sum(self.layer_n_parameters(name) for name in self.mixtures)


class Stack(BaseStack):
    """Raw parameters of a stack that is one density; calling it gives the `Tree`.

    Parameters
    ----------
    layers : sequence of Layer
        Whose windows tile.
    n_classes : int or None
        Number of classes that images have, equally likely under every component to begin with.
    pixels : {"tiles", "pyramid", "atoms"}
        What components emit. In a pyramid, the mean of a window goes up to the layer above, and
        every layer emits details.

    Attributes
    ----------
    logits : Parameter of shape (K,)
        Weights of the top components before the softmax.
    class_logits : Parameter of shape (K, n_classes) or None
        By what table each top component draws the class of its image.
    details : ModuleList
        What the components of the upper layers of a pyramid emit of their windows.
    """

    tiling = True

    def __init__(
        self, layers: Sequence[Layer], n_classes: int | None = None, *, pixels: str = "tiles"
    ) -> None:
        (first, *_) = layers
        tables_of_layers: list[Tables] = []
        kernels, mixtures = [first.windows.kernel], [first]
        size, pool = first.windows.grid, (1, 1)
        for layer in layers[1:]:
            height, width = layer.windows.kernel
            if not layer.is_mixture:
                pool = (pool[0] * height, pool[1] * width)
                continue
            of_layer = Tables(layer.windows, layer.n_components, layer.positions, size, pool)
            tables_of_layers.append(of_layer)
            mixtures.append(layer)
            kernels.append((pool[0] * height, pool[1] * width))
            size, pool = layer.windows.grid, (1, 1)
        details: list[Details] = []
        if pixels == "pyramid":
            of_windows = Pyramid(first.windows.input_shape, tuple(kernels))
            details = [
                Details(of_windows, level, layer.n_components, layer.positions)
                for level, layer in enumerate(mixtures)
            ]
            of_first: Pixels = details.pop(0)
        else:
            kind = Atoms if pixels == "atoms" else KINDS[first.spec.covariance_type]
            of_first = kind(first.windows, first.n_components, first.positions)
        super().__init__(layers, [of_first, *tables_of_layers])
        self.kind = pixels
        self.details = nn.ModuleList(details)
        self.units = None
        if pixels == "pyramid":
            self.pyramid, self.units = of_windows, Units(of_windows)
        self.logits = nn.Parameter(torch.zeros(self.top.n_components))
        self.n_classes = n_classes
        classes = None if n_classes is None else torch.zeros(self.top.n_components, n_classes)
        self.class_logits = None if classes is None else nn.Parameter(classes)

    def forward(self) -> Tree:
        """The density at the present parameters."""
        pixels, *levels = (emission() for emission in self.emissions)
        if self.pyramid is not None:
            levels = [
                level._replace(details=details())
                for level, details in zip(levels, self.details, strict=True)
            ]
        return Tree(
            self.names, pixels, self.logits.log_softmax(0), tuple(levels),
            None if self.units is None else self.units(),
            None if self.class_logits is None else tables.tables(self.class_logits),
        )  # fmt: skip

    @property
    def scale(self) -> Tensor:
        """Units of the channels of images, (C, 1, 1)."""
        return self.pixels.scale if self.units is None else self.units.scale

    @property
    def gaussians(self) -> dict[str, Pixels]:
        """Gaussians of the details of upper layers, by the names of these."""
        return dict(zip(self.names[1:], cast("list[Pixels]", list(self.details)), strict=False))

    def weight_logits(self, name: str) -> nn.Parameter | None:
        """Weights of the top; those of lower layers follow from the tables above them."""
        return self.logits if name == self.top.name else None

    @torch.no_grad()
    def set_units(
        self, count: Tensor, mean: Tensor, variance: Tensor, x: Tensor, reg_covar: float | None
    ) -> None:
        """Bring images to the units of the layers, and bound the variances."""
        if self.units is None or self.pyramid is None:
            super().set_units(count, mean, variance, x, reg_covar)
            return
        self.ends = find_ends(x).to(self.ends)
        self.units.set_units(count, variance)
        basis = self.units()
        means = basis.split(mean[None].to(x))
        squares = [torch.zeros_like(part, dtype=torch.float64) for part in means]
        for some in torch.split(x, _SPLIT):
            for total, part, average in zip(squares, basis.split(some), means, strict=True):
                total += (part - average).double().square().sum(0)
        # What differs by rounding only does not vary.
        largest = max(float(part.abs().amax()) for part in means if part.numel())
        rounding = (_ROUNDING * torch.finfo(x.dtype).eps * largest) ** 2
        variances = [total[0] / len(x) for total in squares]  # each (D, rows, columns)
        variances = [torch.where(values > rounding, values, 0) for values in variances]
        emissions = cast("list[Details]", [self.pixels, *self.details])
        for level, (details, share) in enumerate(zip(emissions, floors(variances), strict=True)):
            details.set_floor(share)
            inside = self.pyramid.inside(level).to(x).double()
            details.set_units(inside, means[level][0].double(), variances[level], x, reg_covar)

    @torch.no_grad()
    def start(self, x: Tensor, generator: torch.Generator) -> None:
        """Start every component of every layer as a random window of the images."""
        tree = self()
        views = tree.views(x)
        self.pixels.start(views[0], generator)
        z = self.pixels().log_prob(views[0])  # (N, K, rows, columns)
        for i, emission in enumerate(cast("list[Tables]", list(self.emissions)[1:])):
            chosen = emission.start(z.softmax(1), generator)
            level = emission()
            z = tables.log_prob(z, level.tables, level.kernel)  # (N, K, rows, columns)
            if self.pyramid is not None:
                details = cast("Details", self.details[i])
                details.start(views[i + 1], generator, chosen)
                z = z + details().log_prob(views[i + 1], complete=True)
        self.logits.zero_()


class Tables(nn.Module):
    """Raw tables, by which each cell of a window draws its component of the layer below.

    All cells of a pooled window draw, independently, from the one table of that window.

    Parameters
    ----------
    windows : Windows
        Over pooled cells.
    n_components : int
    positions : (rows, columns)
        Of windows that have tables of their own; (1, 1) if all share them.
    size : (height, width)
        Of the layer below.
    pool : (height, width)
        Cells of the layer below that share a table.

    Attributes
    ----------
    logits : Parameter of shape (rows, kernel height, columns, kernel width, K, J)
        Over J components below.
    """

    def __init__(
        self, windows: Windows, n_components: int, positions: Size, size: Size, pool: Size
    ) -> None:
        super().__init__()
        self.windows, self.positions, self.size, self.pool = windows, positions, size, pool
        (rows, columns), (height, width) = positions, windows.kernel
        shape = (rows, height, columns, width, n_components, windows.input_shape[0])
        self.logits = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Level:
        """The table of each cell of the layer below."""
        rows, height, columns, width = self.logits.shape[:4]
        kernel = (height * self.pool[0], width * self.pool[1])
        if (rows, columns) == self.windows.grid and self.pool == (1, 1):
            logits = self.logits.flatten(2, 3).flatten(0, 1)  # (rows * h, columns * w, K, J)
            return Level(tables.tables(logits[: self.size[0], : self.size[1]]), kernel)
        device = self.logits.device
        row = torch.arange(self.size[0], device=device)[:, None] // self.pool[0]  # (H, 1)
        column = torch.arange(self.size[1], device=device) // self.pool[1]  # (W,)
        by_cell = tables.tables(self.logits)[
            row // height % rows, row % height, column // width % columns, column % width
        ]  # (H, W, K, J)
        return Level(by_cell, kernel)

    @torch.no_grad()
    def start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Start tables as the responsibilities in random windows of `x`, smoothed.

        Returns the numbers of these windows, (P, K).
        """
        pooled = functional.avg_pool2d(x, self.pool, ceil_mode=True, count_include_pad=False)
        windows = self.windows.unfold(pooled)  # (R, N, D)
        windows = windows.reshape(math.prod(self.positions), -1, windows.shape[2])  # (P, M, D)
        grid, kernel = self.windows.grid, self.windows.kernel
        chosen = choose_windows(windows, self.logits.shape[4], grid, kernel, generator)
        picked = take_windows(windows, chosen)  # (P, K, D)
        started = picked + _START_AVERAGE * (windows.mean(1, keepdim=True) - picked)  # (P, K, D)
        self.logits.copy_(self._from_windows(started.clamp_min(_MIN_START_PROBABILITY).log()))
        return chosen

    @property
    def n_parameters(self) -> int:
        """Free entries of the tables of cells inside the border."""
        n_components, n_below = self.logits.shape[4:]
        n_cells = n_inside(self.windows, self.positions) / n_below
        return round(math.prod(self.positions) * n_cells) * n_components * (n_below - 1)

    @torch.no_grad()
    def arrays(self) -> dict[str, Tensor]:
        """The tables, (P, K, D), which are the means of what the components draw."""
        by_window = tables.tables(self.logits).permute(0, 2, 4, 5, 1, 3)  # (R, C, K, J, h, w)
        return {"means": by_window.flatten(0, 1).flatten(2)}

    @torch.no_grad()
    def assign(self, name: str, values: Tensor) -> None:
        """Set the tables."""
        self.logits.copy_(tables.logits(self._from_windows(values)))

    def _from_windows(self, values: Tensor) -> Tensor:
        """(P, K, D), with D in the order (channel, row, column), to the shape of `logits`."""
        n_components, n_below = self.logits.shape[4:]
        by_cell = values.view(
            *self.positions, n_components, n_below, *self.windows.kernel
        )  # (rows, columns, K, J, height, width)
        return by_cell.permute(0, 4, 1, 5, 2, 3)

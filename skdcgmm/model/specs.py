"""Layers as users write them, and what they are on images of some shape."""

import math
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator

from skdcgmm.model.pixels.gaussian import Gaussian
from skdcgmm.model.windows import Shape, Size, Windows, grid_size

# What the components of a first layer emit: kinds of `Pixels`, by the name of `covariance_type`.
KINDS: dict[str, Any] = {"diag": Gaussian, "spherical": partial(Gaussian, spherical=True)}


class ConvGMM(BaseEstimator):
    """A mixture model at every position of a sliding window.

    Parameters
    ----------
    n_components : int
        Number of components of the mixture.
    kernel_size : int or (int, int), default=None
        Height and width of the window. None is the whole input: the top layer of a stack.
    stride : int or (int, int), default=None
        Step between windows. None is the kernel size: windows tile.
    covariance_type : {"diag", "spherical"}, default="diag"
        One variance for each value of a window, or one for all of them. Above the first layer of a
        joint stack there are no Gaussians, and this means nothing.
    shared : bool, default=True
        One mixture for all positions (convolutional), or each position its own. Where images are
        centred, as in "auto", False describes them better.

    Notes
    -----
    Windows cover their input: a last window that reaches past the border uses only what is
    inside. With ``objective="joint"``, windows must tile: leave `stride` at None.

    Examples
    --------
    >>> from skdcgmm import ConvGMM
    >>> ConvGMM(50, kernel_size=4, shared=False)
    ConvGMM(kernel_size=4, n_components=50, shared=False)
    """

    def __init__(
        self,
        n_components: int,
        kernel_size: int | Size | None = None,
        stride: int | Size | None = None,
        covariance_type: str = "diag",
        shared: bool = True,
    ) -> None:
        self.n_components = n_components
        self.kernel_size = kernel_size
        self.stride = stride
        self.covariance_type = covariance_type
        self.shared = shared


class MaxPool(BaseEstimator):
    """Max over the responsibilities inside a sliding window.

    Parameters
    ----------
    kernel_size : int or (int, int), default=2
        Height and width of the window.
    stride : int or (int, int), default=None
        Step between windows. None is the kernel size: windows tile.

    Notes
    -----
    Windows cover their input: a last window that reaches past the border uses only what is
    inside. On the way down, all positions of a window draw from the window's one table; where
    windows overlap, the tables are averaged. With ``objective="joint"``, that is all it means: the
    likelihood of what the positions show is the product over them.

    Examples
    --------
    >>> from skdcgmm import MaxPool
    >>> MaxPool(2)
    MaxPool()
    """

    def __init__(self, kernel_size: int | Size = 2, stride: int | Size | None = None) -> None:
        self.kernel_size = kernel_size
        self.stride = stride


# Largest side of images whose atoms are in tiles of two by two.
_SMALL = 40
# Top components for each class.
_A_CLASS = 4
# Positions that have mixtures of their own at most, where layers are chosen.
_MOST_POSITIONS = 256

NamedSpecs = list[tuple[str, ConvGMM | MaxPool]]


class Layer(NamedTuple):
    """A layer on images of some shape.

    Attributes
    ----------
    name : str
    spec : ConvGMM or MaxPool
        With all sizes spelt out.
    windows : Windows
    """

    name: str
    spec: ConvGMM | MaxPool
    windows: Windows

    @property
    def is_mixture(self) -> bool:
        """Whether the layer is a mixture, rather than pooling."""
        return isinstance(self.spec, ConvGMM)

    @property
    def n_components(self) -> int:
        """Components of a mixture; channels that a pooling layer hands on."""
        return self.spec.n_components if self.is_mixture else self.windows.input_shape[0]

    @property
    def positions(self) -> Size:
        """Rows and columns of windows that have a mixture of their own; (1, 1) if all share one."""
        return (1, 1) if self.spec.shared else self.windows.grid

    @property
    def n_mixtures(self) -> int:
        """Separate mixtures: 1 if positions share theirs, else the number of positions."""
        return math.prod(self.positions)

    @property
    def output_shape(self) -> Shape:
        """Components, and rows and columns of windows."""
        return (self.n_components, *self.windows.grid)


def lay_out(specs: NamedSpecs, image_shape: Shape, *, tiling: bool) -> list[Layer]:
    """Layers, from the image upwards, on images of a shape.

    Parameters
    ----------
    specs : list of (str, ConvGMM or MaxPool)
    image_shape : (channels, height, width)
    tiling : bool
        Whether windows must tile, for one density.

    Raises
    ------
    ValueError, TypeError
        If a parameter does not fit; the message names it. Or if the stack does not begin and end
        in a mixture, the last over one position, or windows do not tile that must.
    """
    layers: list[Layer] = []
    shape = image_shape
    for name, spec in specs:
        layers.append(_lay_out(name, spec, shape))
        windows = layers[-1].windows
        if tiling and windows.kernel not in (windows.stride, windows.size):
            raise ValueError(
                f"{name}__stride is {windows.stride} and the kernel {windows.kernel}: windows that "
                "do not tile have no joint density. Choose objective='layerwise', which the "
                "presets with overlapping windows are for, layers='auto', or layers that leave "
                "stride=None."
            )
        shape = layers[-1].output_shape
    for layer in (layers[0], layers[-1]):
        if not layer.is_mixture:
            raise ValueError(
                f"layers must begin and end with a ConvGMM; {layer.name!r} is none. Pooling is for "
                "the responsibilities between two of them."
            )
    if shape[1:] != (1, 1):
        raise ValueError(
            f"layers must end in one position; {layers[-1].name!r} has {shape[1]}x{shape[2]}. "
            "Let the last layer see its whole input: ConvGMM(n_components), kernel_size=None."
        )
    return layers


def _lay_out(name: str, spec: ConvGMM | MaxPool, input_shape: Shape) -> Layer:
    kernel = _check_kernel(f"{name}__kernel_size", spec.kernel_size, input_shape[1:])
    stride = kernel if spec.stride is None else _check_pair(f"{name}__stride", spec.stride)
    windows = Windows(input_shape, kernel, stride)
    if isinstance(spec, MaxPool):
        return Layer(name, MaxPool(kernel, stride), windows)
    n_components = check_number(f"{name}__n_components", spec.n_components, low=1, integer=True)
    check_choice(f"{name}__covariance_type", spec.covariance_type, tuple(KINDS))
    check_bool(f"{name}__shared", spec.shared)
    return Layer(
        name,
        ConvGMM(int(n_components), kernel, stride, spec.covariance_type, bool(spec.shared)),
        windows,
    )


def _check_kernel(name: str, value: Any, size: Size) -> Size:
    """A kernel that fits its input; None is the whole input."""
    if value is None:
        return size
    kernel = _check_pair(name, value)
    if kernel[0] > size[0] or kernel[1] > size[1]:
        remedy = "Choose a smaller kernel, or None for the whole input."
        if size == (1, 1):
            remedy += " If the rows of X are images, give their image_shape=(height, width)."
        raise ValueError(
            f"{name} must fit its input of height x width {size[0]}x{size[1]}; got {value!r}. "
            f"{remedy}"
        )
    return kernel


def _check_pair(name: str, value: Any) -> Size:
    """A positive integer or a pair of them, as a (height, width) pair."""
    sides = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sides) != 2:
        raise ValueError(f"{name} must be one integer or (height, width); got {value!r}.")
    height, width = (int(check_number(name, side, low=1, integer=True)) for side in sides)
    return height, width


# --- layers by name -----------------------------------------------------------------------------


def is_named(entry: object) -> bool:
    """Whether an entry of `layers` is a (name, spec) pair."""
    return isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[0], str)


def name_layers(layers: Any) -> NamedSpecs:
    """Give unnamed specs names: their class and their number among layers of that class."""
    count: Counter[str] = Counter()
    named = []
    for entry in layers:
        if is_named(entry):
            named.append((entry[0], entry[1]))
        else:
            kind = type(entry).__name__.lower()
            count[kind] += 1
            named.append((f"{kind}{count[kind]}", entry))
    return named


def check_layers(layers: object, reserved: set[str]) -> NamedSpecs:
    """Named specs from a list of specs or of (name, spec) pairs.

    Parameters
    ----------
    layers : list of ConvGMM and MaxPool, or of (str, layer)
    reserved : set of str
        Names that no layer may have: the estimator's own parameters.

    Raises
    ------
    TypeError
        If `layers` is no list, or an entry is no layer.
    ValueError
        If the list is empty, or a name is taken twice, reserved or unusable.
    """
    if not isinstance(layers, list | tuple):
        raise TypeError(
            "layers must be 'auto', the name of a preset, or a list of layers such as "
            f"[ConvGMM(50, kernel_size=4, shared=False), ConvGMM(50)]; got {layers!r}."
        )
    named = name_layers(layers)
    if not named:
        raise ValueError("layers must hold at least one layer, such as [ConvGMM(49)]; got [].")
    for name, spec in named:
        if not isinstance(spec, ConvGMM | MaxPool):
            raise TypeError(
                "layers must hold ConvGMM and MaxPool layers, or (name, layer) pairs; "
                f"got {spec!r} as {name!r}."
            )
        if not name or "__" in name or name in reserved:
            raise ValueError(
                f"layers has a layer named {name!r}. A name must not be empty, contain '__', or be "
                "a parameter of the estimator: choose another."
            )
    twice = [name for name, times in Counter(name for name, _ in named).items() if times > 1]
    if twice:
        raise ValueError(
            f"layers must have unique names; {twice} occur more than once. Rename one."
        )
    return named


def auto(
    image_shape: Shape,
    n_samples: int,
    n_clusters: int | None = None,
    *,
    n_classes: int | None = None,
    pixels: str = "tiles",
    stream: bool = False,
) -> NamedSpecs:
    """A stack of one density for images of this shape; a flat mixture for plain features.

    Tiles of four pixels, or in a pyramid a little more, then windows of two by two until few are
    left, then the top. The wider a window, the more there is to tell apart: the upper layers have
    the more components. Fewer where they would see less than 15 images on average, but as many as
    there are images up to 60, and in a stream, of which more are to come, always: few images are
    all that there is to know. Tiles of very large images, more than 256, share their components,
    and so do windows above. The top has at least as many as clusters are asked for, or some for
    each class; a flat mixture just as many as clusters.
    """
    size: Size = image_shape[1:]
    plain = size == (1, 1)
    most = n_samples if stream else max(1, n_samples // 15, 0 if plain else min(n_samples, 60))
    least = min(n_samples, max(n_clusters or 1, _A_CLASS * (n_classes or 0)))
    tile = (min(4, size[0]), min(4, size[1]))
    if tile == size and (plain or pixels != "atoms"):
        n_flat = n_clusters or max(least, min(8 if plain else 100, most))
        return name_layers([ConvGMM(n_flat)])
    n_parts = 100
    if pixels == "pyramid":
        tile = (_even_tile(size[0]), _even_tile(size[1]))
    elif pixels == "atoms" and max(size) <= _SMALL:
        tile, n_parts = (min(2, size[0]), min(2, size[1])), 32
    size = grid_size(size, tile, tile)
    layers = [ConvGMM(min(n_parts, most), tile, shared=_shares(size, pixels))]
    while max(size) > 2:
        kernel = (min(2, size[0]), min(2, size[1]))
        size = grid_size(size, kernel, kernel)
        n_parts = 100 if max(size) > 2 else 200
        shared = _shares(size, pixels)
        layers.append(ConvGMM(min(n_parts, most), kernel, shared=shared))
    return name_layers([*layers, ConvGMM(max(min(400, most), least, n_clusters or 1))])


def _shares(grid: Size, pixels: str) -> bool:
    """Whether positions are so many that mixtures of their own would be of large images alone."""
    return pixels == "tiles" and math.prod(grid) > _MOST_POSITIONS


def _even_tile(side: int) -> int:
    """Side of tiles of at least four pixels whose number along a side can be halved to one.

    Else a last window would see a narrow strip, and tell as much of its image as the others.
    """
    n_tiles = 2 ** max(0, int(math.log2(side / 4))) if side >= 4 else 1
    return -(-side // n_tiles)


# --- checks of parameters -----------------------------------------------------------------------


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that a parameter is one of some strings.

    Raises
    ------
    ValueError
        Naming the parameter, the choices and the value.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}.")


def check_bool(name: str, value: object) -> None:
    """Check that a parameter is true or false.

    Raises
    ------
    TypeError
        Naming the parameter and the value.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False; got {value!r}.")


def check_number(
    name: str,
    value: Any,
    *,
    low: float,
    high: float = float("inf"),
    integer: bool = False,
    open_low: bool = False,
    closed_high: bool = False,
    optional: str = "",
) -> Any:
    """A parameter that is a number in its range; `optional` says what None means.

    Raises
    ------
    TypeError, ValueError
        Naming the parameter, the range and the value.
    """
    if value is None and optional:
        return value
    kind = "an integer" if integer else "a number"
    bounds = f"{'>' if open_low else '>='} {low}" + (
        f" and {'<=' if closed_high else '<'} {high}" if high < np.inf else ""
    )
    expected = f"{name} must be {kind} {bounds}" + (f", or None ({optional})" if optional else "")
    types = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError(f"{expected}; got {value!r}.")
    inside = (low < value if open_low else low <= value) and (
        value <= high if closed_high else value < high
    )
    if not inside:
        raise ValueError(f"{expected}; got {value!r}.")
    return value

"""What a stack looks like: as text, and drawn in HTML."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from skdcgmm._network import Network
from skdcgmm._tree import JointNetwork
from skdcgmm._windows import Size
from skdcgmm.layers import MixtureLayer

# A component is active if it has this share of an equal weight.
_ACTIVE_SHARE = 0.1
# Side of a drawn layer, in pixels, and the most lines drawn across it.
_SIDE, _MAX_LINES = 64, 16


class Row(NamedTuple):
    """What there is to say of a layer, as text."""

    layer: str
    window: str
    positions: str
    components: str
    active: str
    parameters: str


def n_active(network: Network, name: str) -> float:
    """Number of components of a mixture layer that are in use.

    Parameters
    ----------
    network : Network
    name : str

    Returns
    -------
    float
        How many have at least a tenth of an equal weight; of a layer whose positions have their
        own, the mean over positions.
    """
    weights = network.log_weights()[name].detach().exp()  # (K, rows, columns)
    if network.mixtures[name].n_mixtures == 1:
        weights = weights.mean((1, 2), keepdim=True)  # (K, 1, 1)
    return float((weights > _ACTIVE_SHARE / len(weights)).sum(0).float().mean())


def text(network: Network, title: str, notes: list[str], *, fitted: bool) -> str:
    """A table of the layers, from the image upwards.

    Parameters
    ----------
    network : Network
    title : str
    notes : list of str
        Lines below the table.
    fitted : bool
        Whether the network has learnt which components to use.

    Returns
    -------
    str
    """
    rows = [Row(*Row._fields), *_rows(network, fitted=fitted)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([f"{title}, {_kind(network)}", *lines, *notes])


def html(network: Network, notes: list[str], *, fitted: bool) -> str:
    """The same, drawn: the image and the layers side by side, with their grids.

    Parameters
    ----------
    network : Network
    notes : list of str
    fitted : bool

    Returns
    -------
    str
    """
    _, height, width = network.image_shape
    image = next(iter(network.mixtures.values())).output_shape[1:]
    drawn = [_box("image", image, [f"{height} x {width}", f"in {_size(image)} windows"])]
    for row, (_, layer) in zip(_rows(network, fitted=fitted), network.named_layers(), strict=True):
        number, _, each = row.components.partition(" ")
        said = [f"{number} components {each}".strip() if number else "max"]
        said += [f"{row.active} active"] if row.active else []
        said += [f"{row.parameters} parameters"] if row.parameters else []
        drawn.append(_box(row.layer, layer.output_shape[1:], said))
    arrow = '<span style="align-self:center">&rarr;</span>'
    flow = "display:flex;flex-wrap:wrap;gap:.6em;font-size:.85em"
    last = "".join(f"<div>{escape(note)}</div>" for note in notes)
    return (
        '<div class="skdcgmm-stack" style="margin-top:.6em">'
        f"<div>Stack: {escape(_kind(network))}</div>"
        f'<div style="{flow}">{arrow.join(drawn)}</div>{last}</div>'
    )


def _kind(network: Network) -> str:
    kind = "one density" if isinstance(network, JointNetwork) else "layer-wise stack"
    channels, height, width = network.image_shape
    if (height, width) == (1, 1):
        return f"{kind} of rows of {channels} features"
    return f"{kind} of images of {height} x {width} x {channels}"


def _size(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _rows(network: Network, *, fitted: bool) -> list[Row]:
    rows = []
    for name, layer in network.named_layers():
        window, positions = _size(layer.kernel), _size(layer.output_shape[1:])
        if layer.stride != layer.kernel and positions != "1 x 1":
            window += f" by {_size(layer.stride)}"
        if not isinstance(layer, MixtureLayer):
            rows.append(Row(name, window, positions, "", "", ""))
            continue
        each = " at each" if layer.n_mixtures > 1 else ""
        active = f"{n_active(network, name):.0f}" if fitted else ""
        n_parameters = f"{layer.n_parameters:,}"
        rows.append(
            Row(name, window, positions, f"{layer.n_components}{each}", active, n_parameters)
        )
    return rows


def _box(title: str, grid: Size, lines: list[str]) -> str:
    """A captioned square with the lines of a grid."""
    marks = []
    for count, along in zip(grid, ("y", "x"), strict=True):
        across = "x" if along == "y" else "y"
        shown = min(count, _MAX_LINES)
        for index in range(1, shown):
            place = round(_SIDE * index / shown, 1)
            marks.append(
                f'<line {along}1="{place}" {along}2="{place}" {across}1="0" {across}2="{_SIDE}"/>'
            )
    caption = "".join(f"<div>{escape(line)}</div>" for line in lines)
    return (
        '<div style="text-align:center">'
        f'<svg width="{_SIDE}" height="{_SIDE}" viewBox="0 0 {_SIDE} {_SIDE}" fill="none" '
        'stroke="currentColor" stroke-width="1" role="img">'
        f'<rect x=".5" y=".5" width="{_SIDE - 1}" height="{_SIDE - 1}"/>{"".join(marks)}</svg>'
        f"<div><b>{escape(title)}</b></div>{caption}</div>"
    )

import torch
from hypothesis import given
from hypothesis import strategies as st

from skdcgmm.model.windows import Windows, grid_size
from tests import oracle

sides = st.integers(1, 9)


@st.composite
def sizes(draw, max_stride=None):
    size = (draw(sides), draw(sides))
    kernel = tuple(draw(st.integers(1, side)) for side in size)
    stride = tuple(draw(st.integers(1, max_stride or k)) for k in kernel)
    return size, kernel, stride


@given(sizes(max_stride=4))
def test_grid_covers_the_input_with_as_few_windows_as_needed(case):
    size, kernel, stride = case
    grid = grid_size(size, kernel, stride)
    assert grid == tuple(
        len(oracle.positions(n, k, s)) for n, k, s in zip(size, kernel, stride, strict=True)
    )


@given(sizes())
def test_unfold_cuts_the_windows_out(case):
    size, kernel, stride = case
    x = torch.arange(2 * 3 * size[0] * size[1], dtype=torch.float64).view(2, 3, *size)
    patches = Windows((3, *size), kernel, stride).unfold(x)
    padded = torch.nn.functional.pad(x, (0, kernel[1], 0, kernel[0]))
    rows, columns = grid_size(size, kernel, stride)
    for p in range(rows * columns):
        top, left = p // columns * stride[0], p % columns * stride[1]
        patch = padded[:, :, top : top + kernel[0], left : left + kernel[1]]
        assert torch.equal(patches[p], patch.flatten(1))


@given(sizes())
def test_fold_mean_inverts_unfold(case):
    size, kernel, stride = case
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, *size, generator=generator, dtype=torch.float64)
    windows = Windows((3, *size), kernel, stride)
    folded = windows.fold_mean(windows.unfold(x))
    torch.testing.assert_close(folded, x)


def test_fold_mean_averages_where_windows_overlap():
    patches = torch.tensor([[[1.0, 1.0]], [[3.0, 3.0]]])  # two windows of two on a line of three
    folded = Windows((1, 1, 3), (1, 2), (1, 1)).fold_mean(patches)
    assert folded.flatten().tolist() == [1.0, 2.0, 3.0]


@given(sizes(max_stride=4))
def test_mean_window_area_counts_pixels_inside(case):
    size, kernel, stride = case
    windows = Windows((1, *size), kernel, stride)
    inside = windows.unfold(torch.ones(1, 1, *size, dtype=torch.float64))
    expected = inside.sum().item() / len(inside)
    assert abs(windows.mean_area - expected) < 1e-12

"""The contract of every kind of pixels, and the arithmetic of Gaussians.

A kind inherits the whole contract by one entry of `KINDS`.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch.func import functional_call

from skdcgmm.model import specs
from skdcgmm.model.pixels import PixelDensity, Pixels
from skdcgmm.model.pixels.atoms import Atoms
from skdcgmm.model.pixels.gaussian import GaussianDensity
from skdcgmm.model.windows import Size, Windows
from skdcgmm.published.stack import Clipped
from tests import oracle


def gaussian(values, means, covariances):
    """Log density of the values (N, D) that are no NaN under a Gaussian, (N,)."""
    return np.nansum(norm.logpdf(values, means, np.sqrt(covariances)), 1)


class Kind(NamedTuple):
    """A kind of pixels that is under contract.

    `log_density` is that of windows (N, D) under one component, given what `arrays` say of it;
    `constrain` is called after every step of a training.
    """

    make: Callable[[Windows, int, Size], Pixels]
    log_density: Callable[..., np.ndarray]
    constrain: Callable[[Pixels], None] = lambda _: None


KINDS = {
    "diag": Kind(specs.KINDS["diag"], gaussian),
    "spherical": Kind(specs.KINDS["spherical"], gaussian),
    "atoms": Kind(Atoms, gaussian),  # of images without ends
    "clipped": Kind(Clipped, gaussian, Clipped.constrain),
    "clipped spherical": Kind(partial(Clipped, spherical=True), gaussian, Clipped.constrain),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)

# Windows that are one image, features, tiles with a border, and overlapping ones with a border.
WHOLE = Windows((2, 2, 2), (2, 2), (2, 2))
FEATURES = Windows((3, 1, 1), (1, 1), (1, 1))
TILES = Windows((2, 3, 3), (2, 2), (2, 2))
OVERLAPPING = Windows((1, 4, 3), (2, 2), (1, 2))
every_window = pytest.mark.parametrize(
    "windows", [WHOLE, FEATURES, TILES, OVERLAPPING], ids=["whole", "features", "tiles", "overlap"]
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(windows, n_images=6, seed=0, shift=3.0, scale=2.0):
    """Images (N, C, H, W) in double precision, and not in the units of a layer."""
    normal = torch.randn(n_images, *windows.input_shape, generator=seeded(seed), dtype=torch.double)
    return shift + scale * normal


def with_holes(x, share=0.4):
    """Some values are missing."""
    return torch.where(torch.rand(x.shape, generator=seeded(1)) < share, torch.nan, x)


def make(kind, windows, x, *, shared=True, n_components=3, seed=0, reg_covar=None):
    """Pixels in the units of images, started at random and then moved."""
    positions = (1, 1) if shared else windows.grid
    pixels = kind.make(windows, n_components, positions).to(x.dtype)
    values = x.double()
    count = (~values.isnan()).sum(0).double()
    mean = values.nanmean(0)
    pixels.set_units(count, mean, (values - mean).square().nanmean(0), x, reg_covar)
    pixels.start(x, seeded(seed))
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in pixels.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=x.dtype)
    kind.constrain(pixels)
    return pixels


def in_units(density, x):
    """Log density in units of the images, (N, K, rows, columns)."""
    return density.log_prob(x) - density.log_volume(x)[:, None]


def expected_log_prob(kind, pixels, x):
    """The same window by window, of what scipy says in double precision."""
    arrays = {name: values.double().numpy() for name, values in pixels.arrays().items()}
    _, kernel, stride = windows = pixels.windows
    found = np.empty((len(x), pixels.n_components, *windows.grid))
    for index, (row, column) in enumerate(itertools.product(*map(range, windows.grid))):
        patch = np.full((len(x), windows.input_shape[0], *kernel), np.nan)  # beyond the border
        top, left = row * stride[0], column * stride[1]
        seen = x[:, :, top : top + kernel[0], left : left + kernel[1]].numpy()
        patch[:, :, : seen.shape[2], : seen.shape[3]] = seen
        for k in range(pixels.n_components):
            # A shared component is that of the only position.
            of_component = {name: a[index % len(a), k] for name, a in arrays.items()}
            values = patch.reshape(len(x), -1).astype(np.float64)
            found[:, k, row, column] = kind.log_density(values, **of_component)
    return found


@st.composite
def cases(draw):
    """Windows, whether components are shared, their number, and images of any units."""
    size = draw(st.sampled_from([(1, 1), (2, 3), (5, 4), (3, 7)]))
    kernel = tuple(draw(st.integers(1, min(4, side))) for side in size)
    stride = tuple(draw(st.integers(1, k)) for k in kernel)
    windows = Windows((draw(st.integers(1, 3)), *size), kernel, stride)
    scale = 10.0 ** draw(st.integers(-3, 3))
    x = images(windows, seed=draw(st.integers(0, 1000)), shift=3 * scale, scale=scale)
    missing = draw(st.sampled_from([0.0, 0.0, 0.3, 0.9]))
    x[2:] = with_holes(x[2:], missing)  # every value has a variance
    return windows, draw(st.booleans()), draw(st.integers(1, 4)), x


# --- the contract -------------------------------------------------------------------------------


def test_every_kind_that_users_can_name_is_under_contract():
    assert set(specs.KINDS) <= set(KINDS)


@pytest.mark.parametrize("base", [Pixels, PixelDensity])
def test_what_a_kind_must_have_is_asked_for(base):
    with pytest.raises(TypeError, match="abstract"):
        type("Nothing", (base,), {})()


@every_kind
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_log_prob_equals_the_oracle(kind, dtype, tolerance):
    @settings(max_examples=40)
    @given(cases())
    def check(case):
        windows, shared, n_components, x = case
        pixels = make(kind, windows, x, shared=shared, n_components=n_components).to(dtype)
        x = x.to(dtype)
        with torch.no_grad():
            found = in_units(pixels(), x)
        assert found.dtype == dtype
        # The oracle sees what the layer sees: parameters and images rounded to its precision.
        expected = expected_log_prob(kind, pixels.double(), x.double())
        oracle.assert_close(found, expected, windows.n_values, tolerance)

    check()


@every_kind
@settings(max_examples=20)
@given(case=cases())
def test_a_promise_of_complete_values_changes_nothing(kind, case):
    windows, shared, n_components, x = case
    density = make(kind, windows, x, shared=shared, n_components=n_components)()
    x = images(windows)
    assert torch.equal(density.log_prob(x, complete=True), density.log_prob(x))
    expected = density.log_volume(x)
    torch.testing.assert_close(density.log_volume(x, complete=True).expand_as(expected), expected)


@every_kind
@every_window
def test_images_do_not_see_each_other(kind, windows):
    x = with_holes(images(windows))
    density = make(kind, windows, x)()
    for part in (slice(2, 3), slice(0, 4)):
        torch.testing.assert_close(density.log_prob(x)[part], density.log_prob(x[part]))
        torch.testing.assert_close(density.log_volume(x)[part], density.log_volume(x[part]))


def grid(values, n_points):
    """Regular grids (M, D) around some values (N, D), and the volume of their cells."""
    centre, reach = values.mean(0), 7 * values.std(0)
    axes = np.linspace(centre - reach, centre + reach, n_points)  # (n_points, D)
    points = np.stack([m.ravel() for m in np.meshgrid(*axes.T, indexing="ij")], 1)
    return points, np.prod(axes[1] - axes[0])


@every_kind
@pytest.mark.parametrize("windows", [FEATURES, Windows((1, 1, 3), (1, 3), (1, 3))])
def test_missing_values_are_integrated_out(kind, windows):
    """Over one, two, and all of three values: then the integral is one."""
    density = make(kind, windows, images(windows), n_components=2)()
    for k in range(2):
        each = torch.full((2000, 1, 1), k)
        draws = density.sample(each, 1.0, seeded()).flatten(1).detach().numpy()
        for missing in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
            x = draws[0].copy()
            x[missing] = np.nan
            points, volume = grid(draws[:, missing], 40)  # (M, missing)
            whole = np.tile(x, (len(points), 1))
            whole[:, missing] = points
            with torch.no_grad():
                found, filled = (
                    in_units(density, torch.from_numpy(v).view(-1, *windows.input_shape))[:, k]
                    for v in (x, whole)
                )
            # The trapezium rule is exact to many digits for densities wider than its step.
            assert found.exp().item() == pytest.approx(filled.exp().sum().item() * volume, 1e-9)


@every_kind
@pytest.mark.parametrize("shared", [True, False])
def test_draws_have_the_moments_of_the_density(kind, shared):
    """Those of each pixel alone, by numerical integration."""
    density = make(kind, TILES, images(TILES), shared=shared)()
    n = 10_000
    for k in range(3):
        components = torch.full((n, *TILES.grid), k)
        draws = density.sample(components, 1.0, seeded()).detach().flatten(1).numpy()  # (N, D)
        certain = torch.eye(3, dtype=torch.double)[k, None, :, None, None]
        means = density.mean(certain.expand(1, 3, *TILES.grid))
        for place, (drawn, mean) in enumerate(zip(draws.T, means.flatten(), strict=True)):
            points, volume = grid(drawn[:, None], 200)
            alone = np.full((len(points), draws.shape[1]), np.nan)
            alone[:, place] = points[:, 0]
            with torch.no_grad():
                x = torch.from_numpy(alone).view(-1, *TILES.input_shape)
                log_prob = in_units(density, x)[:, k].sum((1, 2))  # of windows with nothing: 0
            mass = log_prob.exp().numpy() * volume
            expected = mass @ points[:, 0]
            deviation = np.sqrt(mass @ points[:, 0] ** 2 - expected**2)
            assert mean.item() == pytest.approx(expected, abs=1e-9)
            assert abs(drawn.mean() - expected) < 5 * deviation / n**0.5
            assert drawn.std() == pytest.approx(deviation, rel=5 / (2 * n) ** 0.5)


@every_kind
@every_window
@pytest.mark.parametrize("shared", [True, False])
def test_the_mean_is_that_of_draws(kind, windows, shared):
    density = make(kind, windows, images(windows), shared=shared)()
    weights = torch.randn(1, 3, *windows.grid, generator=seeded()).double().softmax(1)
    n = 20_000
    by_window = weights[0].flatten(1).T  # (R, K)
    components = torch.multinomial(by_window, n, replacement=True, generator=seeded())  # (R, N)
    with torch.no_grad():
        draws = density.sample(components.T.view(n, *windows.grid), 1.0, seeded(1))
        (mean,) = density.mean(weights)
    assert ((draws.mean(0) - mean).abs() < 5 * draws.std(0) / n**0.5).all()


@every_kind
@every_window
@pytest.mark.parametrize("shared", [True, False])
def test_draws_follow_the_seed_and_without_noise_are_means(kind, windows, shared):
    density = make(kind, windows, images(windows), shared=shared)()
    components = torch.randint(3, (5, *windows.grid), generator=seeded())
    draws = [density.sample(components, 1.0, seeded(seed)) for seed in (0, 0, 1)]
    assert draws[0].shape == (5, *windows.input_shape)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    chosen = torch.nn.functional.one_hot(components, 3).movedim(-1, 1).double()
    torch.testing.assert_close(density.sample(components, 0.0, None), density.mean(chosen))


@every_kind
@settings(max_examples=30)
@given(case=cases(), seed=st.integers(0, 1000))
def test_units_change_a_log_density_by_their_volume_only(kind, case, seed):
    windows, shared, n_components, x = case
    pixels = make(kind, windows, x, shared=shared, n_components=n_components)
    # Features one by one where each has its own unit.
    plain, generator = windows.size == (1, 1), seeded(seed)
    shape = pixels.scale.shape if plain and len(pixels.scale.unique()) > 1 else ()
    factor = 10 ** (6 * torch.rand(shape, generator=generator, dtype=torch.double) - 3)
    shift = 5 * factor * pixels.scale * torch.randn(shape, generator=generator, dtype=torch.double)
    moved = factor * x + shift
    others = make(kind, windows, moved, shared=shared, n_components=n_components)
    others.load_state_dict({**others.state_dict(), **dict(pixels.named_parameters())})
    torch.testing.assert_close(others.scale, factor * pixels.scale)
    with torch.no_grad():
        density, other = pixels(), others()
        torch.testing.assert_close(other.log_prob(moved), density.log_prob(x), rtol=1e-8, atol=1e-8)
        seen = windows.unfold(~x.isnan() * factor.log())  # (R, N, D)
        volume = seen.sum(2).T.view(len(x), 1, *windows.grid)
        found, expected = in_units(other, moved), in_units(density, x) - volume
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@every_kind
@every_window
@pytest.mark.parametrize("shared", [True, False])
def test_start_does_not_depend_on_units(kind, windows, shared):
    pixels, others = (
        make(kind, windows, x, shared=shared, n_components=2)
        for x in (images(windows), 1e3 * images(windows) - 7e3)
    )
    for found, expected in zip(others.parameters(), pixels.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@every_kind
@every_window
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_gradients_are_exact(kind, windows, shared, share):
    x = images(windows, n_images=2)
    pixels = make(kind, windows, images(windows), shared=shared, n_components=2)
    names, parameters = zip(*pixels.named_parameters(), strict=True)

    def log_prob(x, *values):
        return in_units(functional_call(pixels, dict(zip(names, values, strict=True)), ()), x)

    x = (with_holes(x, share) if share else x).requires_grad_()
    assert torch.autograd.gradcheck(log_prob, (x, *parameters))


@every_kind
@settings(max_examples=30)
@given(case=cases())
def test_parameters_are_those_that_a_density_depends_on(kind, case):
    windows, shared, n_components, _ = case
    x = images(windows)
    pixels = make(kind, windows, x, shared=shared, n_components=n_components)
    log_prob = pixels().log_prob(x)
    upstream = torch.rand(log_prob.shape, generator=seeded(), dtype=torch.double)
    gradients = torch.autograd.grad((log_prob * upstream).sum(), list(pixels.parameters()))
    assert pixels.n_parameters == sum(int(gradient.count_nonzero()) for gradient in gradients)


@every_kind
@every_window
@pytest.mark.parametrize("shared", [True, False])
def test_arrays_can_be_read_and_set(kind, windows, shared):
    x = images(windows)
    pixels, other = (make(kind, windows, x, shared=shared, seed=seed) for seed in (0, 1))
    n_mixtures = 1 if shared else windows.n_windows
    found, wanted = pixels.arrays(), other.arrays()
    for values in found.values():
        assert values.shape in ((n_mixtures, 3, windows.n_values), (n_mixtures, 3))
        assert not values.requires_grad
    before = pixels().log_prob(x)
    for name, values in found.items():
        pixels.assign(name, values)
    torch.testing.assert_close(pixels().log_prob(x), before)
    for name, values in wanted.items():
        pixels.assign(name, values)
        found[name] = values
        torch.testing.assert_close(pixels.arrays(), found)  # the others stay as they are
    torch.testing.assert_close(pixels().log_prob(x), other().log_prob(x))


@every_kind
@every_window
@pytest.mark.parametrize("shared", [True, False])
def test_start_is_reproducible(kind, windows, shared):
    x = with_holes(images(windows, n_images=20))
    state = torch.random.get_rng_state()
    first, same, other = (
        make(kind, windows, x, shared=shared, seed=seed).state_dict() for seed in (3, 3, 4)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert any((first[name] != other[name]).any() for name in first)
    assert all(
        values.isfinite().all() for name, values in first.items() if name not in ("ends", "edges")
    )


@every_kind
@every_window
def test_a_state_holds_all_that_a_density_needs(kind, windows):
    x = images(windows)
    pixels = make(kind, windows, x)
    other = kind.make(windows, 3, (1, 1)).double()
    other.load_state_dict(pixels.state_dict())
    assert torch.equal(in_units(other(), x), in_units(pixels(), x))
    torch.testing.assert_close(other.arrays(), pixels.arrays(), rtol=0, atol=0)


@every_kind
@pytest.mark.parametrize("far", [0.0, 1e6])
@pytest.mark.parametrize("windows", [FEATURES, TILES])
def test_parameters_stay_in_their_bounds(kind, windows, far):
    """Of images all alike, which ask for no variance, and of images far from those of the units."""
    pixels = make(kind, windows, images(windows, n_images=20), reg_covar=0.3)
    x = images(windows, n_images=20, shift=3 + far, scale=1e-3 + far)
    optimizer = torch.optim.Adam(pixels.parameters(), lr=1.0, maximize=True)
    for _ in range(100):
        optimizer.zero_grad()
        pixels().log_prob(x).logsumexp(1).mean().backward()
        optimizer.step()
        kind.constrain(pixels)
        arrays = pixels.arrays()
        assert all(values.isfinite().all() for values in arrays.values())
        assert arrays.get("covariances", torch.ones(1)).min() >= 0.3 * (1 - 1e-9)
    assert in_units(pixels(), x).isfinite().all()


# --- Gaussians ----------------------------------------------------------------------------------

GAUSSIANS = {name: kind for name, kind in KINDS.items() if kind.log_density is gaussian}
every_gaussian = pytest.mark.parametrize("kind", GAUSSIANS.values(), ids=GAUSSIANS)


@st.composite
def gaussians(draw):
    """A density of random Gaussians in units of their own, and images for it."""
    scale = 10.0 ** draw(st.integers(-3, 3))
    size = (draw(st.integers(2, 7)), draw(st.integers(2, 7)))
    channels = draw(st.integers(1, 3))
    kernel = tuple(min(draw(st.integers(1, 4)), side) for side in size)
    stride = tuple(draw(st.integers(1, k)) for k in kernel)
    if draw(st.booleans()):
        kernel = size
    windows = Windows((channels, *size), kernel, stride)
    n_components, spherical = draw(st.integers(1, 6)), draw(st.booleans())
    lead = (1 if draw(st.booleans()) else windows.n_windows, n_components)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    means = scale * rng.normal(size=(*lead, windows.n_values))
    roots = rng.uniform(0.5, 4.0, (*lead, 1 if spherical else windows.n_values)) / scale
    x = scale * rng.normal(size=(3, channels, *size))
    parameters = (torch.from_numpy(values).requires_grad_() for values in (means, roots))
    return GaussianDensity(*parameters, windows), torch.from_numpy(x)


def oracle_scores(density, x):
    windows = density.windows
    lead = windows.grid if len(density.means) > 1 else (1, 1)

    def arrange(values):  # (P, K, D) with D channel first, to (rows, columns, K, D) channel last
        values = np.broadcast_to(values.detach().numpy(), density.means.shape)
        n_mixtures, n_components, _ = values.shape
        by_channel = values.reshape(n_mixtures, n_components, windows.input_shape[0], -1)
        values = np.moveaxis(by_channel, 2, 3).reshape(*lead, n_components, -1)
        return np.broadcast_to(values, (*windows.grid, *values.shape[2:]))

    means, variances = arrange(density.means), arrange(density.root_precisions) ** -2.0
    weights = np.ones(means.shape[:3])
    images = np.moveaxis(x.numpy(), 1, -1)
    scores = oracle.window_scores(images, weights, means, variances, windows.kernel, windows.stride)
    return np.moveaxis(scores, -1, 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_fused_scores_equal_the_oracle(dtype, tolerance):
    @given(gaussians())
    def check(case):
        density, x = case
        parameters = [p.detach().to(dtype) for p in (density.means, density.root_precisions)]
        found = GaussianDensity(*parameters, density.windows).log_prob(x.to(dtype))
        # The oracle sees what the layer sees: parameters and images rounded to its precision.
        rounded = GaussianDensity(*(p.double() for p in parameters), density.windows)
        expected = oracle_scores(rounded, x.to(dtype).double())
        oracle.assert_close(found, expected, density.windows.n_values, tolerance)

    check()


@given(gaussians())
def test_gradients_of_the_fused_score_are_exact(case):
    density, x = case
    x, means, roots = x[:1], density.means, density.root_precisions.detach()
    direction = torch.randn(means.shape, generator=seeded(), dtype=torch.double) / roots.max()

    def value(means):
        return GaussianDensity(means, roots, density.windows).log_prob(x).sum()

    (gradient,) = torch.autograd.grad(value(means), means)
    with torch.no_grad():
        step = 1e-6
        up, down = value(means + step * direction), value(means - step * direction)
    found = ((up - down) / (2 * step)).item()
    expected = (gradient * direction).sum().item()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


@given(gaussians(), st.booleans())
def test_gradients_equal_those_of_plain_differences(case, some_missing):
    density, x = case
    missing = torch.rand(x.shape, generator=seeded()) < 0.3
    observed = ~missing if some_missing else torch.ones_like(missing)
    inputs = [density.means, density.root_precisions, x.requires_grad_()]
    found = density.log_prob(torch.where(observed, x, torch.nan))  # (N, K, rows, columns)
    # What is past the border is like what is missing: it has no part in the density.
    seen, values = (
        density.windows.unfold(v.to(x))[:, :, None] for v in (observed, x)
    )  # (R, N, 1, D)
    means, roots = (p[:, None] for p in inputs[:2])
    whitened = (values - means) * roots  # (R, N, K, D)
    terms = roots.log() - (whitened.square() + np.log(2 * np.pi)) / 2
    naive = (terms * seen).sum(3).permute(1, 2, 0).reshape(found.shape)  # (N, K, rows, columns)
    upstream = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view(found.shape)
    expected = torch.autograd.grad((naive * upstream).sum(), inputs)
    for gradient, other in zip(
        torch.autograd.grad((found * upstream).sum(), inputs), expected, strict=True
    ):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-9 * other.abs().max())


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_temperature_is_a_factor_of_variances(rng, spherical, temperature):
    windows = Windows((2, 4, 4), (2, 2), (2, 2))
    means = torch.from_numpy(rng.normal(size=(1, 3, 8)))
    roots = torch.from_numpy(rng.uniform(0.5, 4, (1, 3, 1 if spherical else 8)))
    n = 10_000
    components = torch.ones(n, 2, 2, dtype=torch.int64)  # the same everywhere
    draws = GaussianDensity(means, roots, windows).sample(components, temperature, seeded()).numpy()
    mean, deviation = (
        np.tile(np.broadcast_to(p[0, 1], 8).reshape(2, 2, 2), (1, 2, 2))
        for p in (means.numpy(), temperature**0.5 / roots.numpy())
    )
    assert (np.abs(draws.mean(0) - mean) < 5 * deviation / n**0.5).all()
    np.testing.assert_allclose(draws.std(0), deviation, rtol=5 / (2 * n) ** 0.5)


@every_gaussian
@pytest.mark.parametrize("windows", [FEATURES, TILES])
def test_the_floor_of_variances_gives_way_to_those_that_are_set(kind, windows):
    x = images(windows)
    pixels = make(kind, windows, x, reg_covar=0.03)
    covariances = pixels.arrays()["covariances"].clone()
    covariances[0, 1] = 1e-4
    pixels.assign("covariances", covariances)
    torch.testing.assert_close(pixels.arrays()["covariances"], covariances)
    assert in_units(pixels(), x).isfinite().all()


@every_gaussian
def test_precise_features_in_single_precision(kind):
    x = images(FEATURES, n_images=20).float()
    pixels = make(kind, FEATURES, x)
    pixels.assign("covariances", torch.full_like(pixels.arrays()["covariances"], 1e-6))
    near = pixels.arrays()["means"][0] + 1e-3 * torch.randn(3, 3, generator=seeded())
    near = near.view(3, 3, 1, 1)
    with torch.no_grad():  # training may lose more
        found = in_units(pixels(), near).diagonal()
    expected = expected_log_prob(kind, pixels.double(), near.double()).diagonal()
    oracle.assert_close(found, expected, 3, 1e-2)


@every_gaussian
def test_units_of_other_images_do_not_fit(kind):
    pixels = make(kind, TILES, images(TILES))
    for name, values in (("scale", torch.ones(1, 8, 8)), ("min_variance", torch.ones(3))):
        with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
            pixels.load_state_dict({**pixels.state_dict(), name: values})


def test_clipped_precisions_stay_positive_and_below_their_cap():
    windows = Windows((1, 4, 4), (2, 2), (2, 2))
    pixels = Clipped(windows, 3, (1, 1))
    with torch.no_grad():
        pixels.roots.copy_(torch.tensor([-5.0, 0.0, 1e9])[None, :, None].expand(1, 3, 4))
    pixels.constrain()
    assert (pixels.root_precisions > 0).all()
    assert pixels.root_precisions.max().item() == pytest.approx(20**0.5)
    x = torch.rand(2, 1, 4, 4, generator=seeded())
    assert pixels().log_prob(x).isfinite().all()

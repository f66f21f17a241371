"""Pixels at their own resolution: atoms, the floor that falls, bits, and draws like the images."""

import itertools
import re

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.metrics import bits_per_dim
from skdcgmm.model.pixels.atoms import Atoms, _log_normal_cdf
from skdcgmm.model.windows import Windows
from tests import oracle

TREE = [ConvGMM(3, 1, shared=False), ConvGMM(2)]
FLAT = [ConvGMM(3)]


def whole(values, n_levels=256):
    """Whole numbers of a range, many of them at its ends."""
    return np.clip(np.round(values), 0, n_levels - 1).astype(np.uint8)


def two_pixels(n_images=300, n_levels=256, seed=0):
    """Images of two pixels, in two groups, of which many are black or white."""
    rng = np.random.default_rng(seed)
    groups = rng.choice([-0.1, 0.4, 1.0], (n_images, 1), p=[0.4, 0.4, 0.2])
    return whole(n_levels * (groups + 0.15 * rng.normal(size=(n_images, 2))), n_levels)


def all_images(n_levels, n_pixels=2):
    return np.array(list(itertools.product(range(n_levels), repeat=n_pixels)))


def fitted(X, layers=TREE, pixels="atoms", **parameters):
    size = (1, X.shape[1])
    est = DCGMMEstimator(
        layers=layers, image_shape=size, pixels=pixels, max_epochs=20, random_state=0, **parameters
    )
    return est.fit(X)


# --- the density --------------------------------------------------------------------------------


def started(ends, n_images=50, seed=0):
    """Tiles of images with some ends, in double precision, moved from their start."""
    windows = Windows((2, 3, 3), (2, 2), (2, 2))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_images, 2, 3, 3, generator=generator, dtype=torch.double)
    if "low" in ends:
        x = x.clamp_min(-0.3)
    if "high" in ends:
        x[:, 1] = x[:, 1].clamp_max(0.5)
    pixels = Atoms(windows, 3, windows.grid).double()
    count = torch.full(x.shape[1:], float(n_images), dtype=torch.double)
    pixels.set_units(count, x.mean(0), x.var(0, correction=0), x, None)
    pixels.start(x, generator)
    with torch.no_grad():
        for parameter in pixels.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.double)
            parameter += 0.3 * noise
    return pixels, x


def expected_log_prob(pixels, x):
    """Log density of windows, value by value, in units of the images."""
    arrays = {name: values.numpy() for name, values in pixels.arrays().items()}  # (P, K, D)
    padded = np.full((len(x), 2, 4, 4), np.nan)
    padded[:, :, :3, :3] = x.numpy()
    low, high = pixels.ends.flatten(1).numpy().repeat(4, 1)  # (D,)
    edges = pixels.edges.flatten(1).numpy().repeat(4, 1)
    found = np.empty((len(x), 3, 2, 2))
    for index, (row, column) in enumerate(itertools.product(range(2), repeat=2)):
        patch = padded[:, :, 2 * row :, 2 * column :][:, :, :2, :2].reshape(len(x), -1)
        for k in range(3):
            deviations = np.sqrt(arrays["covariances"][index, k])
            latent = norm(arrays["means"][index, k], deviations)
            values = latent.logpdf(patch)
            values = np.where(patch == low, latent.logcdf(edges[0]), values)
            values = np.where(patch == high, latent.logsf(edges[1]), values)
            found[:, k, row, column] = np.nansum(values, 1)
    return found


@pytest.mark.parametrize("ends", ["", "low", "high", "low high"])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_log_prob_equals_the_oracle(ends, share):
    pixels, x = started(ends)
    x = torch.where(
        torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < share, torch.nan, x
    )
    with torch.no_grad():
        density = pixels()
        found = density.log_prob(x) - density.log_volume(x)[:, None]
    oracle.assert_close(found, expected_log_prob(pixels, x), 8, 1e-10)
    assert int(pixels.ends.isfinite().sum()) == 2 * ("low" in ends) + ("high" in ends)


@pytest.mark.parametrize("ends", ["low", "low high"])
def test_draws_have_the_atoms_and_moments_of_the_density(ends):
    pixels, _ = started(ends)
    n = 20_000
    for k in range(3):
        with torch.no_grad():
            density = pixels()
            components = torch.full((n, 2, 2), k)
            draws = density.sample(components, 1.0, torch.Generator().manual_seed(0))
            certain = torch.eye(3, dtype=torch.double)[k, None, :, None, None].expand(1, 3, 2, 2)
            (mean,) = density.mean(certain)
            still = density.sample(components[:1], 0.0, None)
        assert ((draws.mean(0) - mean).abs() < 5 * draws.std(0) / n**0.5).all()
        torch.testing.assert_close(still[0], mean)
        below, above = density._standardised(
            density.means, density.root_precisions, density.edges
        )  # (P, K, D)
        for end, z in zip(pixels.ends, (below, -above), strict=True):
            share = (draws == end).double().mean(0)
            wanted = density.windows.fold_mean(torch.special.ndtr(z)[:, k, None])[0]
            assert ((share - wanted).abs() < 5 * (wanted / n).sqrt() + 1e-12).all()


def test_ends_and_what_is_between_have_probability_one(rng):
    """Of each channel, whose end has all that rounds to it; one has one value, one has two."""
    x = whole(rng.normal(100, 200, (300, 3))).astype(np.float64)
    x[:, 1], x[:, 2] = 7, np.where(x[:, 2] > 100, 255, 254)
    x = torch.from_numpy(x)[..., None, None]
    pixels = Atoms(Windows((3, 1, 1), (1, 1), (1, 1)), 1, (1, 1)).double()
    count = torch.full((3, 1, 1), 300.0, dtype=torch.double)
    pixels.set_units(count, x.mean(0), x.var(0, correction=0), x, None)
    pixels.start(x, torch.Generator().manual_seed(0))
    assert pixels.edges.flatten().tolist() == [0.5, 7, 254.5, 254.5, 7, 254.5]

    def probability(channel, values):
        alone = torch.full((len(values), 3, 1, 1), torch.nan, dtype=torch.double)
        alone[:, channel, 0, 0] = torch.as_tensor(values, dtype=torch.double)
        with torch.no_grad():
            density = pixels()
            return (density.log_prob(alone) - density.log_volume(alone)[:, None]).exp().flatten()

    between = np.linspace(0.5, 254.5, 20_001)[1:-1]
    total = probability(0, [0, 255]).sum() + probability(0, between).sum() * 254 / 20_000
    assert total == pytest.approx(1, abs=1e-3)
    assert probability(0, [0]) == probability(0, [0.5])
    for channel, values in ((1, [7, 8]), (2, [254, 255])):
        assert probability(channel, values).sum() == pytest.approx(1)


@pytest.mark.parametrize("mean", [0.0, 1e4, 1e5])
def test_gradients_are_finite_far_from_ends_and_without_any(mean, rng):
    X = (mean + rng.normal(size=(300, 8, 8))).astype(np.float32)
    X[:, :2] = mean + 0.7  # which draws their variance to the floor
    est = DCGMMEstimator(pixels="atoms", max_epochs=60, random_state=0)
    assert np.isfinite(est.fit(X).score(X))


def test_logarithms_and_gradients_of_tails_hold_in_single_precision():
    z = torch.tensor([-3e6, -1e4, -300.0, -30.0, -5.1, -4.9, 0.0, 3.0], requires_grad=True)
    found = _log_normal_cdf(z)
    (slope,) = torch.autograd.grad(found.sum(), z)
    at = z.detach().double().numpy()
    np.testing.assert_allclose(found.detach(), norm.logcdf(at), rtol=1e-5, atol=1e-7)
    with np.errstate(under="ignore"):
        expected = np.exp(norm.logpdf(at) - norm.logcdf(at))
    expected[at < -1e3] = -at[at < -1e3]
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-7)


def test_single_precision_knows_sharp_pixels():
    """To a hundredth of a nat of each pixel, however small the variances."""
    X = two_pixels().astype(np.float32)
    est = fitted(X)
    scores = est.score_samples(X)
    assert scores.dtype == np.float32
    x = torch.from_numpy(X.astype(np.float64)).view(-1, 1, 1, 2)
    with torch.no_grad():
        expected = est._stack.double()().log_prob(x)
    np.testing.assert_allclose(scores, expected, atol=0.02)


def test_ends_are_found_where_many_pixels_are():
    X = two_pixels()
    assert fitted(X)._stack.ends.flatten().tolist() == [0, 255]
    assert fitted(whole(X / 2 + 60))._stack.ends.isfinite().sum() == 2
    rng = np.random.default_rng(0)
    assert not fitted(rng.normal(size=(300, 2)))._stack.ends.isfinite().any()


def test_the_floor_falls_to_the_resolution():
    X = two_pixels()
    for factor in (1, 1 / 255):
        pixels = fitted(X * factor)._stack.pixels
        floor = pixels.min_variance.double() * pixels.scale.flatten()[0] ** 2
        np.testing.assert_allclose(floor, 0.25 * factor**2, rtol=1e-5)
        falling = []
        for done in (0.0, 0.1, 0.3, 0.4, 1.0):
            pixels.anneal(done)
            falling.append(pixels.min_variance.mean().item())
            assert pixels.least_variance == pytest.approx(falling[-1], rel=1e-5)
        assert falling[0] == pytest.approx(0.05, rel=1e-5)  # half of the variance of the channel
        assert falling[0] > falling[1] > falling[2] > falling[3] == falling[4]
    fixed = fitted(X, reg_covar=30.0)
    assert fixed.covariances_["convgmm1"].min() >= 30 * (1 - 1e-6)


def test_units_change_nothing_but_the_volume_of_what_is_between():
    X = two_pixels().astype(np.float64)
    one, other = fitted(X), fitted(X / 255)
    np.testing.assert_array_equal(one.predict(X), other.predict(X / 255))
    n_between = ((X > 0) & (X < 255)).sum(1)
    expected = one.score_samples(X) + n_between * np.log(255)
    np.testing.assert_allclose(other.score_samples(X / 255), expected, rtol=1e-6, atol=1e-6)


def test_it_is_the_same_after_saving(tmp_path):
    X = two_pixels()
    est = fitted(X)
    est.save(tmp_path / "model")
    again = DCGMMEstimator.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_samples(X), est.score_samples(X))
    np.testing.assert_array_equal(again.bits_per_dim(X), est.bits_per_dim(X))
    assert again.sample(5)[0].dtype == np.uint8


# --- bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [TREE, FLAT], ids=["tree", "flat"])
@pytest.mark.parametrize("pixels", ["atoms", "tiles"])
@pytest.mark.parametrize("n_levels", [2, 5, 256])
def test_probabilities_of_all_images_sum_to_one(layers, pixels, n_levels):
    est = fitted(two_pixels(n_levels=n_levels).astype(np.float64), layers, pixels)
    bits = est.bits_per_dim(all_images(n_levels), n_levels=n_levels)
    assert np.exp2(-2 * bits).sum() == pytest.approx(1, abs=1e-9)


def test_probabilities_sum_to_one_where_ends_are_not_those_of_the_range():
    est = fitted(whole(two_pixels(n_levels=20) + 5.0, 25), pixels="atoms")
    bits = est.bits_per_dim(all_images(32), n_levels=32)
    assert np.exp2(-2 * bits.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_probabilities_sum_to_one_past_borders_and_over_channels(shared):
    rng = np.random.default_rng(0)
    X = whole(4 * rng.uniform(-0.3, 1.3, (100, 1, 3, 2)), 4)
    layers = [ConvGMM(3, (1, 2), shared=shared), ConvGMM(2)]
    est = DCGMMEstimator(layers=layers, pixels="atoms", max_epochs=5, random_state=0).fit(X)
    bits = est.bits_per_dim(all_images(4, 6).reshape(-1, 1, 3, 2), n_levels=4)
    assert np.exp2(-6 * bits.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("pixels", ["atoms", "tiles"])
def test_missing_pixels_take_no_bits(pixels):
    est = fitted(two_pixels(n_levels=8).astype(np.float64), pixels=pixels)
    one = np.stack([np.full(8, 3.0), np.arange(8.0)], 1)
    alone = est.bits_per_dim(np.array([[3.0, np.nan]]), n_levels=8)
    together = est.bits_per_dim(one, n_levels=8)
    assert np.exp2(-alone[0]) == pytest.approx(np.exp2(-2 * together).sum(), rel=1e-9)


def test_noise_bounds_where_nothing_is_integrated():
    """Of each image, over many draws of the noise, never below what integration says."""
    X = two_pixels(n_levels=32).astype(np.float64)
    est = fitted(X, pixels="tiles")
    levels = np.arange(1.0, 30.0)
    some = np.stack([levels, levels[::-1]], 1)
    exact = est.bits_per_dim(some, n_levels=32)

    class Density:
        def score_samples(self, X):
            return est.score_samples(X)

    repeated = np.repeat(some, 500, 0)
    noisy = bits_per_dim(Density(), repeated, n_levels=32, random_state=0).reshape(-1, 500)
    assert (noisy.mean(1) > exact - 5 * noisy.std(1) / 500**0.5).all()
    assert abs(noisy.mean() - exact.mean()) < 0.05  # the variances are far above a step


def test_bits_of_mixtures_of_scikit_learn():
    X = two_pixels(n_levels=32, n_images=500)
    X = X[(X > 0).all(1) & (X < 31).all(1)]
    mixture = GaussianMixture(2, reg_covar=1.0, random_state=0).fit(X.astype(float))
    bits = bits_per_dim(mixture, all_images(32), n_levels=32, random_state=0)
    assert np.exp2(-2 * bits).sum() == pytest.approx(1, abs=0.1)  # but for tails, and the noise
    in_a_pipeline = make_pipeline("passthrough", mixture)
    np.testing.assert_array_equal(
        bits_per_dim(in_a_pipeline, X, n_levels=32, random_state=0),
        bits_per_dim(mixture, X, n_levels=32, random_state=0),
    )
    scaled = make_pipeline(MinMaxScaler(), GaussianMixture(2)).fit(X)
    with pytest.raises(ValueError, match="must not change X"):
        bits_per_dim(scaled, X, n_levels=32)
    est = fitted(X.astype(np.float64), pixels="tiles")
    np.testing.assert_array_equal(bits_per_dim(est, X), est.bits_per_dim(X))


@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
def test_a_mixture_has_the_bits_of_the_stack_that_equals_it(covariance_type):
    X = two_pixels().astype(np.float64)
    make = {"covariance_type": covariance_type, "reg_covar": 30.0, "random_state": 0}
    mixture = GaussianMixture(3, **make).fit(X)
    est = fitted(X, [ConvGMM(3, covariance_type=covariance_type)], "tiles")
    est.weights_ = {"convgmm1": mixture.weights_}
    est.means_ = {"convgmm1": mixture.means_}
    est.covariances_ = {"convgmm1": mixture.covariances_}
    np.testing.assert_allclose(bits_per_dim(mixture, X), est.bits_per_dim(X), rtol=1e-9)
    for units in (X.astype(np.uint8), X):
        assert np.array_equal(bits_per_dim(mixture, units), bits_per_dim(mixture, X))


@pytest.mark.parametrize(("low", "high"), [(0, 255), (60, 100)])
def test_bits_do_not_depend_on_units(low, high):
    X = two_pixels().clip(low, high)
    bits = fitted(X.astype(np.float64)).bits_per_dim(X)
    np.testing.assert_allclose(bits, fitted(X / 255).bits_per_dim(X / 255), rtol=1e-6)
    single = (X / 255).astype(np.float32)
    np.testing.assert_allclose(bits, fitted(single).bits_per_dim(single), atol=0.02)


def test_levels_beyond_an_end_cost_next_to_nothing():
    X = two_pixels().clip(60, 100).astype(np.float64)
    bits = fitted(X).bits_per_dim(X)
    np.testing.assert_allclose(bits, fitted(X - 60).bits_per_dim(X - 60, n_levels=41), atol=1e-3)


def test_a_pyramid_has_bits():
    X = np.round(np.random.default_rng(0).normal(128, 20, (100, 16))).clip(0, 255)
    est = DCGMMEstimator(
        layers=[ConvGMM(2, 2), ConvGMM(2)], image_shape=(4, 4), pixels="pyramid", max_epochs=5,
        random_state=0,
    ).fit(X)  # fmt: skip
    bits = est.bits_per_dim(X)
    expected = -est.score_samples(X) / 16 / np.log(2)
    np.testing.assert_allclose(bits, expected, atol=0.05)  # the variances are far above a step


@pytest.mark.parametrize("values", [[[0.5, 3.0]], [[-1.0, 3.0]], [[256.0, 3.0]], [[0.1234, 0.5]]])
def test_what_is_no_whole_number_in_the_range_has_no_bits(values):
    est = fitted(two_pixels().astype(np.float64))
    with pytest.raises(ValueError, match=re.escape("whole numbers from 0 to 255")):
        est.bits_per_dim(np.array(values))


# --- draws, and the choice ----------------------------------------------------------------------


@pytest.mark.parametrize("pixels", ["atoms", "tiles", "pyramid"])
def test_draws_are_images_as_those_of_fit(pixels):
    rng = np.random.default_rng(0)
    X = whole(255 * rng.uniform(-0.5, 1.5, (200, 4, 4)))
    est = DCGMMEstimator(
        layers=[ConvGMM(2, 2), ConvGMM(2)], pixels=pixels, max_epochs=100, random_state=0
    ).fit(X)
    with_holes = X.astype(np.float32)
    with_holes[:, :2] = np.nan
    for drawn in (est.sample(200)[0], est.sample_like(X)[:, 0], est.sample(3, temperature=0)[0]):
        assert drawn.dtype == np.uint8
        assert drawn.shape[1:] == (4, 4)
    filled = est.impute(with_holes, method="sample")
    assert filled.min() >= 0
    assert filled.max() <= 255
    np.testing.assert_array_equal(filled, np.round(filled))
    # As many ends as the images have.
    drawn = est.sample(2000)[0]
    for end in (0, 255):
        share, wanted = (np.mean(images == end) for images in (drawn, X))
        assert share == pytest.approx(wanted, abs=0.03 if pixels == "atoms" else 0.25)


def test_draws_of_fractions_are_as_they_are():
    X = np.random.default_rng(0).normal(size=(200, 2))
    drawn, _ = fitted(X).sample(1000)
    assert drawn.dtype == np.float64
    assert drawn.min() < X.min()
    assert drawn.max() > X.max()


def test_a_channel_that_does_not_vary_does_not_choose():
    rng = np.random.default_rng(0)
    place = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1) - 3.5
    slopes = np.einsum("hwa,na->nhw", place, rng.normal(size=(200, 2)))
    light = whole(rng.uniform(60, 190, (200, 1, 1)) + slopes)
    opaque = np.stack([light, np.full_like(light, 255)], -1)
    est = DCGMMEstimator(max_epochs=1, random_state=0).fit(opaque)
    assert est._stack.kind == "pyramid"
    assert max(est.pixels_bits_.values()) < 8  # as many as are stored


def test_held_out_bits_choose_the_kind_of_pixels():
    """Atoms of dots, black and white; a pyramid of light that falls on all of an image."""
    rng = np.random.default_rng(0)
    dots = whole(255 * rng.uniform(-0.5, 1.5, (200, 8, 8)))
    place = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1) - 3.5
    slopes = np.einsum("hwa,na->nhw", place, rng.normal(size=(200, 2)))
    light = rng.uniform(60, 190, (200, 1, 1)) + slopes
    make = {"max_epochs": 1, "random_state": 0}
    for X, wanted in ((dots, "atoms"), (whole(light), "pyramid")):
        est = DCGMMEstimator(**make).fit(X)
        assert est._stack.kind == wanted
        assert min(est.pixels_bits_, key=est.pixels_bits_.get) == wanted
        assert "held-out bits" in est.summary()
        assert DCGMMEstimator(**make).fit(X).pixels_bits_ == est.pixels_bits_
        assert DCGMMEstimator(2, **make).fit(X)._stack.kind == "pyramid"
        assert DCGMMEstimator(pixels="tiles", **make).fit(X).pixels_bits_ == {}
    few = DCGMMEstimator(**make).fit(dots[:50])
    assert (few._stack.kind, few.pixels_bits_) == ("pyramid", {})
    holes = dots.astype(np.float32)
    holes[0, 0] = np.nan
    assert set(DCGMMEstimator(**make).fit(holes).pixels_bits_) == {"atoms", "tiles"}


def test_atoms_need_images_one_density_and_variances_of_their_own():
    X = two_pixels()
    with pytest.raises(ValueError, match="plain features"):
        DCGMMEstimator(pixels="atoms").fit(X)
    with pytest.raises(ValueError, match="objective='joint'"):
        DCGMMEstimator(pixels="atoms", objective="layerwise", image_shape=(1, 2)).fit(X)
    with pytest.raises(ValueError, match="convgmm1__covariance_type must be 'diag'"):
        fitted(X, [ConvGMM(2, covariance_type="spherical")])

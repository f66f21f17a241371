"""Pyramids: an orthonormal basis, one exact density in it, and what does not vary means nothing."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator, DCGMMOutlierDetector, MaxPool
from skdcgmm.model.pixels.pyramid import Pyramid
from skdcgmm.model.specs import auto, lay_out, name_layers
from skdcgmm.model.stack import Stack
from skdcgmm.model.tables import Generation
from tests import oracle

UNSHARED = {"shared": False}
# Layers and image shape (channels, height, width): shared or not, borders, pooling, channels, one
# layer, windows of one pixel, windows of half an image.
SMALL = [
    ([ConvGMM(3, 2, **UNSHARED), ConvGMM(2)], (1, 4, 4)),
    ([ConvGMM(3, 2), ConvGMM(2)], (1, 3, 4)),
    ([ConvGMM(2, (2, 3), **UNSHARED), ConvGMM(2, (2, 1)), ConvGMM(2)], (1, 3, 4)),
    ([ConvGMM(2, 2), MaxPool((1, 2)), ConvGMM(2, (1, 1), **UNSHARED), ConvGMM(2)], (1, 2, 8)),
    ([ConvGMM(2, 2, **UNSHARED), ConvGMM(3)], (3, 3, 2)),
    ([ConvGMM(2, 1), ConvGMM(2)], (2, 2, 1)),
    ([ConvGMM(3)], (2, 2, 3)),
]
every_stack = pytest.mark.parametrize(("layers", "shape"), SMALL)


def images(shape, n_images=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    light = torch.randn(n_images, 1, 1, 1, generator=generator, dtype=torch.double)
    noise = torch.randn(n_images, *shape, generator=generator, dtype=torch.double)
    return 3 + 2 * light + noise


def started(layers, x, seed=0, reg_covar=None):
    """A pyramid in the units of images, started at random."""
    stack = Stack(lay_out(name_layers(layers), tuple(x.shape[1:]), tiling=True), pixels="pyramid")
    stack = stack.double()
    count = torch.full(x.shape[1:], float(len(x)), dtype=torch.double)
    stack.set_units(count, x.mean(0), x.var(0, correction=0), x, reg_covar)
    stack.start(x, torch.Generator().manual_seed(seed))
    return stack


class Enumeration:
    """Every path through a pyramid: its probability, and its Gaussian of all pixels."""

    def __init__(self, tree):
        self.tree = tree
        sizes = [e.windows.grid for e in tree._emissions]
        n_components = [e.means.shape[1] for e in tree._emissions]
        places = [(i, r, c) for i, (h, w) in enumerate(sizes) for r in range(h) for c in range(w)]
        self.paths, self.log_weights, means, covariances = [], [], [], []
        for values in itertools.product(*(range(n_components[i]) for i, _, _ in places)):
            path = [np.zeros(size, dtype=int) for size in sizes]
            for (i, r, c), value in zip(places, values, strict=True):
                path[i][r, c] = value
            self.paths.append(path)
            self.log_weights.append(self._log_weight(path))
            mean, covariance = self._gaussian(path)
            means.append(mean)
            covariances.append(covariance)
        self.means, self.covariances = np.stack(means), np.stack(covariances)
        self.log_weights = np.array(self.log_weights)

    def _log_weight(self, path):
        total = float(self.tree.log_weights[path[-1][0, 0]])
        for i, level in enumerate(self.tree.levels):
            height, width = level.kernel
            for (row, column), below in np.ndenumerate(path[i]):
                above = path[i + 1][row // height, column // width]
                total += float(level.tables[row, column, above, below].log())
        return total

    def _gaussian(self, path):
        coefficients, deviations = [], []
        for density, of_layer in zip(self.tree._emissions, path, strict=True):
            chosen = torch.from_numpy(of_layer).flatten()
            window = torch.arange(len(chosen)) % len(density.means)
            shape = density.windows.input_shape
            mean = density.means[window, chosen].T.reshape(shape)
            root = density.root_precisions[window, chosen].T.reshape(shape)
            inside = torch.ones(shape) if density.inside is None else density.inside
            coefficients.append((mean * density.scale + density.shift)[None])
            deviations.append(inside * density.scale / root)
        mean = self.tree.basis.join(coefficients).flatten()
        columns = []
        for i, deviation in enumerate(deviations):
            for place in deviation.nonzero():
                parts = [torch.zeros_like(d)[None] for d in deviations]
                parts[i][0][tuple(place)] = deviation[tuple(place)]
                columns.append(self.tree.basis.join(parts).flatten())
        root = torch.stack(columns, 1)
        return mean.numpy(), (root @ root.T).numpy()

    def log_probs(self, x):
        """Log of weight times density by image and path; of what is observed."""
        rows = x.flatten(1).numpy()
        seen = ~np.isnan(rows[0])
        return self.log_weights + np.stack(
            [
                multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(
                    rows[:, seen]
                )
                for mean, covariance in zip(self.means, self.covariances, strict=True)
            ],
            1,
        ).reshape(len(rows), -1)

    def moments(self):
        weights = np.exp(self.log_weights)
        mean = weights @ self.means
        centred = self.means - mean
        within = np.einsum("p,pij->ij", weights, self.covariances)
        return mean, within + np.einsum("p,pi,pj->ij", weights, centred, centred)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 13, 9), (2, 1, 7), (4, 5, 5)])
@pytest.mark.parametrize("kernels", [((4, 4), (2, 2), (4, 4)), ((3, 2), (1, 2), (9, 9)), ((1, 1),)])
def test_the_basis_is_orthonormal_and_its_inverse_is_its_transpose(shape, kernels):
    # The last window sees what is left, also where it is smaller than the kernel.
    pyramid = Pyramid(shape, kernels)
    x = images(shape, 5)
    parts = pyramid.split(x)
    assert [tuple(part.shape[1:]) for part in parts] == [
        pyramid.shape(level) for level in range(len(kernels))
    ]
    if parts[-1].shape[2:] == (1, 1):
        torch.testing.assert_close(pyramid.join(parts), x)
        lengths = sum(part.square().sum((1, 2, 3)) for part in parts)
        torch.testing.assert_close(lengths, x.square().sum((1, 2, 3)))
    for level, part in enumerate(parts):
        inside = pyramid.inside(level)
        assert (part[:, ~inside] == 0).all()
        assert (part[:, inside] != 0).any(0).all()


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 13, 9), (1, 7, 5)])
def test_an_even_image_has_no_details(shape):
    pyramid = Pyramid(shape, ((4, 4), (2, 2), (8, 8)))
    *details, top = pyramid.split(torch.full((1, *shape), 3.0, dtype=torch.double))
    for part in [*details, top[:, 1:]]:
        torch.testing.assert_close(part, torch.zeros_like(part))
    assert top[0, 0, 0, 0] == pytest.approx(3 * np.sqrt(shape[1] * shape[2]))


@every_stack
def test_the_density_equals_the_enumeration_of_all_paths(layers, shape):
    x = images(shape)
    with torch.no_grad():
        tree = started(layers, x)()
    expected = logsumexp(Enumeration(tree).log_probs(x), axis=1)
    np.testing.assert_allclose(tree.log_prob(x), expected, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(tree.log_prob(x, complete=True), expected, rtol=1e-8, atol=1e-8)


@every_stack
def test_draws_and_means_have_the_moments_of_the_density(layers, shape):
    x = images(shape)
    with torch.no_grad():
        tree = started(layers, x)()
    mean, covariance = Enumeration(tree).moments()
    generator = torch.Generator().manual_seed(0)
    n_draws = 40_000
    tops = torch.multinomial(tree.log_weights.exp(), n_draws, replacement=True, generator=generator)
    rows = tree.sample(tops, Generation(generator=generator)).flatten(1).numpy()
    errors = np.sqrt(np.diag(covariance) / n_draws)
    assert (np.abs(rows.mean(0) - mean) < 5 * errors).all()
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert (np.abs(np.cov(rows.T) - covariance) < 6 * scale * np.sqrt(2 / n_draws)).all()
    of_components = tree.log_weights.exp() @ tree.component_means().flatten(1)
    np.testing.assert_allclose(of_components, mean, atol=1e-10)


def test_a_tiny_pyramid_integrates_to_one():
    x = images((1, 1, 2))
    with torch.no_grad():
        tree = started([ConvGMM(3, 1), ConvGMM(2)], x)()
    mean, covariance = Enumeration(tree).moments()
    deviations = np.sqrt(np.diag(covariance))
    axes = [np.linspace(m - 8 * s, m + 8 * s, 500) for m, s in zip(mean, deviations, strict=True)]
    points = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], 1)
    volume = np.prod([axis[1] - axis[0] for axis in axes])
    density = tree.log_prob(torch.from_numpy(points).view(-1, 1, 1, 2)).exp()
    assert float(density.sum()) * volume == pytest.approx(1, abs=1e-3)


@every_stack
def test_responsibilities_are_posteriors(layers, shape):
    x = images(shape)[:7]
    with torch.no_grad():
        tree = started(layers, x, seed=1)()
        found = tree.responsibilities(x, tree.names)
    enumeration = Enumeration(tree)
    posterior = enumeration.log_probs(x)
    posterior = np.exp(posterior - logsumexp(posterior, axis=1, keepdims=True))
    for i, of_layer in enumerate(found):
        for k in range(of_layer.shape[1]):
            shown = np.stack([path[i] == k for path in enumeration.paths])
            expected = np.einsum("np,prc->nrc", posterior, shown)
            np.testing.assert_allclose(of_layer[:, k], expected, atol=1e-7)


# --- missing pixels -----------------------------------------------------------------------------


def holes(x):
    """The right half is missing, and a pixel of the left."""
    x = x.clone()
    x[..., x.shape[3] // 2 + 1 :] = torch.nan
    x[:, :, 0, 0] = torch.nan
    return x


@every_stack
def test_what_is_whole_looks_the_same_through_messages(layers, shape):
    x = images(shape)[:5]
    with torch.no_grad():
        tree = started(layers, x)()
        *_, top = tree._partial.masses(x)
        volume = tree.basis.scale.log().sum() * shape[1] * shape[2]
        found = (top.flatten(1) + tree.log_weights).logsumexp(1) - volume
    np.testing.assert_allclose(found, tree.log_prob(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([ConvGMM(3)], (1, 2, 3)),
        ([ConvGMM(1, 2), ConvGMM(1)], (1, 4, 4)),
        ([ConvGMM(2)], (3, 2, 2)),
    ],
)
def test_marginals_means_and_draws_are_exact_where_nothing_is_approximated(layers, shape):
    x = images(shape)
    with torch.no_grad():
        tree = started(layers, x)()
    y = holes(x)[:3]
    enumeration = Enumeration(tree)
    log_probs = enumeration.log_probs(y)
    np.testing.assert_allclose(tree.log_prob(y), logsumexp(log_probs, axis=1), rtol=1e-3)
    posterior = np.exp(log_probs - logsumexp(log_probs, axis=1, keepdims=True))
    rows = y.flatten(1).numpy()
    missing = np.isnan(rows[0])
    seen = ~missing
    expected = np.zeros((len(y), missing.sum()))
    for p, (mean, covariance) in enumerate(
        zip(enumeration.means, enumeration.covariances, strict=True)
    ):
        gain = covariance[np.ix_(missing, seen)] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
        told = mean[missing] + (rows[:, seen] - mean[seen]) @ gain.T
        expected += posterior[:, p, None] * told
    with torch.no_grad():
        found = tree.impute_mean(y).flatten(1).numpy()
        np.testing.assert_array_equal(found[:, seen], rows[:, seen])
        np.testing.assert_allclose(found[:, missing], expected, rtol=2e-3, atol=2e-3)
        many = y[:1].expand(20_000, -1, -1, -1)
        draws = tree.impute_sample(many, Generation(generator=torch.Generator().manual_seed(0)))
    draws = draws.flatten(1)[:, missing].numpy()
    errors = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - expected[0]) < 6 * errors + 5e-3).all()


def test_missing_pixels_are_filled_in_well(digits):
    X = digits[0]
    est = DCGMMEstimator(image_shape=(8, 8), pixels="pyramid", random_state=0).fit(X[:1200])
    hidden = X[1200:1500].copy()
    hidden[:, 32:] = np.nan
    missing = np.isnan(hidden)
    filled, drawn = est.impute(hidden), est.impute(hidden, method="sample")
    mean = np.broadcast_to(X[:1200].mean(0), filled.shape)
    error, of_draws, of_mean = (
        np.square(values - X[1200:1500])[missing].mean() for values in (filled, drawn, mean)
    )
    assert error < 0.75 * of_mean
    assert error < of_draws < 2.5 * error
    assert np.isfinite(est.score_samples(hidden)).all()
    np.testing.assert_allclose(est.predict_proba(hidden).sum(1), 1, atol=1e-5)


def test_a_stream_goes_on_with_one_image(digits):
    X = digits[0][:100]
    est = DCGMMEstimator(5, image_shape=(8, 8), random_state=0).partial_fit(X)
    est.partial_fit(X[:1])
    assert np.isfinite(est.distances_).all()


# --- what does not vary -------------------------------------------------------------------------


def colours(X):
    """Digits in three channels of unlike contrast."""
    grey = X.reshape(-1, 8, 8, 1)
    return np.concatenate([grey, 0.5 * grey, 1 - 0.8 * grey], -1)


CHANGES = {
    "a pattern": lambda X: X + 5 * np.random.default_rng(0).integers(0, 2, X.shape[1:]),
    "an opaque channel": lambda X: np.concatenate([X, np.full_like(X[..., :1], 255)], -1),
    "a channel in other units": lambda X: X * np.array([1.0, 1000.0, 1e-3]),
    "a dark cast": lambda X: 0.02 * X,
    "a bright cast": lambda X: X + 40,
}


def agreements(X, y):
    """Of clusters, by a pyramid and by tiles, and of classes with digits."""
    make = {"max_epochs": 30, "random_state": 0}
    found = [
        adjusted_rand_score(y, DCGMMEstimator(10, pixels=pixels, **make).fit_predict(X))
        for pixels in ("pyramid", "tiles")
    ]
    return [*found, DCGMMClassifier(**make).fit(X[:700], y[:700]).score(X[700:], y[700:])]


@pytest.fixture(scope="module")
def plain_agreements(digits):
    return agreements(colours(digits[0][:1000].astype(np.float64)), digits[1][:1000])


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_vary_changes_nothing(digits, plain_agreements, change):
    X, y = colours(digits[0][:1000].astype(np.float64)), digits[1][:1000]
    pyramid, tiles, classes = agreements(CHANGES[change](X), y)
    assert pyramid > max(0.5, plain_agreements[0] - 0.12)
    assert tiles > max(0.5, plain_agreements[1] - 0.12)
    assert classes > plain_agreements[2] - 0.03


# --- as an estimator ----------------------------------------------------------------------------


def test_auto_takes_a_pyramid_for_whole_images_and_tiles_else(digits):
    X = digits[0][:300]
    make = {"image_shape": (8, 8), "max_epochs": 1, "random_state": 0}
    est = DCGMMEstimator(10, **make).fit(X)
    assert "Pixels in a pyramid" in est.summary()
    missing = X.copy()
    missing[0, 0] = np.nan
    assert "pyramid" not in DCGMMEstimator(10, **make).fit(missing).summary()
    flat = DCGMMEstimator(layers=[ConvGMM(3)], **make).fit(X)
    assert "pyramid" not in flat.summary()
    with pytest.raises(ValueError, match=r"training of a pyramid.*Choose pixels='tiles'"):
        DCGMMEstimator(pixels="pyramid", **make).fit(missing)
    with pytest.raises(ValueError, match="training of a pyramid"):
        est.partial_fit(missing)
    with pytest.raises(ValueError, match="layer scores of a pyramid"):
        est.set_params(score_method="layer").score_samples(missing)
    with pytest.raises(ValueError, match="layer scores of a pyramid"):
        est.sharpen(missing, layer=0, n_steps=1)
    detector = DCGMMOutlierDetector(pixels="pyramid", validation_fraction=None, **make).fit(X)
    with pytest.raises(ValueError, match="calibrated scores of a pyramid"):
        detector.score_samples(missing)
    with pytest.raises(ValueError, match="pixels must be one of"):
        DCGMMEstimator(pixels="wavelets", **make).fit(X)
    with pytest.raises(ValueError, match="choose objective='joint'"):
        DCGMMEstimator(pixels="pyramid", objective="layerwise", **make).fit(X)
    spherical = [ConvGMM(3, 4, covariance_type="spherical"), ConvGMM(2)]
    with pytest.raises(ValueError, match="must be 'diag' for pixels='pyramid'"):
        DCGMMEstimator(pixels="pyramid", layers=spherical, **make).fit(X)


def test_a_saved_pyramid_answers_alike(digits, tmp_path):
    X = digits[0][:300]
    est = DCGMMEstimator(5, image_shape=(8, 8), max_epochs=2, random_state=0).fit(X)
    est.save(tmp_path / "model")
    other = DCGMMEstimator.load(tmp_path / "model")
    np.testing.assert_array_equal(other.score_samples(X), est.score_samples(X))
    np.testing.assert_array_equal(other.sample(3)[0], est.sample(3)[0])
    assert set(est.means_) == {"convgmm1", "convgmm2"}
    assert set(est.detail_means_) == set(est.detail_covariances_) == {"convgmm2"}
    before = est.score_samples(X)
    est.means_, est.covariances_ = est.means_, est.covariances_
    est.detail_means_, est.detail_covariances_ = est.detail_means_, est.detail_covariances_
    np.testing.assert_allclose(est.score_samples(X), before, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("side", "tile"), [(8, 4), (16, 4), (28, 7), (32, 4), (5, 5), (92, 6), (112, 7)]
)
def test_tiles_of_a_pyramid_halve_to_one(side, tile):
    (_, first), *_ = auto((1, side, side), 10_000, pixels="pyramid")
    assert first.kernel_size == (tile, tile)


def test_covariances_are_at_least_reg_covar(digits):
    X = digits[0][:300]
    make = {"image_shape": (8, 8), "reg_covar": 0.03, "max_epochs": 2, "random_state": 0}
    assert "pyramid" not in DCGMMEstimator(5, **make).fit(X).summary()
    est = DCGMMEstimator(5, pixels="pyramid", **make).fit(X)
    for covariances in [*est.covariances_.values(), *est.detail_covariances_.values()]:
        assert covariances.min() >= 0.03 * (1 - 1e-4)
    oracle.assert_close(est.score(X), est.score_samples(X).mean(), 64, 1e-5)

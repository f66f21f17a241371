"""One density for the whole stack: against enumeration of all paths, and quadrature."""

import itertools
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine, make_blobs
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch.utils.flop_counter import FlopCounterMode

from skdcgmm import ConvGMM, DCGMMEstimator, MaxPool
from skdcgmm.data import Batch
from skdcgmm.estimators.generative import sharpen
from skdcgmm.model import tables
from skdcgmm.model.specs import lay_out, name_layers
from skdcgmm.model.stack import Stack
from skdcgmm.model.tree import N_STATISTICS, SHORTFALL, Generation
from skdcgmm.training.joint import Joint
from tests import oracle

UNSHARED = {"shared": False}


def randomised(layers, image_shape, seed, scale=1.0):
    """A fitted estimator with random parameters, in double precision."""
    rng = np.random.default_rng(seed)
    X = scale * rng.normal(size=(30, *image_shape))
    est = DCGMMEstimator(layers=layers, max_epochs=1, random_state=seed).fit(X)
    first, *upper = est.means_
    est.means_ = {first: scale * rng.normal(size=est.means_[first].shape)}
    est.covariances_ = {first: scale**2 * rng.uniform(0.2, 1.0, size=est.covariances_[first].shape)}
    mixtures = est._stack.mixtures
    for name in upper:
        means = est.means_[name]
        n_below = mixtures[name].windows.input_shape[0]
        drawn = rng.dirichlet(np.full(n_below, 0.7), means.size // n_below)
        # The floor of the tables is part of the model.
        drawn = (1 - tables.FLOOR) * drawn + tables.FLOOR / n_below
        est.means_ = {name: drawn.reshape(means.shape)}
    top = list(est.means_)[-1]
    est.weights_ = {top: rng.dirichlet(np.full(len(est.weights_[top]), 2.0))}
    return est


def started(layers, x, seed=0):
    """A stack of one density in the units and the precision of images, started at random."""
    specs = name_layers(layers)
    stack = Stack(lay_out(specs, tuple(x.shape[1:]), tiling=True)).to(x.dtype)
    moments = x.double().mean(0), x.double().var(0, correction=0)
    stack.pixels.set_units(torch.ones_like(moments[0]), *moments, x, reg_covar=None)
    stack.start(x, torch.Generator().manual_seed(seed))
    return stack


TINY = [
    # layers, image shape: two and three mixture layers, pooling, borders, shared, channels
    ([ConvGMM(3, 1), ConvGMM(2)], (1, 2)),
    ([ConvGMM(2, 1, **UNSHARED), ConvGMM(3)], (2, 2)),
    ([ConvGMM(2, 1, **UNSHARED), ConvGMM(3, (1, 2), **UNSHARED), ConvGMM(2)], (2, 2)),
    ([ConvGMM(3, 1), MaxPool(2), ConvGMM(2)], (2, 2)),
    ([ConvGMM(2, 1), MaxPool((1, 2)), ConvGMM(2, (2, 1)), ConvGMM(2)], (2, 2)),
]


def grid(mean, deviation, n_points):
    """Points of a regular grid over some dimensions, and the volume of its cells."""
    axes = [
        np.linspace(m - 7 * d, m + 7 * d, n_points) for m, d in zip(mean, deviation, strict=True)
    ]
    volume = np.prod([axis[1] - axis[0] for axis in axes])
    return np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], 1), volume


@pytest.mark.parametrize(("layers", "image_shape"), TINY)
def test_the_density_integrates_to_one(layers, image_shape):
    est = randomised(layers, image_shape, seed=3)
    mean, covariance = oracle.Enumeration(est).moments()
    # The trapezium rule is exact to many digits for sums of Gaussians wider than its step.
    points, volume = grid(mean, np.sqrt(np.diag(covariance)), 25 if len(mean) == 4 else 400)
    total = np.exp(est.score_samples(points)).sum() * volume
    assert total == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("layers", "image_shape"), TINY)
def test_a_marginal_is_the_integral_over_the_missing_pixels(layers, image_shape):
    est = randomised(layers, image_shape, seed=4)
    enumeration = oracle.Enumeration(est)
    mean, covariance = enumeration.moments()
    missing = np.arange(len(mean)) % 2 == 1
    points, volume = grid(mean[missing], np.sqrt(np.diag(covariance))[missing], 200)
    image = mean + 0.3
    filled = np.tile(image, (len(points), 1))
    filled[:, missing] = points
    expected = np.log(np.exp(est.score_samples(filled)).sum() * volume)
    image[missing] = np.nan
    assert est.score_samples(image[None])[0] == pytest.approx(expected, abs=1e-6)


@st.composite
def trees(draw):
    """Layers with few enough paths to enumerate, the image shape, and a seed."""
    channels = draw(st.integers(1, 2))
    kernel = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)]))
    # Four cells in the first layer, the last of which may reach past the border.
    size = tuple(2 * k - draw(st.integers(0, k - 1)) for k in kernel)
    shared = st.booleans()
    covariance_type = draw(st.sampled_from(["diag", "spherical"]))
    layers = [ConvGMM(draw(st.integers(1, 3)), kernel, None, covariance_type, shared=draw(shared))]
    middle = draw(st.sampled_from(["nothing", "pool", "mixture", "pool and mixture"]))
    if "pool" in middle:
        layers.append(MaxPool(draw(st.sampled_from([(1, 2), (2, 1), (2, 2)]))))
    if "mixture" in middle:
        rows, columns = (
            -(-2 // side) for side in (layers[1].kernel_size if "pool" in middle else (1, 1))
        )
        kernel = (draw(st.integers(1, rows)), draw(st.integers(1, columns)))
        layers.append(ConvGMM(draw(st.integers(1, 2)), kernel, shared=draw(shared)))
    layers.append(ConvGMM(draw(st.integers(1, 3)), shared=draw(shared)))
    return layers, (*size, channels), draw(st.integers(0, 10_000))


@settings(max_examples=40)
@given(trees(), st.floats(0, 1), st.sampled_from([1e-3, 1.0, 300.0]))
def test_every_answer_equals_the_enumeration_of_all_paths(tree, missing, scale):
    layers, image_shape, seed = tree
    est = randomised(layers, image_shape, seed, scale)
    enumeration = oracle.Enumeration(est)
    assert enumeration.probabilities.sum() == pytest.approx(1, abs=1e-10)
    rng = np.random.default_rng(seed)
    X = scale * rng.normal(size=(6, np.prod(image_shape)))
    X[rng.random(X.shape) < missing] = np.nan
    oracle.assert_close(est.score_samples(X), enumeration.log_prob(X), X.shape[1], 1e-10)
    np.testing.assert_allclose(est.predict_proba(X), enumeration.top_responsibilities(X), atol=1e-9)
    np.testing.assert_allclose(
        est.impute(X), enumeration.conditional_mean(X), rtol=1e-9, atol=1e-9 * scale
    )


@settings(max_examples=15)
@given(trees())
def test_nothing_observed_has_density_one_and_the_prior(tree):
    layers, image_shape, seed = tree
    est = randomised(layers, image_shape, seed)
    X = np.full((2, np.prod(image_shape)), np.nan)
    top = list(est.weights_)[-1]
    np.testing.assert_allclose(est.score_samples(X), 0, atol=1e-10)
    np.testing.assert_allclose(est.predict_proba(X)[0], est.weights_[top], rtol=1e-9)


@settings(max_examples=15)
@given(trees())
def test_scores_of_layers_are_means_of_marginals(tree):
    layers, image_shape, seed = tree
    est = randomised(layers, image_shape, seed)
    X = np.random.default_rng(seed).normal(size=(4, *image_shape))
    for index, (name, layer) in enumerate(est._stack.mixtures.items()):
        # A window of this layer, alone observed, has the density of its marginal.
        cells = [k * p for k, p in zip(*windows_in_pixels(est, name), strict=True)]
        marginals = []
        for row, column in itertools.product(*map(range, layer.windows.grid)):
            alone = np.full_like(X, np.nan)
            part = np.s_[
                :,
                row * cells[0] : (row + 1) * cells[0],
                column * cells[1] : (column + 1) * cells[1],
            ]
            alone[part] = X[part]
            marginals.append(est.score_samples(alone))
        est.set_params(score_method="layer", score_layer=index)
        np.testing.assert_allclose(est.score_samples(X), np.mean(marginals, 0), atol=1e-9)
        est.set_params(score_method="density")


def windows_in_pixels(est, name):
    """Height and width of a layer's window in pixels, as two factors each."""
    height = width = 1
    for current, _, windows in est._stack.layers:
        if current == name:
            return (height, width), windows.kernel
        height, width = height * windows.kernel[0], width * windows.kernel[1]
    raise AssertionError(name)


def test_draws_have_the_moments_of_the_density():
    for layers, image_shape in TINY:
        est = randomised(layers, image_shape, seed=5)
        mean, covariance = oracle.Enumeration(est).moments()
        n = 40_000
        images, labels = est.sample(n)
        images = images.reshape(n, -1)
        error = 5 * np.sqrt(np.diag(covariance) / n)
        assert (np.abs(images.mean(0) - mean) < error).all()
        spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        np.testing.assert_allclose(
            np.cov(images.T) / spread, covariance / spread, atol=5 * np.sqrt(3 / n)
        )
        top = list(est.weights_)[-1]
        shares = np.bincount(labels, minlength=len(est.weights_[top])) / n
        np.testing.assert_allclose(shares, est.weights_[top], atol=5 * 0.5 / np.sqrt(n))


def test_imputed_draws_have_the_conditional_moments():
    for layers, image_shape in TINY:
        est = randomised(layers, image_shape, seed=6)
        enumeration = oracle.Enumeration(est)
        image = np.random.default_rng(0).normal(size=int(np.prod(image_shape)))
        image[-1] = np.nan
        n = 20_000
        X = np.tile(image, (n, 1))
        drawn = est.impute(X, method="sample", random_state=0)
        np.testing.assert_array_equal(drawn[:, :-1], X[:, :-1])
        posterior = np.exp(enumeration.joint(image[None])[0] - enumeration.log_prob(image[None]))
        mean = posterior @ enumeration.means[:, -1]
        second = posterior @ (enumeration.means[:, -1] ** 2 + enumeration.variances[:, -1])
        deviation = np.sqrt(second - mean**2)
        assert abs(drawn[:, -1].mean() - mean) < 5 * deviation / np.sqrt(n)
        assert drawn[:, -1].std() == pytest.approx(deviation, rel=5 * np.sqrt(1.5 / n))


# --- invariances --------------------------------------------------------------------------------


@settings(max_examples=20)
@given(trees(), st.integers(0, 100))
def test_the_order_of_components_means_nothing(tree, seed):
    layers, image_shape, model_seed = tree
    est = randomised(layers, image_shape, model_seed)
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(5, *image_shape))
    before = est.score_samples(X)
    names = list(est.means_)
    orders = {name: rng.permutation(len(est.means_[name].T[0])) for name in names}
    for below, name in zip([None, *names], names, strict=False):
        means = est.means_[name]
        if below is not None:  # tables are over the components below
            by_cell = means.reshape(*means.shape[:-1], -1, len(orders[below]))
            means = by_cell[..., orders[below]].reshape(means.shape)
        else:
            covariances = est.covariances_[name]
            axis = -1 if covariances.ndim < means.ndim else -2
            est.covariances_ = {name: np.take(covariances, orders[name], axis)}
        est.means_ = {name: np.take(means, orders[name], -2)}
    est.weights_ = {name: est.weights_[name][orders[name]]}
    np.testing.assert_allclose(est.score_samples(X), before, rtol=1e-9, atol=1e-9)


@settings(max_examples=10)
@given(trees())
def test_batches_and_precision_mean_little(tree):
    layers, image_shape, seed = tree
    est = randomised(layers, image_shape, seed)
    X = np.random.default_rng(seed).normal(size=(7, *image_shape))
    X.ravel()[::5] = np.nan
    one_by_one = np.concatenate([est.score_samples(x[None]) for x in X])
    np.testing.assert_allclose(est.score_samples(X), one_by_one, rtol=1e-10, atol=1e-10)
    double = est.score_samples(X)
    est._stack.float()
    oracle.assert_close(est.score_samples(np.float32(X)), double, X[0].size, 1e-5)


@pytest.mark.parametrize("scale", [255.0, 1e-3])
@pytest.mark.parametrize("kind", ["images", "features"])
def test_units_do_not_matter(digits, scale, kind):
    X = digits[0].astype(np.float64)[:600] if kind == "images" else load_wine().data
    image_shape = (8, 8) if kind == "images" else None
    base = DCGMMEstimator(5, image_shape=image_shape, max_epochs=60, random_state=0)
    moved = clone(base).fit(scale * X + 7 * scale)
    base.fit(X)
    np.testing.assert_array_equal(base.labels_, moved.labels_)
    np.testing.assert_allclose(
        moved.score_samples(scale * X + 7 * scale) + X.shape[1] * np.log(scale),
        base.score_samples(X),
        rtol=1e-3,
    )


def test_large_images_in_single_precision():
    layers = [ConvGMM(20, 5, shared=False), ConvGMM(10, 4), ConvGMM(10, 5), ConvGMM(5)]
    x = torch.rand(8, 3, 200, 200, generator=torch.Generator().manual_seed(0))
    stack = started(layers, x)
    with torch.no_grad():
        single = stack().log_prob(x)
        double = stack.double()().log_prob(x.double())
    assert single.isfinite().all()
    oracle.assert_close(single, double.numpy(), x[0].numel(), 1e-6)


@pytest.mark.parametrize("layers", [[ConvGMM(3)], [ConvGMM(3, 2), ConvGMM(2)]])
def test_a_promise_of_complete_images_changes_no_density(rng, layers):
    images = torch.from_numpy(rng.normal(size=(5, 1, 4, 4))).float()
    stack = started(layers, images)
    stack.pixels.scale.fill_(3.0)
    tree = stack()
    torch.testing.assert_close(tree.log_prob(images, complete=True), tree.log_prob(images))


# --- a tree at given numbers --------------------------------------------------------------------


def images_of(est, X):
    """Images as tensors (N, C, H, W)."""
    height, width, channels = est.image_shape_
    return torch.from_numpy(X).view(-1, height, width, channels).permute(0, 3, 1, 2)


# Of a tree for images; those that take no gradients are given none.
ANSWERS = {
    "log_prob": lambda tree, x: tree.log_prob(x),
    "posterior": lambda tree, x: tree.posterior(x),
    "statistics": lambda tree, x: tree.statistics(x),
    "shortfalls": torch.no_grad()(lambda tree, x: tree.shortfalls(x)),
    "responsibilities": lambda tree, x: tree.responsibilities(x, tree.names),
    "windows": lambda tree, x: dict(tree.window_means(x)),
    "impute_mean": lambda tree, x: tree.impute_mean(x),
    "variants": lambda tree, x: tree.variants(x, tree.names[0], Generation(generator=seeded())),
    "sample": lambda tree, x: tree.sample(
        torch.zeros(len(x), dtype=torch.int64), Generation(generator=seeded())
    ),
    "component_means": lambda tree, _: tree.component_means(),
}


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("single", [False, True])
@settings(max_examples=10)
@given(tree=trees(), with_gradients=st.booleans())
def test_a_tree_made_once_answers_all_batches(tree, with_gradients, single):
    layers, image_shape, seed = tree
    est = randomised(layers, image_shape, seed)
    x = images_of(est, np.random.default_rng(seed).normal(size=(9, *image_shape)))
    x[4:][torch.rand(x[4:].shape, generator=seeded()) < 0.4] = torch.nan
    if single:
        est._stack.float()
        x = x.float()
    with torch.set_grad_enabled(with_gradients):
        once = est._stack()
        # Complete images, images with holes, and both, so that all that is kept is used again.
        for part in (slice(0, 4), slice(4, 9), slice(0, 9), slice(0, 4)):
            for name, answer in ANSWERS.items():
                found, expected = answer(once, x[part]), answer(est._stack(), x[part])
                torch.testing.assert_close(
                    found, expected, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}"
                )


LARGER = [
    # layers, image shape: more windows than can be enumerated, with borders on every floor
    ([ConvGMM(4, 2), ConvGMM(3, 2), ConvGMM(3)], (7, 5)),
    ([ConvGMM(4, 2, **UNSHARED), ConvGMM(3, 2, **UNSHARED), ConvGMM(3)], (9, 5, 2)),
    ([ConvGMM(3, 1, **UNSHARED), MaxPool(2), ConvGMM(2, 2), ConvGMM(3)], (5, 7, 2)),
    ([ConvGMM(5, 1), MaxPool(3), MaxPool(2), ConvGMM(4, 2, **UNSHARED), ConvGMM(2)], (13, 8)),
]


def check_shortfalls(est, x, tolerance):
    with torch.no_grad():
        tree = est._stack()
        (shortfalls, log_prob), statistics = tree.shortfalls(x), tree.statistics(x)
        complete = tree.shortfalls(x, complete=True) if not x.isnan().any() else None
    columns = [N_STATISTICS * level + SHORTFALL for level in range(len(tree.levels))]
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(shortfalls, statistics[:, columns], **close)
    torch.testing.assert_close(log_prob, statistics[:, -1], **close)
    torch.testing.assert_close(tree.in_units(log_prob, x), tree.log_prob(x), **close)
    if complete is not None:
        torch.testing.assert_close(complete, (shortfalls, log_prob), **close)


@settings(max_examples=40)
@given(trees(), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1e-3, 1.0, 300.0]))
def test_shortfalls_are_a_column_of_the_statistics(tree, missing, scale):
    layers, image_shape, seed = tree
    est = randomised(layers, image_shape, seed, scale)
    rng = np.random.default_rng(seed)
    X = scale * rng.normal(size=(6, np.prod(image_shape)))
    X[rng.random(X.shape) < missing] = np.nan
    check_shortfalls(est, images_of(est, X), 1e-9)


@pytest.mark.parametrize(("layers", "image_shape"), LARGER)
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_shortfalls_of_larger_trees(layers, image_shape, missing):
    est = randomised(layers, image_shape, seed=1)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, np.prod(image_shape)))
    X[rng.random(X.shape) < missing] = np.nan
    x = images_of(est, X)
    check_shortfalls(est, x, 1e-9)
    est._stack.float()
    check_shortfalls(est, x.float(), 1e-4)


def test_answers_compute_no_gradients_of_parameters():
    layers = [ConvGMM(4, 2, **UNSHARED), ConvGMM(3, 2), ConvGMM(3)]
    est = randomised(layers, (7, 5), seed=1)
    X = np.random.default_rng(0).normal(size=(6, 35))
    X[:3, ::3] = np.nan
    x = images_of(est, X)
    parameters = list(est._stack.parameters())
    for parameter in parameters:
        parameter.register_hook(lambda _: pytest.fail("a parameter's gradient is computed"))
    for made_with_gradients in (False, True):
        with torch.set_grad_enabled(made_with_gradients):
            tree = est._stack()
        unit = est._stack.pixels.scale
        scores = (tree.log_prob, lambda x, tree=tree: tree.layer_log_prob(x, tree.names[1]))
        answers = [*tree.responsibilities(x, tree.names)]
        answers += [each for score in scores for each in sharpen(score, x, unit, 3)]
        assert not any(answer.requires_grad for answer in answers)
    est.set_params(transform_layers=[0, 1, 2])
    for method in (est.transform, est.predict_proba, est.score_samples, est.impute, est.sharpen):
        method(X)
    est.sample_like(X, layer=0)
    est.sharpen(X, layer=0, n_steps=3)
    assert all(parameter.grad is None for parameter in parameters)


def test_answers_pay_for_no_gradients_of_parameters():
    """They take as many products as those of a stack whose parameters have none."""
    layers = [ConvGMM(4, 2, **UNSHARED), ConvGMM(3, 2), ConvGMM(3)]
    est = randomised(layers, (7, 5), seed=1).set_params(transform_layers=[0, 1, 2])
    X = np.random.default_rng(0).normal(size=(6, 35))
    for method in (est.transform, est.impute, partial(est.sharpen, n_steps=5)):
        costs = []
        for with_gradients in (True, False):
            est._stack.requires_grad_(with_gradients)
            with FlopCounterMode(display=False) as counter:
                method(X)
            costs.append(counter.get_total_flops())
        assert costs[0] == costs[1] > 0


# --- the upward pass ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel"), [((4, 4), (2, 2)), ((5, 3), (2, 2)), ((3, 4), (3, 4)), ((7, 7), (4, 4))]
)
def test_gradients_of_the_upward_pass_are_exact(size, kernel):
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)
    logits = torch.randn(*size, 2, 3, dtype=torch.float64, generator=generator)
    inputs = scores.requires_grad_(), logits.requires_grad_()

    def function(scores, logits):
        return tables.log_prob(scores, tables.tables(logits), kernel)

    assert torch.autograd.gradcheck(function, inputs)
    naive = torch.einsum("hwkj,njhw->nkhw", tables.tables(logits), scores.exp()).log()
    rows, columns = function(*inputs).shape[2:]
    expected = torch.zeros(2, 2, rows, columns, dtype=torch.float64)
    for row, column in itertools.product(range(size[0]), range(size[1])):
        expected[:, :, row // kernel[0], column // kernel[1]] += naive[:, :, row, column].detach()
    torch.testing.assert_close(function(*inputs).detach(), expected)


def test_differences_of_scores_beyond_precision_stay_finite():
    scores = torch.tensor([0.0, -1e4, 1e4]).view(1, 3, 1, 1).expand(1, 3, 8, 8).requires_grad_()
    by_cell = tables.tables(torch.tensor([50.0, 0.0, -50.0]).expand(8, 8, 4, 3))
    value = tables.log_prob(scores, by_cell, (8, 8))
    value.sum().backward()
    assert value.isfinite().all()
    assert scores.grad.isfinite().all()
    floor = np.log(tables.FLOOR / 3)
    assert value.max().item() == pytest.approx(64 * (1e4 + floor), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_maximum_is_a_tempered_logsumexp(rng, dtype, temperature):
    scores = torch.from_numpy(rng.normal(0, 300, (20, 5))).to(dtype).requires_grad_()
    value = tables.soft_maximum(scores, temperature)
    expected = temperature * (scores.double() / temperature).logsumexp(1)
    torch.testing.assert_close(value, expected.to(dtype))
    found = torch.autograd.grad(value.sum(), scores)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), scores))


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_responsibilities_are_a_softmax(rng, scale):
    scores = torch.from_numpy(rng.normal(0, scale, (4, 5, 2, 3)))
    torch.testing.assert_close(tables.responsibilities(scores), scores.softmax(1))
    if scale == 1:
        inputs = scores.requires_grad_()
        assert torch.autograd.gradcheck(tables.responsibilities, inputs)


def test_scores_beyond_all_numbers_are_equal_and_have_no_likelihood():
    scores = torch.full((1, 4, 1, 1), -torch.inf)
    assert (tables.responsibilities(scores) == 0.25).all()
    assert tables.soft_maximum(scores[..., 0, 0]) == -torch.inf


def test_tables_and_their_logits_are_inverse():
    given = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    found = tables.tables(tables.logits(given))
    torch.testing.assert_close(found[0], given[0])
    torch.testing.assert_close(found[1], given[1], atol=tables.FLOOR, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64))


# --- training -----------------------------------------------------------------------------------


def test_no_cluster_is_left_behind(digits):
    for n_clusters in (10, 50, 100):
        est = DCGMMEstimator(n_clusters, image_shape=(8, 8), random_state=0).fit(digits[0])
        assert len(np.unique(est.labels_)) >= 0.8 * n_clusters


def test_training_raises_the_density_of_unseen_images(digits):
    X = digits[0]
    est = DCGMMEstimator(20, image_shape=(8, 8), random_state=0)
    short = clone(est).set_params(max_epochs=1).fit(X[:1200]).score(X[1200:])
    assert est.fit(X[:1200]).score(X[1200:]) > short
    assert est.history_[-1]["loss"] > est.history_[0]["loss"]
    # The last epochs hardly move: their mean loss is the density of the final model.
    assert est.history_[-1]["loss"] == pytest.approx(est.score(X[:1200]), abs=0.05)


@pytest.mark.parametrize(("load", "n_components"), [(load_iris, 5), (load_wine, 3)])
def test_flat_mixtures_of_plain_features_match_gaussian_mixture(load, n_components):
    X = load().data
    ours = DCGMMEstimator(n_components, reg_covar=1e-3, random_state=0)
    flat = GaussianMixture(n_components, covariance_type="diag", reg_covar=1e-3, random_state=0)
    scores = [cross_val_score(est, X, cv=StratifiedFolds(load().target)) for est in (ours, flat)]
    difference = scores[0] - scores[1]
    # Both end in local optima that differ by fold: better, or not worse by what folds vary.
    assert difference.mean() > -2 * difference.std() / np.sqrt(len(difference)) - 0.02


class StratifiedFolds:
    """Five folds that hold all classes alike, without the labels reaching the estimators."""

    def __init__(self, y):
        self.y = y

    def get_n_splits(self, X=None, y=None, groups=None):
        return 5

    def split(self, X, y=None, groups=None):
        fold = np.empty(len(self.y), dtype=int)
        for label in np.unique(self.y):
            members = np.flatnonzero(self.y == label)
            fold[members] = np.arange(len(members)) % 5
        return ((np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(5))


def test_weights_of_images_count_them(rng):
    """A step on weighted images is the step on as many copies of them."""
    x = torch.from_numpy(rng.normal(size=(6, 1, 4, 4)))
    counts = torch.tensor([0, 1, 2, 3, 0, 4])
    steps = []
    for images, weight in (
        (x, counts.double() / counts.double().mean()),
        (x.repeat_interleave(counts, 0), None),
    ):
        stack = started([ConvGMM(3, 2, shared=False), ConvGMM(2)], x)
        Joint(stack, 10).step(Batch(images, weight))
        steps.append([p.detach().clone() for p in stack.parameters()])
    for weighted, repeated in zip(*steps, strict=True):
        torch.testing.assert_close(weighted, repeated, rtol=1e-6, atol=1e-9)


def test_sample_weight_in_fit_and_partial_fit():
    X, y = make_blobs(400, n_features=2, centers=[[0, 0], [20, 20]], random_state=0)
    weight = np.where(y == 0, 3.0, 1.0)
    est = DCGMMEstimator(2, random_state=0).fit(X, sample_weight=weight)
    np.testing.assert_allclose(sorted(est.weights_["convgmm1"]), [0.25, 0.75], atol=0.02)
    only = DCGMMEstimator(1, random_state=0)
    for _ in range(300):
        only.partial_fit(X, sample_weight=np.where(y == 0, 1.0, 0.0))
    np.testing.assert_allclose(only.means_["convgmm1"][0], X[y == 0].mean(0), atol=0.3)


def test_missing_values_in_training(digits, rng):
    X = digits[0].copy()
    holes = X.copy()
    holes[rng.random(X.shape) < 0.3] = np.nan
    est = DCGMMEstimator(20, image_shape=(8, 8), pixels="tiles", random_state=0)
    complete = clone(est).fit(X[:1200]).score(X[1200:])
    found = est.fit(holes[:1200]).score(X[1200:])
    one = DCGMMEstimator(1, layers=[ConvGMM(1)], image_shape=(8, 8), random_state=0)
    assert found > one.fit(X[:1200]).score(X[1200:])
    assert found > complete - 4  # a third of the values gone costs little
    filled = est.impute(holes[1200:])
    missing = np.isnan(holes[1200:])
    error = np.square(filled - X[1200:])[missing].mean()
    mean_error = np.square(np.nanmean(holes[:1200], 0) - X[1200:])[missing].mean()
    assert error < 0.6 * mean_error
    np.testing.assert_array_equal(filled[~missing], holes[1200:][~missing])


def test_a_stream_learns(digits):
    X = digits[0]
    est = DCGMMEstimator(10, layers=[ConvGMM(10)], image_shape=(8, 8), random_state=0)
    scores = []
    for _ in range(3):
        for chunk in np.array_split(X[:1500], 5):
            est.partial_fit(chunk)
        scores.append(est.score(X[1500:]))
    assert scores == sorted(scores)
    assert est._progress.steps == 3 * 5 * 2  # chunks of 300 in batches of 250 and less


def test_a_stream_goes_on_after_storing(digits):
    X = digits[0]
    est = DCGMMEstimator(5, image_shape=(8, 8), random_state=0).partial_fit(X[:500])
    stored = pickle.loads(pickle.dumps(est))
    a, b = (e.partial_fit(X[500:900]).means_["convgmm1"] for e in (est, stored))
    np.testing.assert_array_equal(a, b)


def test_warm_start_improves_on_the_earlier_fit(digits):
    X = digits[0]
    est = DCGMMEstimator(10, image_shape=(8, 8), warm_start=True, max_epochs=20, random_state=0)
    first = est.fit(X).score(X)
    assert est.fit(X).score(X) > first


# --- the public face ----------------------------------------------------------------------------


def test_information_criteria_are_those_of_gaussian_mixture():
    X, _ = make_blobs(200, n_features=3, random_state=0)
    flat = GaussianMixture(3, covariance_type="diag", random_state=0).fit(X)
    est = DCGMMEstimator(3, max_epochs=1).fit(X)
    est.weights_ = {"convgmm1": flat.weights_}
    est.means_ = {"convgmm1": flat.means_}
    est.covariances_ = {"convgmm1": flat.covariances_}
    assert est.bic(X) == pytest.approx(flat.bic(X))
    assert est.aic(X) == pytest.approx(flat.aic(X))


def test_parameters_beyond_the_border_do_not_count(rng):
    layers = [ConvGMM(3, 2, shared=False), ConvGMM(4, 2, shared=False), ConvGMM(5)]
    est = DCGMMEstimator(layers=layers, max_epochs=1).fit(rng.random((40, 5, 5)))
    pixels, tiles, windows = 25, 9, 4
    expected = 2 * 3 * pixels + 4 * tiles * 2 + 5 * windows * 3 + 4
    assert est.n_parameters_ == expected


def test_reg_covar_is_added_to_the_variances(digits):
    X = digits[0]
    est = DCGMMEstimator(5, image_shape=(8, 8), reg_covar=0.03, random_state=0).fit(X)
    assert est.covariances_["convgmm1"].min() > 0.03


def test_lower_weights_are_marginals_and_cannot_be_set(digits):
    est = DCGMMEstimator(5, image_shape=(8, 8), max_epochs=2, random_state=0).fit(digits[0])
    for values in est.weights_.values():
        np.testing.assert_allclose(values.sum(-1), 1, rtol=1e-4)
    with pytest.raises(ValueError, match="follow from the tables above"):
        est.weights_ = {"convgmm1": est.weights_["convgmm1"]}
    with pytest.raises(ValueError, match="sum to 1 over components"):
        est.means_ = {"convgmm2": 2 * est.means_["convgmm2"]}
    with pytest.raises(ValueError, match="must have keys among"):
        est.covariances_ = {"convgmm2": est.means_["convgmm2"]}


@pytest.mark.parametrize(
    "layers",
    [
        [ConvGMM(3, 4, stride=8)],
        [ConvGMM(3, 2), ConvGMM(4, 2, stride=4)],
        [ConvGMM(3, 2), MaxPool(2, stride=4), ConvGMM(4)],
        [ConvGMM(3, 2), MaxPool(2, stride=1), ConvGMM(4)],
        [ConvGMM(3, 2, 3), ConvGMM(4)],
    ],
)
def test_any_windows_that_do_not_tile_are_refused(digits, layers):
    est = DCGMMEstimator(layers=layers, image_shape=(8, 8))
    with pytest.raises(ValueError, match=r"__stride .* objective='layerwise'"):
        est.fit(digits[0])


def test_layerwise_stacks_have_no_density(digits):
    est = DCGMMEstimator(layers=[ConvGMM(3, 4, 2), ConvGMM(2)], image_shape=(8, 8))
    est.set_params(objective="layerwise", max_epochs=1).fit(digits[0])
    for method in (est.score, est.score_samples, est.bic):
        with pytest.raises(ValueError, match="objective='joint'"):
            method(digits[0])
    est.set_params(score_method="layer").score_samples(digits[0])


def test_a_failing_chunk_leaves_the_stream_as_it_was(digits):
    X = digits[0][:500]
    est = DCGMMEstimator(5, image_shape=(8, 8), random_state=0).partial_fit(X)
    expected = pickle.loads(pickle.dumps(est)).partial_fit(X).score(X)
    with pytest.raises(ValueError, match="made training diverge"):
        est.set_params(learning_rate=1e30, batch_size=100).partial_fit(X)
    est.set_params(learning_rate=None, batch_size=None)
    assert est.partial_fit(X).score(X) == expected


def test_a_model_broken_by_the_last_step_is_no_fit(digits):
    est = DCGMMEstimator(5, image_shape=(8, 8), learning_rate=1e30, max_epochs=1, batch_size=2000)
    with pytest.raises(ValueError, match="made training diverge"):
        est.fit(digits[0])
    assert not hasattr(est, "labels_")


@pytest.mark.parametrize("first", ["joint", "layerwise"])
def test_a_stream_keeps_its_objective(digits, first):
    est = DCGMMEstimator(layers=[ConvGMM(3)], image_shape=(8, 8), objective=first)
    est.partial_fit(digits[0])
    est.set_params(objective="layerwise" if first == "joint" else "joint")
    with pytest.raises(ValueError, match=f"objective must stay '{first}'"):
        est.partial_fit(digits[0])
    est.set_params(max_epochs=1).fit(digits[0])  # a new fit may have any


def test_images_of_weight_zero_are_not_there(digits):
    X = digits[0].astype(np.float64)[:300]
    est = DCGMMEstimator(5, image_shape=(8, 8), max_epochs=5, random_state=0)
    weight = np.r_[np.ones(300), 0.0]
    absurd = np.vstack([X, np.full((1, 64), 1e4)])
    found = clone(est).fit(absurd, sample_weight=1e307 * weight)
    expected = est.fit(X, sample_weight=np.ones(300))
    np.testing.assert_array_equal(found.score_samples(X), expected.score_samples(X))
    assert len(found.labels_) == 301


def test_validation_is_weighted(digits):
    X, y = digits
    est = DCGMMEstimator(2, layers=[ConvGMM(2)], image_shape=(8, 8), random_state=0)
    est.set_params(validation_fraction=0.2, max_epochs=60)
    est.fit(X, sample_weight=np.where(y == 0, 1.0, 1e-9))
    last = est.history_[-1]
    assert last["validation_loss"] == pytest.approx(last["loss"], abs=4)


def test_features_of_any_scale_count():
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    X = np.c_[10 * y + rng.normal(size=400), 1e4 * rng.normal(size=400)]
    labels = DCGMMEstimator(2, random_state=0).fit_predict(X)
    assert max((labels == y).mean(), (labels != y).mean()) > 0.99


def test_sharpening_moves_what_is_observed(digits):
    X = digits[0][:5].copy()
    est = DCGMMEstimator(5, image_shape=(8, 8), max_epochs=20, random_state=0).fit(digits[0])
    X[:, :20] = np.nan
    sharp = est.sharpen(X, n_steps=20)
    assert np.isnan(sharp[:, :20]).all()
    assert (est.score_samples(sharp) > est.score_samples(X)).all()


def test_equal_weights_are_none(digits):
    X = digits[0][:300]
    est = DCGMMEstimator(5, image_shape=(8, 8), max_epochs=3, random_state=0)
    weighted = clone(est).fit(X, sample_weight=np.full(300, 7.0))
    np.testing.assert_array_equal(weighted.score_samples(X), est.fit(X).score_samples(X))


def test_nothing_observed_is_nothing_to_fit():
    with pytest.raises(ValueError, match="no observed value"):
        DCGMMEstimator(2).fit(np.full((10, 3), np.nan))


def test_score_method_is_checked_when_it_is_used(digits):
    est = DCGMMEstimator(2, image_shape=(8, 8), max_epochs=1).fit(digits[0])
    with pytest.raises(ValueError, match="score_method must be one of"):
        est.set_params(score_method="contrast").score_samples(digits[0])


def test_grid_search_over_stacks_ranks_by_held_out_density(digits):
    X = digits[0]
    deep = DCGMMEstimator(image_shape=(8, 8), reg_covar=0.03, random_state=0)
    flat = GaussianMixture(20, covariance_type="diag", reg_covar=0.03, random_state=0)
    stacks = [[ConvGMM(1)], [ConvGMM(20, 4, shared=False), ConvGMM(20)]]
    search = GridSearchCV(
        make_pipeline(MinMaxScaler(), deep),
        [{"dcgmmestimator": [flat]}, {"dcgmmestimator__layers": stacks}],
        cv=2,
        error_score="raise",
    ).fit(X[:1200])
    flat_score, single, parts = search.cv_results_["mean_test_score"]
    assert parts > flat_score > single
    assert search.score(X[1200:]) == pytest.approx(
        search.best_estimator_.score_samples(X[1200:]).mean(), rel=1e-5
    )


def test_scores_of_a_layer_in_a_pipeline(digits):
    X, y = digits
    model = make_pipeline(
        StandardScaler(with_std=False),
        DCGMMEstimator(20, image_shape=(8, 8), score_method="layer", score_layer=0, random_state=0),
    ).fit(X[y != 0])
    assert np.isfinite(model.score_samples(X)).all()
    assert isinstance(model.score(X), float)


@pytest.mark.parametrize("as_images", [False, True])
def test_imputed_answers_keep_shape_type_and_seed(digits, as_images):
    X = digits[0][:20].copy()
    est = DCGMMEstimator(5, image_shape=(8, 8), max_epochs=3, random_state=0).fit(digits[0])
    X[:, 10:30] = np.nan
    X = X.reshape(20, 8, 8) if as_images else X
    for method in ("mean", "sample"):
        filled = est.impute(X, method=method, random_state=1)
        assert filled.shape == X.shape
        assert filled.dtype == X.dtype
        np.testing.assert_array_equal(filled, est.impute(X, method=method, random_state=1))
        tensor = est.impute(torch.from_numpy(X), method=method, random_state=1)
        np.testing.assert_array_equal(tensor, filled)
    with pytest.raises(ValueError, match="method must be one of"):
        est.impute(X, method="median")

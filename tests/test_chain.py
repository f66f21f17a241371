"""The published stack at given numbers: up through mixtures and pooling, and down again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.base import clone

from skdcgmm import ConvGMM, DCGMMEstimator, MaxPool
from skdcgmm.model.specs import lay_out, name_layers
from skdcgmm.model.stack import BaseStack
from skdcgmm.model.tree import Generation, Mixtures
from skdcgmm.published.stack import LayerwiseStack
from tests import oracle


def seeded():
    return torch.Generator().manual_seed(0)


def make_stack(layers, image_shape):
    """A stack in units of its own, started at random."""
    stack = LayerwiseStack(lay_out(name_layers(layers), image_shape, tiling=False))
    stack.start(torch.zeros(1, *image_shape), seeded())
    return stack.requires_grad_(False)


def set_means(stack, name, means):
    """Set the means of a mixture of one position, (K, D)."""
    stack.emission(name).means.copy_(torch.tensor(means)[None])


@pytest.mark.parametrize("base", [BaseStack, Mixtures])
def test_what_a_part_must_have_is_asked_for(base):
    with pytest.raises(TypeError, match="abstract"):
        type("Nothing", (base,), {})()


# --- what every layer must do -------------------------------------------------------------------

IMAGE_SHAPE = (3, 5, 7)
every_layer = pytest.mark.parametrize(
    "spec",
    [
        ConvGMM(4, kernel_size=(2, 3), stride=(1, 2)),
        ConvGMM(4, kernel_size=3, shared=False, covariance_type="spherical"),
        ConvGMM(4),
        MaxPool(2),
        MaxPool((3, 2), stride=2),
    ],
    ids=["shared", "unshared", "whole", "pool", "overlapping pool"],
)


def around(spec):
    """Layers with this one among them."""
    if isinstance(spec, MaxPool):
        return [ConvGMM(3, kernel_size=1), spec, ConvGMM(2)]
    return [spec] if spec.kernel_size is None else [spec, ConvGMM(2)]


@every_layer
def test_up_and_down_have_the_declared_shapes(spec):
    stack = make_stack(around(spec), IMAGE_SHAPE)
    x = torch.rand(4, *IMAGE_SHAPE, generator=seeded())
    chain = stack.chain()
    up = chain.responsibilities(x, stack.names)
    shapes = [layer.output_shape for layer in stack.mixtures.values()]
    assert [tuple(r.shape) for r in up] == [(4, *shape) for shape in shapes]
    down = chain.variants(x, stack.top.name, Generation(generator=seeded()))
    assert down.shape == x.shape
    assert down.isfinite().all()


@every_layer
def test_images_do_not_see_each_other(spec):
    stack = make_stack(around(spec), IMAGE_SHAPE)
    x = torch.rand(4, *IMAGE_SHAPE, generator=seeded())
    together, alone = (stack.chain().responsibilities(v, stack.names) for v in (x, x[2:3]))
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found[2:3], expected)


@every_layer
def test_spec_is_cloneable_and_lays_out_the_same(spec):
    copy = clone(spec)
    assert copy.get_params() == spec.get_params()
    laid_out = [
        [layer.output_shape for layer in lay_out(name_layers(layers), IMAGE_SHAPE, tiling=False)]
        for layers in (around(spec), around(copy))
    ]
    assert laid_out[0] == laid_out[1]


@every_layer
def test_same_seed_draws_the_same(spec):
    stack = make_stack(around(spec), IMAGE_SHAPE)
    components = torch.tensor([0, 1])
    draws = [stack.chain().sample(components, Generation(generator=seeded())) for _ in range(2)]
    assert torch.equal(*draws)


# --- the way up ---------------------------------------------------------------------------------


@st.composite
def estimators(draw):
    """A fitted layer-wise estimator with random parameters, and images for it."""
    size = (draw(st.integers(2, 7)), draw(st.integers(2, 7)))
    channels = draw(st.integers(1, 3))

    def window(size):
        kernel = tuple(draw(st.integers(1, min(4, side))) for side in size)
        return kernel, tuple(draw(st.integers(1, k)) for k in kernel)

    def mixture(*window):
        return ConvGMM(
            draw(st.integers(1, 4)),
            *window,
            covariance_type=draw(st.sampled_from(["diag", "spherical"])),
            shared=draw(st.booleans()),
        )

    layers = [mixture(*window(size)), mixture()]
    if draw(st.booleans()):
        kernel, stride = layers[0].kernel_size, layers[0].stride
        grid = [
            len(oracle.positions(*side)) for side in zip(size, kernel, stride, strict=True)
        ]  # of the first layer
        layers.insert(1, MaxPool(*window(grid)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = 10.0 ** draw(st.integers(-3, 3))
    X = scale * rng.normal(size=(20, *size, channels))
    est = DCGMMEstimator(
        layers=layers, objective="layerwise", score_method="layer", max_epochs=1, random_state=0
    ).fit(X)
    units = {name: scale if name == "convgmm1" else 1.0 for name in est.means_}
    est.means_ = {n: units[n] * rng.normal(size=v.shape) for n, v in est.means_.items()}
    est.covariances_ = {
        n: units[n] ** 2 * rng.uniform(0.2, 2.0, v.shape) for n, v in est.covariances_.items()
    }
    est.weights_ = {
        n: rng.dirichlet(np.full(v.shape[-1], 2.0), v.shape[:-1]) for n, v in est.weights_.items()
    }
    return est, X


@settings(max_examples=40)
@given(estimators(), st.sampled_from([np.float64, np.float32]))
def test_every_layer_equals_the_oracle(case, dtype):
    est, X = case
    scores = oracle.stack_scores(est, X)
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    if dtype == np.float32:
        est._stack.float()
    for index, (name, layer) in enumerate(est._stack.mixtures.items()):
        est.set_params(score_layer=index, transform_layers=index)
        found = est.score_samples(X.astype(dtype))
        assert found.dtype == dtype
        expected = oracle.layer_log_prob(scores[name])
        oracle.assert_close(found, expected, layer.windows.n_values, tolerance)
        if dtype == np.float64:
            responsibilities = softmax(scores[name], axis=-1).reshape(len(X), -1)
            np.testing.assert_allclose(est.transform(X), responsibilities, atol=1e-8)


@settings(max_examples=20)
@given(estimators())
def test_responsibilities_follow_from_the_scores(case):
    est, X = case
    x = torch.from_numpy(X).permute(0, 3, 1, 2)
    with torch.no_grad():
        chain = est._stack.chain()
    names = est._stack.names
    by_name = dict(zip(names, chain.responsibilities(x, names), strict=True))
    for name, log_prob in chain.climb(x):
        scores = log_prob + chain.weights[name]  # (N, K, rows, columns)
        total = scores.logsumexp(1)
        torch.testing.assert_close(by_name[name], (scores - total[:, None]).exp())
        torch.testing.assert_close(by_name[name].sum(1), torch.ones_like(total))
        weights = chain.weights[name].exp()
        torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_max_pool_uses_only_what_is_inside(height, width, kernel, stride):
    kernel = min(kernel, height, width)
    layers = [ConvGMM(3, kernel_size=1), MaxPool(kernel, min(stride, kernel)), ConvGMM(2)]
    stack = make_stack(layers, (1, height, width)).double()
    x = torch.rand(2, 1, height, width, generator=seeded(), dtype=torch.double)
    chain = stack.chain()
    first, top = stack.names
    (responsibilities,) = chain.responsibilities(x, [first])
    _, pool, _ = stack.layers
    pooled = oracle.pooled(
        responsibilities.permute(0, 2, 3, 1).numpy(), pool.windows.kernel, pool.windows.stride
    )
    expected = chain.densities[top].log_prob(torch.from_numpy(pooled).permute(0, 3, 1, 2))
    torch.testing.assert_close(dict(chain.climb(x))[top], expected, rtol=0, atol=1e-13)


# --- the way down -------------------------------------------------------------------------------


def draw_below(control, n, top_s=None, weights=None, pool=(), size=None):
    """Pixels (n, height, width) that show which component each draws, given weights of them.

    `control` (K, rows, columns) is the mean of a top component, and component k shows k.
    """
    control = torch.tensor(control)
    layers = [ConvGMM(len(control), kernel_size=1), *pool, ConvGMM(1)]
    stack = make_stack(layers, (1, *(size or control.shape[1:])))
    set_means(stack, "convgmm1", [[float(k)] for k in range(len(control))])
    set_means(stack, "convgmm2", [control.flatten().tolist()])
    if weights is not None:
        stack.set_weights("convgmm1", torch.tensor(weights)[:, None, None])
    top = torch.zeros(n, dtype=torch.int64)
    return stack.chain().sample(top, Generation(0.0, top_s, seeded()))[:, 0]


def frequencies(drawn, n_components):
    """Share of each component."""
    return np.bincount(drawn.flatten().round().int(), minlength=n_components) / drawn.numel()


def test_draws_follow_the_control():
    n = 20_000
    drawn = draw_below([[[0.5, 0.0]], [[0.3, 0.0]], [[0.2, 2.0]]], n)[:, 0]
    # Five standard errors of a frequency.
    np.testing.assert_allclose(frequencies(drawn[:, 0], 3), [0.5, 0.3, 0.2], atol=5 * 0.5 / n**0.5)
    assert (drawn[:, 1] == 2).all()


def test_top_s_keeps_the_likeliest():
    two = draw_below([[[0.5]], [[0.3]], [[0.2]]], 5000, top_s=2)
    np.testing.assert_allclose(frequencies(two, 3), [0.625, 0.375, 0.0], atol=5 * 0.5 / 5000**0.5)


def test_an_empty_control_falls_back_to_the_weights():
    drawn = draw_below([[[0.0]], [[0.0]]], 4000, weights=[0.25, 0.75])
    assert abs(drawn.mean().item() - 0.75) < 5 * 0.5 / 4000**0.5


def test_max_pool_hands_its_weights_to_every_position_of_the_window():
    n, share = 20_000, torch.tensor([[0.1, 0.4], [0.6, 0.9]])
    control = torch.stack([1 - share, share]).tolist()
    drawn = draw_below(control, n, pool=[MaxPool(2)], size=(3, 3))
    expected = [[0.1, 0.1, 0.4], [0.1, 0.1, 0.4], [0.6, 0.6, 0.9]]
    np.testing.assert_allclose(drawn.mean(0), expected, atol=5 * 0.5 / n**0.5)


def test_max_pool_averages_where_windows_overlap():
    n, share = 20_000, torch.tensor([[0.1, 0.4], [0.6, 0.9]])
    control = torch.stack([1 - share, share]).tolist()
    drawn = draw_below(control, n, pool=[MaxPool(2, stride=1)], size=(3, 3))
    expected = [[0.1, 0.25, 0.4], [0.35, 0.5, 0.65], [0.6, 0.75, 0.9]]
    np.testing.assert_allclose(drawn.mean(0), expected, atol=5 * 0.5 / n**0.5)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone

from skdcgmm import ConvGMM, MaxPool, _build, _windows
from skdcgmm._network import Network
from skdcgmm.layers import Generation, Layer, LayerSpec
from skdcgmm.layers._emissions import Emission
from tests import oracle

KERNELS = st.integers(1, 4)


def seeded():
    return torch.Generator().manual_seed(0)


@st.composite
def mixtures(draw):
    """A mixture layer with random parameters, images for it, and both in the oracle's form."""
    scale = 10.0 ** draw(st.integers(-3, 3))
    size = (draw(st.integers(2, 7)), draw(st.integers(2, 7)))
    channels = draw(st.integers(1, 3))
    kernel = tuple(min(draw(KERNELS), side) for side in size)
    stride = tuple(draw(st.integers(1, k)) for k in kernel)
    spec = ConvGMM(
        draw(st.integers(1, 6)),
        kernel_size=draw(st.sampled_from([kernel, None])),
        stride=stride,
        covariance_type=draw(st.sampled_from(["diag", "spherical"])),
        shared=draw(st.booleans()),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layer = spec.build("layer", (channels, *size)).double()
    with torch.no_grad():
        layer.logits.copy_(torch.from_numpy(rng.normal(size=layer.logits.shape)))
        means, roots = layer.emission.means, layer.emission.root_precisions
        means.copy_(torch.from_numpy(scale * rng.normal(size=means.shape)))
        roots.copy_(torch.from_numpy(rng.uniform(0.5, 4.0, roots.shape) / scale))
    x = scale * rng.normal(size=(3, *size, channels))
    return layer, x


def scores_of(layer, x):
    """Log of weight times density, (N, K, rows, columns)."""
    return layer.log_prob(x) + layer.log_weights


def oracle_scores(layer, x):
    rows, columns = layer.output_shape[1:] if layer.n_mixtures > 1 else (1, 1)
    channels = layer.input_shape[0]
    lead = (rows, columns, layer.n_components)

    def arrange(values):  # (P, K, D) with D channel first, to (rows, columns, K, D) channel last
        values = values.detach().numpy()
        if values.shape[2] == 1:
            values = np.broadcast_to(values, layer.emission.means.shape)
        values = values.reshape(*lead, channels, -1)
        return np.moveaxis(values, -2, -1).reshape(*lead, -1)

    weights = layer.log_weights.exp().detach().movedim(0, -1).numpy()
    parameters = [
        np.broadcast_to(p, (*layer.output_shape[1:], *p.shape[2:]))
        for p in (
            weights,
            arrange(layer.emission.means),
            arrange(layer.emission.root_precisions) ** -2.0,
        )
    ]
    return oracle.window_scores(x, *parameters, layer.kernel, layer.stride)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_fused_scores_equal_the_oracle(dtype, tolerance):
    @given(mixtures())
    def check(case):
        layer, x = case
        with torch.no_grad():
            found = scores_of(layer.to(dtype), torch.from_numpy(x).permute(0, 3, 1, 2).to(dtype))
        # The oracle sees what the layer sees: parameters and images rounded to its precision.
        rounded = torch.from_numpy(x).to(dtype).double().numpy()
        expected = np.moveaxis(oracle_scores(layer.double(), rounded), -1, 1)
        oracle.assert_close(found, expected, layer.emission.means.shape[2], tolerance)

    check()


@given(mixtures())
def test_responsibilities_follow_from_the_scores(case):
    layer, x = case
    x = torch.from_numpy(x).permute(0, 3, 1, 2)
    with torch.no_grad():
        scores = scores_of(layer, x)
        log_prob = scores.logsumexp(1)
        torch.testing.assert_close(layer(x), (scores - log_prob[:, None]).exp())
        torch.testing.assert_close(layer(x).sum(1), torch.ones_like(log_prob))
        torch.testing.assert_close(
            layer.log_weights.exp().sum(0), torch.ones_like(layer.log_weights[0])
        )


@given(mixtures())
def test_gradients_of_the_fused_score_are_exact(case):
    layer, x = case
    x = torch.from_numpy(x[:1]).permute(0, 3, 1, 2)
    parameter = layer.emission.means
    direction = (
        torch.randn(parameter.shape, generator=seeded(), dtype=torch.float64)
        / layer.emission.root_precisions.max()
    )
    value = scores_of(layer, x).sum()
    (gradient,) = torch.autograd.grad(value, parameter)
    with torch.no_grad():
        step = 1e-6
        parameter += step * direction
        up = scores_of(layer, x).sum()
        parameter -= 2 * step * direction
        down = scores_of(layer, x).sum()
    found = ((up - down) / (2 * step)).item()
    expected = (gradient * direction).sum().item()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


@given(mixtures(), st.booleans())
def test_gradients_equal_those_of_plain_differences(case, some_missing):
    layer, x = case
    x = torch.from_numpy(x).permute(0, 3, 1, 2)
    missing = torch.rand(x.shape, generator=seeded()) < 0.3
    observed = ~missing if some_missing else torch.ones_like(missing)
    inputs = [*layer.emission.parameters(), x.requires_grad_()]
    found = layer.log_prob(torch.where(observed, x, torch.nan))  # (N, K, rows, columns)
    # What is past the border is like what is missing: it has no part in the density.
    seen, values = (
        _windows.unfold(v.to(x), layer.kernel, layer.stride)[:, :, None] for v in (observed, x)
    )  # (R, N, 1, D)
    means, roots = (p[:, None] for p in (layer.emission.means, layer.emission.root_precisions))
    whitened = (values - means) * roots  # (R, N, K, D)
    terms = roots.log() - (whitened.square() + np.log(2 * np.pi)) / 2
    naive = (terms * seen).sum(3).permute(1, 2, 0).reshape(found.shape)  # (N, K, rows, columns)
    upstream = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view(found.shape)
    expected = torch.autograd.grad((naive * upstream).sum(), inputs)
    for gradient, other in zip(
        torch.autograd.grad((found * upstream).sum(), inputs), expected, strict=True
    ):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-9 * other.abs().max())


@given(mixtures())
def test_a_promise_of_complete_values_changes_nothing(case):
    layer, x = case
    x = torch.from_numpy(x).permute(0, 3, 1, 2)
    assert torch.equal(layer.log_prob(x, complete=True), layer.log_prob(x))


class LayerContract:
    """What every layer must do; a subclass says how to make one."""

    input_shape = (3, 5, 7)

    def make_spec(self):
        raise NotImplementedError

    @pytest.fixture
    def layer(self):
        return self.make_spec().build("layer", self.input_shape)

    def test_up_and_down_have_the_declared_shapes(self, layer):
        x = torch.rand(4, *self.input_shape, generator=seeded())
        up = layer(x)
        assert up.shape == (4, *layer.output_shape)
        down = layer.down(up, Generation(generator=seeded()))
        assert down.shape == x.shape
        assert down.isfinite().all()

    def test_images_do_not_see_each_other(self, layer):
        x = torch.rand(4, *self.input_shape, generator=seeded())
        torch.testing.assert_close(layer(x)[2:3], layer(x[2:3]))

    def test_spec_is_cloneable_and_builds_the_same(self, layer):
        copy = clone(self.make_spec())
        assert copy.get_params() == self.make_spec().get_params()
        assert copy.build("layer", self.input_shape).output_shape == layer.output_shape

    def test_same_seed_draws_the_same(self, layer):
        control = torch.rand(2, *layer.output_shape, generator=seeded())
        draws = [layer.down(control, Generation(generator=seeded())) for _ in range(2)]
        assert torch.equal(*draws)


class TestConvGMMShared(LayerContract):
    def make_spec(self):
        return ConvGMM(4, kernel_size=(2, 3), stride=(1, 2))


class TestConvGMMUnshared(LayerContract):
    def make_spec(self):
        return ConvGMM(4, kernel_size=3, shared=False, covariance_type="spherical")


class TestConvGMMWhole(LayerContract):
    def make_spec(self):
        return ConvGMM(4)


class TestMaxPool(LayerContract):
    def make_spec(self):
        return MaxPool(2)


class TestMaxPoolOverlapping(LayerContract):
    def make_spec(self):
        return MaxPool((3, 2), stride=2)


class Twice(LayerSpec):
    """A kind of layer that only a layer-wise stack has a place for."""

    kind = "twice"

    def build(self, name, input_shape, emission=None):
        return TwiceLayer(input_shape, input_shape[0], (1, 1), (1, 1))


class TwiceLayer(Layer):
    spec = Twice()

    def forward(self, x):
        return 2 * x

    def down(self, control, generation):
        return control / 2


class TestTwice(LayerContract):
    def make_spec(self):
        return Twice()


def test_a_joint_stack_refuses_kinds_that_it_has_no_part_for():
    specs = [("a", ConvGMM(3, 2)), ("b", Twice()), ("c", ConvGMM(2))]
    network = _build.build(specs, (1, 4, 4), joint=False)
    assert network.scores(torch.rand(2, 1, 4, 4)).shape == (2, 2)
    with pytest.raises(ValueError, match="'b' is a TwiceLayer, which a joint density has no part"):
        _build.build(specs, (1, 4, 4), joint=True)


@pytest.mark.parametrize("base", [Network, Layer, LayerSpec, Emission])
def test_what_a_part_must_have_is_asked_for(base):
    with pytest.raises(TypeError, match="abstract"):
        type("Nothing", (base,), {})()


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_max_pool_uses_only_what_is_inside(height, width, kernel, stride):
    kernel = min(kernel, height, width)
    x = np.random.default_rng(0).random((2, height, width, 3))
    layer = MaxPool(kernel, min(stride, kernel)).build("pool", (3, height, width))
    found = layer(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    expected = oracle.pooled(x, layer.kernel, layer.stride)
    np.testing.assert_array_equal(found, expected)


def test_max_pool_hands_its_weights_to_every_position_of_the_window():
    layer = MaxPool(2).build("pool", (1, 3, 3))
    control = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    down = layer.down(control, Generation())
    assert down[0, 0].tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 4]]


def test_draws_follow_the_control():
    layer = ConvGMM(3, kernel_size=1).build("layer", (1, 1, 2))
    with torch.no_grad():
        layer.emission.means.copy_(torch.tensor([0.0, 1.0, 2.0])[None, :, None])
    control = torch.tensor([[0.5, 0.0], [0.3, 0.0], [0.2, 2.0]])[None, :, None]  # (1, K, 1, 2)
    n = 20_000
    generation = Generation(temperature=0.0, generator=seeded())
    drawn = layer.down(control.expand(n, -1, -1, -1), generation)[:, 0, 0]
    frequencies = np.bincount(drawn[:, 0].int(), minlength=3) / n
    # Five standard errors of a frequency.
    np.testing.assert_allclose(frequencies, [0.5, 0.3, 0.2], atol=5 * 0.5 / n**0.5)
    assert (drawn[:, 1] == 2).all()


def test_top_s_keeps_the_likeliest():
    layer = ConvGMM(3, kernel_size=1).build("layer", (1, 1, 1))
    with torch.no_grad():
        layer.emission.means.copy_(torch.tensor([0.0, 1.0, 2.0])[None, :, None])
    control = torch.tensor([0.5, 0.3, 0.2])[None, :, None, None].expand(5000, -1, -1, -1)
    generator = seeded()
    two = layer.down(control, Generation(0.0, 2, generator)).flatten().int()
    frequencies = np.bincount(two, minlength=3) / 5000
    np.testing.assert_allclose(frequencies, [0.625, 0.375, 0.0], atol=5 * 0.5 / 5000**0.5)


def test_an_empty_control_falls_back_to_the_weights():
    layer = ConvGMM(2, kernel_size=1).build("layer", (1, 1, 1))
    layer.set_weights(torch.tensor([0.25, 0.75])[:, None, None])
    with torch.no_grad():
        layer.emission.means.copy_(torch.tensor([0.0, 1.0])[None, :, None])
    generation = Generation(0.0, None, seeded())
    drawn = layer.down(torch.zeros(4000, 2, 1, 1), generation)
    assert abs(drawn.mean().item() - 0.75) < 5 * 0.5 / 4000**0.5


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_draws_have_the_moments_of_their_component(rng, spherical, temperature):
    covariance_type = "spherical" if spherical else "diag"
    layer = ConvGMM(3, kernel_size=2, covariance_type=covariance_type).build("layer", (2, 4, 4))
    means, roots = layer.emission.means, layer.emission.root_precisions
    with torch.no_grad():
        means.copy_(torch.from_numpy(rng.normal(size=means.shape)))
        roots.copy_(torch.from_numpy(rng.uniform(0.5, 4, roots.shape)))
    n = 10_000
    control = torch.eye(3)[1][:, None, None].expand(n, 3, 2, 2)  # component 1 everywhere
    generation = Generation(temperature=temperature, generator=seeded())
    draws = layer.down(control, generation).detach().numpy()
    mean, deviation = (
        np.tile(np.broadcast_to(p[0, 1], 8).reshape(2, 2, 2), (1, 2, 2))
        for p in (means.detach().numpy(), temperature**0.5 / roots.detach().numpy())
    )
    assert (np.abs(draws.mean(0) - mean) < 5 * deviation / n**0.5).all()
    np.testing.assert_allclose(draws.std(0), deviation, rtol=5 / (2 * n) ** 0.5)


def test_constrained_precisions_stay_positive_and_below_their_cap():
    layer = ConvGMM(3, kernel_size=2).build("layer", (1, 4, 4))
    with torch.no_grad():
        layer.emission.root_precisions.copy_(
            torch.tensor([-5.0, 0.0, 1e9])[None, :, None].expand(1, 3, 4)
        )
    layer.emission.constrain()
    roots = layer.emission.root_precisions
    assert (roots > 0).all()
    assert roots.max().item() == pytest.approx(20**0.5)
    assert scores_of(layer, torch.rand(2, 1, 4, 4, generator=seeded())).isfinite().all()

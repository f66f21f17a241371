import itertools

import numpy as np
import pytest
import torch

from skdcgmm import ConvGMM, DCGMMEstimator, MaxPool
from skdcgmm.estimators.generative import sharpen
from tests import oracle
from tests.test_joint import randomised


@pytest.fixture(scope="module")
def fitted(digits):
    layers = [ConvGMM(9, 4, 2), MaxPool(2), ConvGMM(6)]
    return DCGMMEstimator(
        layers=layers,
        image_shape=(8, 8),
        objective="layerwise",
        score_method="layer",
        max_epochs=30,
        random_state=0,
    ).fit(digits[0])


def test_clusters_are_drawn_by_their_weights(fitted):
    n = 20_000
    _, labels = fitted.sample(n)
    frequencies = np.bincount(labels, minlength=6) / n
    np.testing.assert_allclose(frequencies, fitted.weights_["convgmm2"], atol=5 * 0.5 / n**0.5)


def test_cluster_fixes_the_label(fitted):
    images, labels = fitted.sample(4, cluster=2, temperature=0)
    assert (labels == 2).all()
    assert (images == images[0]).all()  # at temperature 0 the likeliest path is the only one


def test_draws_of_a_cluster_differ_at_a_temperature(fitted):
    images, _ = fitted.sample(4, cluster=2)
    assert len(np.unique(images, axis=0)) == 4


def test_random_state_decides_the_draw(fitted):
    a, b, c = (fitted.sample(5, random_state=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_the_way_down_through_a_whole_stack_follows_the_tables():
    """Two pixels, each a component of its own: the top's means are the pixels' probabilities."""
    X = np.random.default_rng(0).random((50, 1, 2))
    layers = [ConvGMM(2, kernel_size=1), ConvGMM(2)]
    est = DCGMMEstimator(layers=layers, objective="layerwise", max_epochs=1, random_state=0).fit(X)
    est.means_ = {
        "convgmm1": [[0.0], [1.0]],
        "convgmm2": [[0.9, 0.1, 0.3, 0.7], [0.0, 1.0, 1.0, 0.0]],  # (pixel, component below)
    }
    est.weights_ = {"convgmm2": [0.4, 0.6]}
    n = 20_000
    images, labels = est.sample(n, temperature=0, top_s=2)
    error = 5 * 0.5 / (0.4 * n) ** 0.5
    assert abs((labels == 0).mean() - 0.4) < error
    first = images[labels == 0].reshape(-1, 2)
    np.testing.assert_allclose(first.mean(0), [0.1, 0.7], atol=error)
    correlation = np.corrcoef(first.T)[0, 1]
    assert abs(correlation) < 2 * error  # positions draw independently
    np.testing.assert_array_equal(np.unique(images[labels == 1].reshape(-1, 2), axis=0), [[1, 0]])


@pytest.mark.parametrize("layer", [None, 0, -1, "convgmm1"])
def test_sharpening_never_lowers_its_score(fitted, digits, layer):
    X = digits[0][:20].astype(np.float64)
    with torch.no_grad():
        chain = fitted._stack()

    def score(X):
        x = torch.from_numpy(X).float().view(-1, 1, 8, 8)
        if layer is None:
            return chain.stack_log_prob(x).detach().numpy()
        name = layer if isinstance(layer, str) else chain.names[layer]
        return chain.layer_log_prob(x, name).detach().numpy()

    scores = [score(fitted.sharpen(X, layer=layer, n_steps=n)) for n in (0, 1, 5, 30)]
    np.testing.assert_array_equal(scores[0], score(X))
    for before, after in itertools.pairwise(scores):
        assert (after >= before - 1e-4 * np.abs(before)).all()
    assert (scores[-1] > scores[0]).all()


@pytest.mark.parametrize("pull", [0.0, 10.0])
def test_sharpening_tells_what_it_climbed(fitted, digits, pull):
    X = digits[0][:10]
    sharp, values = fitted.sharpen(X, n_steps=8, pull=pull, return_values=True)
    np.testing.assert_array_equal(sharp, fitted.sharpen(X, n_steps=8, pull=pull))
    assert values.shape == (10, 9)
    assert (np.diff(values, axis=1) >= 0).all()
    stack = fitted._stack
    ends = [
        stack().stack_log_prob(torch.from_numpy(x).float().view(-1, 1, 8, 8)).detach().numpy()
        for x in (X, sharp)
    ]
    moved = np.square((sharp - X) / stack.pixels.scale.item()).mean(1)
    np.testing.assert_allclose(values[:, 0], ends[0], rtol=1e-4)
    np.testing.assert_allclose(values[:, -1], ends[1] - pull * moved, rtol=1e-3)


def test_sharpening_a_single_gaussian_goes_to_its_mean(rng):
    X = rng.normal(size=(100, 3)) * [1, 2, 0.5] + 4
    est = DCGMMEstimator(1, max_epochs=30, random_state=0).fit(X)
    sharp = est.sharpen(X, n_steps=500)
    np.testing.assert_allclose(sharp, np.broadcast_to(est.means_["convgmm1"], X.shape), atol=1e-2)


def test_pull_keeps_images_near_their_start(fitted, digits):
    X = digits[0][:20]
    distances = [np.abs(fitted.sharpen(X, pull=pull) - X).mean() for pull in (0.0, 1e3, 1e6)]
    assert distances[0] > distances[1] > distances[2]


def test_sharpening_images_one_by_one_is_the_same(fitted, digits):
    X = digits[0][:3].astype(np.float64)
    together = fitted.sharpen(X, n_steps=5)
    alone = np.concatenate([fitted.sharpen(X[i : i + 1], n_steps=5) for i in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_sharpening_climbs_any_score():
    generator = torch.Generator().manual_seed(0)
    target, start = torch.rand(2, 2, 1, 8, 8, generator=generator)

    def score(x):
        return -(x - target).square().sum((1, 2, 3))

    sharp, _ = sharpen(score, start, torch.tensor(1.0), 300)
    torch.testing.assert_close(sharp, target, atol=1e-3, rtol=0)


def test_stack_score_counts_each_layer_once_for_its_whole_input(fitted, digits):
    X = digits[0][:10].astype(np.float64)
    scores = oracle.stack_scores(fitted, X.reshape(-1, 8, 8, 1))
    # The first layer's 4 x 4 windows cover the 8 x 8 pixels four times without overlap.
    expected = 4 * oracle.layer_log_prob(scores["convgmm1"])
    expected += oracle.layer_log_prob(scores["convgmm2"])
    with torch.no_grad():
        found = fitted._stack().stack_log_prob(torch.from_numpy(X).float().view(-1, 1, 8, 8))
    oracle.assert_close(found, expected, 64, 1e-5)


def test_negative_entries_of_an_upper_mean_draw_nothing():
    X = np.random.default_rng(0).random((50, 1, 1))
    est = DCGMMEstimator(
        layers=[ConvGMM(2, kernel_size=1), ConvGMM(1)], image_shape=(1, 1),
        objective="layerwise", max_epochs=1, random_state=0,
    ).fit(X.reshape(50, 1))  # fmt: skip
    est.means_ = {"convgmm1": [[0.0], [1.0]], "convgmm2": [[-0.9, 0.1]]}
    assert (est.sample(50, temperature=0, top_s=2)[0] == 1).all()


def test_prototypes_of_a_flat_colour_mixture_are_its_means(rng):
    X = rng.random((40, 3, 5, 2))
    est = DCGMMEstimator(layers=[ConvGMM(4)], max_epochs=2, random_state=0).fit(X)
    for k in range(4):
        image, _ = est.sample(cluster=k, temperature=0)
        np.testing.assert_allclose(image.ravel(), est.means_["convgmm1"][k], rtol=1e-10)


def test_pictures_take_the_likeliest_components_and_draws_all():
    est = randomised([ConvGMM(6, 1), ConvGMM(1)], (1, 2), seed=2)
    tables = est.means_["convgmm2"][0, :6]  # of the left pixel
    pixels = est.means_["convgmm1"][:, 0]

    def shares(**arguments):
        drawn = est.sample(20_000, temperature=0, random_state=0, **arguments)[0].reshape(-1, 2)[
            :, 0
        ]
        nearest = abs(drawn[:, None] - pixels).argmin(1)
        np.testing.assert_allclose(drawn, pixels[nearest], atol=1e-9)
        return np.bincount(nearest, minlength=6) / len(drawn)

    likeliest = np.argsort(-tables)[:2]
    expected = np.zeros(6)
    expected[likeliest] = tables[likeliest] / tables[likeliest].sum()
    np.testing.assert_allclose(shares(), expected, atol=0.02)
    np.testing.assert_allclose(shares(top_s=6), tables, atol=0.02)
    drawn = est.sample(2000, random_state=0)[0].reshape(-1, 2)[:, 0]
    assert abs(drawn.mean() - tables @ pixels) < 5 * drawn.std() / 2000**0.5

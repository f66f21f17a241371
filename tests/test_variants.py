import numpy as np
import pytest
import torch

from skdcgmm import ConvGMM, DCGMMEstimator
from tests import oracle
from tests.test_joint import TINY, randomised


def test_variants_have_the_moments_of_the_posterior_of_their_layer():
    for layers, image_shape in TINY:
        est = randomised(layers, image_shape, seed=7)
        enumeration = oracle.Enumeration(est)
        image = np.random.default_rng(1).normal(size=int(np.prod(image_shape)))
        image[0] = np.nan
        n = 20_000
        for level, name in enumerate(est.means_):
            drawn = est.sample_like(image[None], layer=name, n_samples=n, random_state=0)
            assert drawn.shape == (1, n, *image.shape)
            n_given = len(est.means_) - level
            mean, covariance = enumeration.moments(enumeration.given_layers(image, n_given))
            deviation = np.sqrt(np.diag(covariance))
            assert (abs(drawn[0].mean(0) - mean) < 5 * deviation / np.sqrt(n)).all()
            scale = np.outer(deviation, deviation)
            found = np.cov(drawn[0].T).reshape(scale.shape)
            # Products of mixtures have heavier tails than products of Gaussians.
            assert (abs(found - covariance) < 8 * scale / np.sqrt(n)).all()


def test_a_mask_hides_what_nan_would(digits):
    X, _ = digits
    est = DCGMMEstimator(
        layers=[ConvGMM(10, 4, shared=False), ConvGMM(5)], image_shape=(8, 8), max_epochs=3,
        random_state=0,
    ).fit(X)  # fmt: skip
    mask = np.zeros((20, 8, 8), dtype=bool)
    mask[:, :, 4:] = True
    hidden = np.where(mask.reshape(20, -1), np.nan, X[:20])
    for arguments in ({}, {"method": "sample", "random_state": 3}):
        expected = est.impute(hidden, **arguments)
        np.testing.assert_array_equal(
            est.impute(X[:20], mask=mask.reshape(20, -1), **arguments), expected
        )
        images = X[:20].reshape(-1, 8, 8)
        filled = est.impute(images, mask=torch.from_numpy(mask), **arguments)
        np.testing.assert_array_equal(filled, expected.reshape(-1, 8, 8))
        np.testing.assert_array_equal(filled[~mask], images[~mask])
    whole_numbers = (X[:20] * 16).astype(np.uint8)
    assert np.isfinite(est.impute(whole_numbers, mask=mask.reshape(20, -1))).all()
    with pytest.raises(ValueError, match=r"mask must have the shape of X, \(20, 64\); got"):
        est.impute(X[:20], mask=mask[:10])
    with pytest.raises(TypeError, match="mask must hold booleans"):
        est.impute(X[:20], mask=mask.astype(float).reshape(20, -1))


@pytest.mark.parametrize("objective", ["joint", "layerwise"])
def test_variants_are_images_of_the_cluster(digits, objective):
    X, _ = digits
    est = DCGMMEstimator(
        layers=[ConvGMM(25, 4, shared=False), ConvGMM(10)], image_shape=(8, 8),
        objective=objective, max_epochs=30, random_state=0,
    ).fit(X)  # fmt: skip
    images = X[:40].reshape(-1, 8, 8)
    drawn = est.sample_like(images, n_samples=5, temperature=0, random_state=0)
    assert drawn.shape == (40, 5, 8, 8)
    same = est.predict(drawn.reshape(-1, 64)).reshape(40, 5) == est.labels_[:40, None]
    assert same.mean() > 0.8
    np.testing.assert_array_equal(
        drawn, est.sample_like(images, n_samples=5, temperature=0, random_state=0)
    )
    # The lower the layer, the nearer its variants.
    lower = est.sample_like(images, layer=0, n_samples=5, temperature=0, random_state=0)
    distance = [np.square(v - images[:, None]).mean() for v in (lower, drawn)]
    assert distance[0] < distance[1]
    tensor = est.sample_like(torch.from_numpy(images), n_samples=5, temperature=0, random_state=0)
    np.testing.assert_array_equal(tensor.numpy(), drawn)


def test_draws_without_noise_are_means_of_components():
    for layers, image_shape in TINY:
        est = randomised(layers, image_shape, seed=9)
        enumeration = oracle.Enumeration(est)
        image = np.random.default_rng(2).normal(size=int(np.prod(image_shape)))
        image[-1] = np.nan
        X = np.tile(image, (2000, 1))
        drawn = est.impute(X, method="sample", temperature=0, random_state=0)[:, -1]
        values, counts = np.unique(drawn.round(9), return_counts=True)
        assert set(values) <= set(enumeration.means[:, -1].round(9))
        # How often each mean comes up is the posterior of its paths.
        posterior = np.exp(enumeration.joint(image[None])[0] - enumeration.log_prob(image[None]))
        for value, count in zip(values, counts, strict=True):
            p = posterior[enumeration.means[:, -1].round(9) == value].sum()
            assert abs(count / 2000 - p) < 5 * np.sqrt(p * (1 - p) / 2000) + 1e-9


def test_layerwise_stacks_fill_in_missing_pixels(digits):
    X, _ = digits
    est = DCGMMEstimator(
        layers=[ConvGMM(25, 4, 2), ConvGMM(10)], image_shape=(8, 8), objective="layerwise",
        score_method="layer", max_epochs=30, random_state=0,
    ).fit(X)  # fmt: skip
    mask = np.zeros((8, 8), dtype=bool)
    mask[:, 4:] = True
    mask = np.broadcast_to(mask.ravel(), (200, 64))
    state = torch.random.get_rng_state()
    filled = est.impute(X[:200], mask=mask)
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(filled[~mask], X[:200][~mask])
    np.testing.assert_array_equal(filled, est.impute(X[:200], mask=mask))
    error = np.square(filled - X[:200])[mask].mean()
    assert error < np.square(X.mean(0) - X[:200])[mask].mean()  # better than the mean image
    # What is hidden makes no difference.
    other = np.where(mask, 1e3, X[:200])
    np.testing.assert_array_equal(est.impute(other, mask=mask), filled)
    first, second = (
        est.impute(X[:200], mask=mask, method="sample", random_state=s) for s in (0, 1)
    )
    assert (first != second)[mask].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_samples": 0}, "n_samples must be an integer >= 1"),
        ({"layer": "convgmm9"}, "layer must be a mixture layer"),
        ({"temperature": -1}, "temperature must be"),
    ],
)
def test_arguments_of_variants_are_checked(digits, arguments, message):
    est = DCGMMEstimator(layers=[ConvGMM(3)], image_shape=(8, 8), max_epochs=1).fit(digits[0])
    with pytest.raises(ValueError, match=message):
        est.sample_like(digits[0][:2], **arguments)


def test_cluster_centers_are_the_means_of_the_paths():
    for layers, image_shape in TINY:
        est = randomised(layers, image_shape, seed=8)
        enumeration = oracle.Enumeration(est)
        weights = enumeration.probabilities
        expected = [
            np.average(enumeration.means[of_k], axis=0, weights=weights[of_k])
            for of_k in (enumeration.y == k for k in np.unique(enumeration.y))
        ]
        np.testing.assert_allclose(est.cluster_centers_, expected, atol=1e-9)


def test_centers_of_merged_clusters_are_weighted_means(digits):
    X, _ = digits
    make = {"image_shape": (8, 8), "pixels": "pyramid", "max_epochs": 5, "random_state": 0}
    est = DCGMMEstimator(4, **make).fit(X)
    centers = est.cluster_centers_
    assert centers.shape == (4, 64)
    each = DCGMMEstimator(**make).fit(X)
    weights = next(reversed(each.weights_.values()))
    for cluster, center in enumerate(centers):
        belongs = est.clusters_ == cluster
        expected = np.average(each.cluster_centers_[belongs], axis=0, weights=weights[belongs])
        np.testing.assert_allclose(center, expected, atol=1e-5)

import numpy as np
import pytest

from skdcgmm import DCGMMEstimator, published
from skdcgmm.model import specs


def shapes(layers, image_shape, *, joint=False):
    return [
        layer.output_shape
        for layer in specs.lay_out(specs.name_layers(layers), image_shape, tiling=joint)
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dcgmm-a", [(49, 1, 1)]),
        ("dcgmm-b", [(49, 11, 11), (49, 1, 1)]),
        ("dcgmm-c", [(49, 21, 21), (49, 11, 11), (49, 1, 1)]),
        ("dcgmm-d", [(25, 26, 26), (25, 13, 13), (25, 10, 10), (25, 5, 5), (25, 1, 1)]),
        ("dcgmm-e", [(25, 26, 26), (25, 12, 12), (49, 1, 1)]),
        ("dcgmm-f", [(25, 26, 26), (25, 12, 12), (25, 5, 5), (49, 1, 1)]),
        (
            "dcgmm-g",
            [(25, 26, 26), (25, 13, 13), (25, 11, 11), (25, 6, 6), (25, 4, 4), (25, 2, 2),
             (49, 1, 1)],
        ),
    ],
)  # fmt: skip
def test_presets_have_the_published_shapes(name, expected):
    assert shapes(published.preset(name, (1, 28, 28)), (1, 28, 28)) == expected


@pytest.mark.parametrize("name", list(published.PRESETS))
@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 32, 20), (1, 5, 1)])
def test_presets_adapt_to_any_image(name, image_shape):
    assert shapes(published.preset(name, image_shape), image_shape)[-1][1:] == (1, 1)


@pytest.mark.parametrize("name", list(published.PRESETS))
def test_presets_train_on_images_of_28_pixels(name, rng):
    X = rng.random((60, 28, 28)).astype(np.float32)
    est = DCGMMEstimator(
        layers=name, objective="layerwise", score_method="layer", max_epochs=1, batch_size=30,
        random_state=0,
    ).fit(X)  # fmt: skip
    assert np.isfinite(est.score_samples(X)).all()
    np.testing.assert_allclose(est.predict_proba(X).sum(1), 1, atol=1e-5)
    assert est.sample(2)[0].shape == (2, 28, 28)


@pytest.mark.parametrize(
    "image_shape", [(1, 28, 28), (1, 8, 8), (3, 32, 32), (1, 200, 100), (1, 2, 9), (1, 1, 7)]
)
def test_auto_stacks_for_images_are_deep_and_end_in_one_position(image_shape):
    found = shapes(published.auto(image_shape, 10_000), image_shape)
    assert len(found) == 2
    assert found[-1] == (49, 1, 1)
    found = shapes(specs.auto(image_shape, 10_000), image_shape, joint=True)
    assert len(found) >= 2
    assert found[-1] == (400, 1, 1)


@pytest.mark.parametrize("auto", [specs.auto, published.auto])
@pytest.mark.parametrize(("n_samples", "expected"), [(2, 1), (50, 3), (10_000, 8)])
def test_auto_stack_for_plain_features_is_flat(auto, n_samples, expected):
    assert shapes(auto((7, 1, 1), n_samples), (7, 1, 1)) == [(expected, 1, 1)]


@pytest.mark.parametrize(
    ("auto", "image_shape", "n_clusters", "expected"),
    [
        # Of flat mixtures and of layer-wise stacks as many as clusters, of deep ones at least.
        (specs.auto, (7, 1, 1), 12, 12),
        (specs.auto, (1, 4, 4), 12, 12),
        (specs.auto, (1, 28, 28), 12, 400),
        (specs.auto, (1, 28, 28), 500, 500),
        (published.auto, (7, 1, 1), 12, 12),
        (published.auto, (1, 28, 28), 12, 12),
    ],
)
def test_the_top_of_an_auto_stack_has_components_for_the_clusters(
    auto, image_shape, n_clusters, expected
):
    found = shapes(auto(image_shape, 10_000, n_clusters), image_shape)
    assert found[-1] == (expected, 1, 1)

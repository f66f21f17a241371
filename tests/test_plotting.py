import matplotlib.pyplot as plt
import numpy as np
import pytest

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator
from skdcgmm.plotting import (
    InpaintingDisplay,
    PrototypesDisplay,
    SamplesDisplay,
    TrainingDisplay,
    plot_images,
)


@pytest.fixture(autouse=True)
def close_figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted(digits):
    layers = [ConvGMM(20, 4, shared=False), ConvGMM(12)]
    return DCGMMEstimator(
        layers=layers, image_shape=(8, 8), max_epochs=10, validation_fraction=0.1, random_state=0
    ).fit(digits[0])


def test_plot_images_lays_out_a_grid():
    images = np.stack([np.full((2, 3), i / 4) for i in range(5)])
    ax = plot_images(images, image_shape=(2, 3), n_columns=4, vmin=0, vmax=1)
    canvas = ax.images[0].get_array()
    assert canvas.shape == (2 * 3 + 1, 4 * 4 + 1)
    assert (canvas[1:3, 5:8] == 0.25).all()  # the second image
    assert (canvas[4:6, 1:4] == 1.0).all()  # the fifth, in the second row
    colour = plot_images(np.ones((1, 2, 2, 3)), image_shape=(2, 2, 3)).images[0].get_array()
    assert colour.shape == (4, 4, 3)


@pytest.mark.parametrize("n_channels", [1, 3, 4])
def test_missing_pixels_are_neither_gray_nor_frame(n_channels):
    image = np.linspace(0, 1, 4 * n_channels).reshape(1, 2, 2, n_channels)
    image[0, 1, 0, -1] = np.nan
    ax = plot_images(image, image_shape=image.shape[1:], vmin=0, vmax=1)
    drawn = ax.images[0].to_rgba(ax.images[0].get_array())[..., :3]
    np.testing.assert_array_equal(drawn[[0, -1]], 1.0)
    np.testing.assert_allclose(drawn[1, 2], np.broadcast_to(image[0, 0, 1, :3], 3), atol=1 / 255)
    red, green, blue = drawn[2, 1]
    assert red < green < blue < 1


def test_images_of_any_scale_are_drawn_alike(digits):
    X = digits[0][:5]
    drawn = [plot_images(f * X, image_shape=(8, 8)).images[0].get_array() for f in (1, 255)]
    np.testing.assert_allclose(*drawn, atol=1e-6)
    with pytest.raises(ValueError, match=r"X must hold images of shape \(4, 8\), .* \(5, 64\)"):
        plot_images(X, image_shape=(4, 8))
    for same in (np.ones((3, 16)), np.full((3, 16), 1e9)):
        drawn = plot_images(same, image_shape=(4, 4), vmax=1).images[0].get_array()
        assert not np.ma.getmaskarray(drawn).any()
    assert np.ma.getmaskarray(
        plot_images(np.full((1, 4), np.nan), image_shape=(2, 2)).images[0].get_array()
    )[1:3, 1:3].all()
    features = DCGMMEstimator(2, layers=[ConvGMM(2)], max_epochs=1).fit(X)
    with pytest.raises(ValueError, match="Rows of plain features are no images"):
        PrototypesDisplay.from_estimator(features)


def cells(display, n_images):
    """The images that a display has drawn, as rows of 8 x 8 pixels."""
    canvas = np.asarray(display.ax_.images[0].get_array().filled(np.nan))
    corners = [
        (1 + 9 * (i // display.n_columns), 1 + 9 * (i % display.n_columns)) for i in range(n_images)
    ]
    return np.stack([canvas[r : r + 8, c : c + 8].ravel() for r, c in corners])


def test_prototypes_are_the_cluster_centers(fitted):
    display = PrototypesDisplay.from_estimator(fitted, n_columns=4, vmin=0, vmax=1)
    drawn = cells(display, 12)
    np.testing.assert_allclose(drawn, fitted.cluster_centers_.clip(0, 1), atol=1e-6)


def test_samples_are_drawn_by_the_estimator(fitted):
    display = SamplesDisplay.from_estimator(fitted, n_samples=7, random_state=0, vmin=0, vmax=1)
    expected = fitted.sample(7, temperature=0, random_state=0)[0].clip(0, 1)
    np.testing.assert_allclose(cells(display, 7), expected, atol=1e-6)
    given = SamplesDisplay.from_images(
        expected.reshape(7, 8, 8), image_shape=(8, 8), vmin=0, vmax=1
    )
    np.testing.assert_array_equal(cells(given, 7), cells(display, 7))


def test_inpaintings_are_rows_of_holes_means_and_draws(fitted, digits):
    X = digits[0][:5].astype(float)
    mask = np.zeros((5, 8, 8), dtype=bool)
    mask[:, :, 4:] = True
    display = InpaintingDisplay.from_estimator(
        fitted, X, mask=mask, n_draws=2, random_state=0, vmin=0, vmax=1
    )
    drawn = cells(display, 20).reshape(4, 5, 64)
    hidden = mask.reshape(5, 64)
    assert np.isnan(drawn[0][hidden]).all()
    for row in drawn:
        np.testing.assert_allclose(row[~hidden], X[~hidden], atol=1e-6)
    mean = fitted.impute(X, mask=hidden).clip(0, 1)
    np.testing.assert_allclose(drawn[1], mean, atol=1e-6)
    assert (drawn[2] != drawn[3])[hidden].any()


def test_training_is_drawn_by_epoch(fitted):
    display = TrainingDisplay.from_estimator(fitted)
    assert [line.get_label() for line in display.lines_] == ["loss", "validation_loss"]
    losses = [row["loss"] for row in fitted.history_]
    np.testing.assert_array_equal(display.lines_[0].get_ydata(), losses)
    _, ax = plt.subplots()
    again = TrainingDisplay.from_history(fitted.history_, ax=ax, keys=["loss"])
    assert again.ax_ is ax
    assert again.figure_ is ax.figure
    with pytest.raises(ValueError, match=r"keys must be columns of the history, \['epoch', 'loss'"):
        again.plot(keys=["los"])


def test_samples_of_a_class():
    X = np.repeat([[0.0, 0.0], [1.0, 1.0]], 20, axis=0)
    clf = DCGMMClassifier(layers=[ConvGMM(2)], image_shape=(1, 2), max_epochs=200, random_state=0)
    clf.fit(X, np.repeat(["low", "high"], 20))
    display = SamplesDisplay.from_estimator(clf, y="high", n_samples=5, random_state=0)
    np.testing.assert_allclose(display.images, 1, atol=0.1)


def test_displays_draw_again_in_other_axes(fitted):
    display = PrototypesDisplay.from_estimator(fitted)
    _, ax = plt.subplots()
    assert display.plot(ax=ax).ax_ is ax
    with pytest.raises(Exception, match="not fitted"):
        PrototypesDisplay.from_estimator(DCGMMEstimator())

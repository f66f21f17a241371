import pickle

import matplotlib.pyplot as plt
import numpy as np
import pytest

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator, DCGMMOutlierDetector
from skdcgmm.plotting import (
    AnomalyDisplay,
    DendrogramDisplay,
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
    given = SamplesDisplay(expected.reshape(7, 8, 8), image_shape=(8, 8)).plot(vmin=0, vmax=1)
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


def test_abnormal_places_are_red_and_others_as_they_are(digits):
    X = digits[0][:4]
    maps = np.ones((4, 8, 8))
    maps[1, 2, 3], maps[1, 2, 4], maps[2, 5] = -5, -2.5, np.nan
    drawn = AnomalyDisplay(X, maps, image_shape=(8, 8)).plot(vmin=0, vmax=1)
    shown = drawn.ax_.images[0].get_array()  # (19, 37, 3), with frames
    above, below = shown[1:9], shown[10:18]
    np.testing.assert_allclose(above[:, 1:9, 0], X[0].reshape(8, 8), atol=1e-6)
    changed = np.argwhere((above != below).any(2))
    assert {tuple(place) for place in changed} == {(2, 10 + 3), (2, 10 + 4)}
    half = 0.6 * above[2, 14] + 0.4 * np.array([0.9, 0.1, 0.1])
    np.testing.assert_allclose(below[2, 14], half)
    np.testing.assert_allclose(below[2, 13], 0.2 * above[2, 13] + 0.8 * np.array([0.9, 0.1, 0.1]))
    with pytest.raises(ValueError, match=r"maps must have the shape .* \(4, 8, 8\); got \(4, 8\)"):
        AnomalyDisplay(X, maps[:, 0], image_shape=(8, 8)).plot()
    with pytest.raises(ValueError, match="low must be a number"):
        drawn.plot(low=1.0)
    with pytest.raises(ValueError, match=r"scores must be of shape \(4,\); got \(3,\)"):
        AnomalyDisplay(X, maps, image_shape=(8, 8), scores=[1, 2, 3]).plot()


def test_abnormal_images_have_their_scores_above_and_one_bar_for_all(digits):
    X = digits[0][:7]
    maps = np.zeros((7, 8, 8))
    display = AnomalyDisplay(X, maps, image_shape=(8, 8), scores=np.arange(7), n_columns=4).plot(
        low=-3, vmin=0, vmax=1
    )
    shown = display.ax_.images[0].get_array()
    strip = 2  # rows above each image, for its score
    assert shown.shape == (1 + 2 * (strip + 8 + 1 + 8 + 1), 1 + 4 * 9, 3)
    sixth = shown[1 + 20 + strip :][:8, 1 + 9 :][:, :8, 0]
    np.testing.assert_allclose(sixth, X[5].reshape(8, 8), atol=1e-6)
    titles = [text.get_text() for text in display.ax_.texts]
    assert titles == [f"score {i:.1f}" for i in range(7)]
    column, row = display.ax_.texts[5].get_position()
    assert (column, row) == (1 + 9 + 3.5, 1 + 20 + 0.5)
    assert (display.colorbar_.vmin, display.colorbar_.vmax) == (-3, 0)
    # The bar has the colours of white pixels, and each image is seen large enough.
    white = AnomalyDisplay(np.ones((1, 1, 1)), np.full((1, 1, 1), -2.0), image_shape=(1, 1))
    pixel = white.plot(low=-3, vmin=0, vmax=1).ax_.images[0].get_array()[3, 1]
    np.testing.assert_allclose(display.colorbar_.cmap(1 / 3)[:3], pixel, atol=0.01)
    width, height = display.figure_.get_size_inches()
    assert width > 4 * 1.5
    assert height > 2 * 2 * 1.5
    assert display.plot(colorbar=False).colorbar_ is None


def test_anomalies_of_a_detector_are_those_of_its_methods(digits):
    X = digits[0][:4]
    detector = DCGMMOutlierDetector(
        layers=[ConvGMM(4, 4), ConvGMM(3)], image_shape=(8, 8), max_epochs=1, random_state=0
    ).fit(digits[0][:200])
    display = AnomalyDisplay.from_estimator(detector, X)
    np.testing.assert_array_equal(display.maps, detector.score_map(X))
    np.testing.assert_array_equal(display.scores, detector.score_samples(X))


def test_training_is_drawn_by_epoch(fitted):
    display = TrainingDisplay.from_estimator(fitted)
    assert [line.get_label() for line in display.lines_] == ["loss", "validation_loss"]
    losses = [row["loss"] for row in fitted.history_]
    np.testing.assert_array_equal(display.lines_[0].get_ydata(), losses)
    _, ax = plt.subplots()
    again = TrainingDisplay(fitted.history_).plot(ax=ax, keys=["loss"])
    assert again.ax_ is ax
    assert again.figure_ is ax.figure
    with pytest.raises(ValueError, match=r"keys must be columns of the history, \['epoch', 'loss'"):
        again.plot(keys=["los"])


def drawn_mergers(display):
    """Height of each merger in the picture, by the leaves below it."""
    below = {(5.0 + 10 * place, 0.0): {leaf} for place, leaf in enumerate(display.leaves_)}
    lines = display.ax_.lines[: len(display.leaves_) - 1]
    mergers, found = [line.get_xydata().tolist() for line in lines], {}
    while mergers:
        merger = next(m for m in mergers if tuple(m[0]) in below and tuple(m[3]) in below)
        mergers.remove(merger)
        (left, low), (_, height), _, (right, other_low) = merger
        leaves = below.pop((left, low)) | below.pop((right, other_low))
        below[(left + right) / 2, height] = leaves
        found[frozenset(leaves)] = height
    return found


@pytest.mark.parametrize("n_leaves", [2, 5, 12, 100])
def test_a_dendrogram_shows_the_last_mergers(fitted, n_leaves):
    est = pickle.loads(pickle.dumps(fitted)).set_params(n_clusters=4)
    display = DendrogramDisplay.from_estimator(est, n_leaves=n_leaves)
    assert est.n_clusters == 4
    n_leaves = min(n_leaves, 12)
    n_merged = 12 - n_leaves
    clusters = est.set_params(n_clusters=n_leaves).clusters_
    nodes = [{component} for component in range(12)]
    for one, other in est.children_:
        nodes.append(nodes[one] | nodes[other])
    expected = {
        frozenset(clusters[list(components)].tolist()): distance
        for components, distance in zip(
            nodes[12 + n_merged :], est.distances_[n_merged:], strict=True
        )
    }
    assert drawn_mergers(display) == pytest.approx(expected)
    # The mean image of each leaf is below it.
    display.figure_.canvas.draw()
    pictures = display.ax_.child_axes
    assert len(pictures) == n_leaves
    limits = np.percentile(est.cluster_centers_, [1, 99])
    for place, (leaf, picture) in enumerate(zip(display.leaves_, pictures, strict=True)):
        shown = np.asarray(picture.images[0].get_array())[1:-1, 1:-1].ravel()
        expected = ((est.cluster_centers_[leaf] - limits[0]) / np.ptp(limits)).clip(0, 1)
        np.testing.assert_allclose(shown, expected, atol=1e-6)
        middle = display.ax_.transData.transform((5 + 10 * place, 0))[0]
        assert np.mean(picture.get_window_extent().intervalx) == pytest.approx(middle, abs=1)


def test_a_dashed_line_cuts_a_dendrogram_into_the_clusters(fitted):
    est = pickle.loads(pickle.dumps(fitted))
    for n_clusters, n_leaves in ((1, 12), (2, 2), (4, 6), (6, 6), (12, 12), (None, 20)):
        est.set_params(n_clusters=n_clusters)
        display = DendrogramDisplay.from_estimator(est, n_leaves=n_leaves)
        *_, line = display.ax_.lines
        height = line.get_ydata()[0]
        assert line.get_linestyle() == "--"
        heights = np.array(list(drawn_mergers(display).values()))
        # Mergers may be of one height, between which no line can pass.
        assert (heights > height).sum() <= (n_clusters or 12) - 1 <= (heights >= height).sum()
    est.set_params(n_clusters=8)
    styles = [
        line.get_linestyle() for line in DendrogramDisplay.from_estimator(est, n_leaves=7).ax_.lines
    ]
    assert styles == ["-"] * 6


def test_a_dendrogram_of_plain_features_has_numbers(digits):
    X = digits[0][:, 18:22]
    est = DCGMMEstimator(5, max_epochs=20, random_state=0).fit(X)
    _, ax = plt.subplots()
    display = DendrogramDisplay.from_estimator(est, n_leaves=5, ax=ax)
    assert display.ax_ is ax
    assert not ax.child_axes
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(n) for n in display.leaves_]
    assert sorted(display.leaves_) == list(range(5))
    with pytest.raises(ValueError, match="n_leaves must be an integer >= 2; got 1"):
        DendrogramDisplay.from_estimator(est, n_leaves=1)
    one = DCGMMEstimator(1, max_epochs=1).fit(X)
    with pytest.raises(ValueError, match="estimator must have a tree of mergers"):
        DendrogramDisplay.from_estimator(one)
    same = DendrogramDisplay(np.array([[0, 1]]), np.zeros(1), X[:2], image_shape=(1, 1, 4)).plot()
    assert len(same.ax_.lines) == 1


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
    with pytest.raises(Exception, match="not fitted"):
        DendrogramDisplay.from_estimator(DCGMMEstimator())

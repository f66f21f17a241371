"""The pictures of the documentation, each from a named set of images, drawn at random by a seed.

    python -m benchmarks.photographs --data-home FOLDER
    python -m benchmarks.photographs boards faces --data-home FOLDER --output FOLDER

FOLDER holds coil20.npz, gtsrb.npz, pcb.npz, att_faces.npz, mnist.npz and fashion_mnist.npz. What is
measured on the way is printed.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score

from benchmarks.features import precision_recall
from skdcgmm import DCGMMEstimator, DCGMMOutlierDetector
from skdcgmm.plotting import AnomalyDisplay, plot_images

STATIC = Path(__file__).parent.parent / "docs" / "_static"
SEED, N_FEATURES = 0, 50
N_SHOWN_CLUSTERS, N_OF_CLUSTER = 20, 10
N_BOARDS, N_BAD, N_GOOD = 200, 6, 2
# Of each person, photographs that a model learns from; the next is filled in.
N_OF_PERSON, N_PEOPLE, N_SQUARES, SQUARE = 9, 10, 6, 10


def read(folder, name, *keys):
    with np.load(folder / f"{name}.npz") as arrays:
        return [arrays[key] for key in keys]


def panels(shape, n_columns, titled, n_across=1, width=7):
    """A figure of titled grids of images of bytes."""
    figure = Figure(layout="constrained")
    n_down = -(-len(titled) // n_across)
    rows = max(-(-len(images) // n_columns) for images in titled.values())
    cell = width / n_across / n_columns
    figure.set_size_inches(width, n_down * (rows * cell * shape[0] / shape[1] + 0.25))
    for ax, (title, images) in zip(
        figure.subplots(n_down, n_across, squeeze=False).flat, titled.items(), strict=True
    ):
        images = np.asarray(images).reshape(-1, *shape) / 255
        plot_images(images, image_shape=shape, n_columns=n_columns, ax=ax, vmin=0, vmax=1)
        ax.set_title(title, fontsize="medium")
    return figure


def clusters(folder, name, keys, n_clusters, title):
    """The largest clusters, a row each."""
    X, y = read(folder, name, *keys)
    est = DCGMMEstimator(n_clusters, random_state=SEED).fit(X)
    print(f"{name}: mutual information {normalized_mutual_info_score(y, est.labels_):.2f}")
    rng = np.random.RandomState(SEED)
    rows = [
        X[rng.choice(np.flatnonzero(est.labels_ == cluster), N_OF_CLUSTER)]
        for cluster in range(N_SHOWN_CLUSTERS)
    ]
    half = N_SHOWN_CLUSTERS // 2
    titled = {
        f"{title}: clusters 1 to {half}": np.concatenate(rows[:half]),
        f"clusters {half + 1} to {N_SHOWN_CLUSTERS}": np.concatenate(rows[half:]),
    }
    return panels(X.shape[1:], N_OF_CLUSTER, titled, n_across=2)


def boards(folder):
    """Boards, most with a defect, and where."""
    X, X_test, y_test = read(folder, "pcb", "X_train", "X_test", "y_test")
    detector = DCGMMOutlierDetector(
        score_method="windows", max_epochs=1, contamination=0.01, random_state=SEED
    )
    start = time.perf_counter()
    detector.fit(X[:N_BOARDS])
    fit_s = time.perf_counter() - start
    scores = detector.score_samples(X_test)
    auc = roc_auc_score(y_test, -scores)
    of_good, of_bad = ((scores < detector.offset_)[y_test == kind].mean() for kind in (0, 1))
    print(
        f"pcb: {N_BOARDS} good boards, fit {fit_s:.0f} s; area under the ROC curve {auc:.3f}; "
        f"called {of_bad:.2f} of bad and {of_good:.3f} of good"
    )
    rng = np.random.RandomState(SEED)
    bad, good = (
        rng.choice(np.flatnonzero(y_test == kind), n, replace=False)
        for kind, n in ((1, N_BAD), (0, N_GOOD))
    )
    shown = X_test[np.r_[bad, good]]
    # White is drawn grey, and is told from the page.
    display = AnomalyDisplay.from_estimator(detector, shown, n_columns=len(shown), vmin=0, vmax=300)
    return display.figure_


def faces(folder):
    """Photographs of people with squares, or their lower halves, missing."""
    (X,) = read(folder, "att_faces", "X")
    small = halved(X)
    new = np.arange(len(X)) % (N_OF_PERSON + 1) == N_OF_PERSON
    est = DCGMMEstimator(pixels="tiles", random_state=SEED).fit(small[~new])
    shown = small[new][:: new.sum() // N_PEOPLE].astype(float)
    rng = np.random.RandomState(SEED)
    squares, halves = np.zeros((2, *shown.shape), bool)
    for hidden in squares:
        for row, column in rng.randint(0, np.array(hidden.shape) - SQUARE, (N_SQUARES, 2)):
            hidden[row : row + SQUARE, column : column + SQUARE] = True
    halves[:, shown.shape[1] // 2 :] = True
    rows = []
    for what, mask in (("squares", squares), ("lower halves", halves)):
        filled = est.impute(shown, mask=mask).reshape(shown.shape)
        mean = np.broadcast_to(small[~new].mean(0), shown.shape)
        error, of_mean = (np.square(guess - shown)[mask].mean() for guess in (filled, mean))
        print(f"att_faces: squared error in {what} {error:.0f}, of the mean face {of_mean:.0f}")
        rows += [np.where(mask, np.nan, shown), filled]
    title = "photographs (AT&T): squares missing, filled in; lower half missing, filled in; whole"
    titled = {title: np.concatenate([*rows, shown])}
    return panels(shown.shape[1:], N_PEOPLE, titled)


def halved(X):
    return X.reshape(len(X), X.shape[1] // 2, 2, X.shape[2] // 2, 2).mean((2, 4)).astype(np.uint8)


def draws(folder, name, key, title):
    """Images beside what the default stack draws of them."""
    (X,) = read(folder, name, key)
    if name == "att_faces":
        X = halved(X)
    start = time.perf_counter()
    est = DCGMMEstimator(random_state=SEED).fit(X)
    fit_s = time.perf_counter() - start
    drawn = est.sample(min(len(X), 5000), random_state=SEED)[0]
    pca = PCA(N_FEATURES, random_state=0).fit(X.reshape(len(X), -1))
    features = [pca.transform(rows.reshape(len(rows), -1)) for rows in (drawn, X)]
    precision, recall = precision_recall(*features)
    print(f"{name}: precision {precision:.2f}, recall {recall:.2f}, fit {fit_s:.0f} s")
    titled = {
        f"{title}: images": X[np.random.RandomState(SEED).choice(len(X), 40, replace=False)],
        "drawn": drawn[:40],
        "drawn without pixel noise, temperature=0": est.sample(
            40, temperature=0, random_state=SEED
        )[0],
    }
    return panels(X.shape[1:], 20, titled)


PICTURES = {
    "objects": partial(
        clusters, name="coil20", keys=("X", "y"), n_clusters=20, title="objects (COIL-20)"
    ),
    "signs": partial(
        clusters, name="gtsrb", keys=("X_train", "y_train"), n_clusters=43,
        title="traffic signs (GTSRB)",
    ),
    "boards": boards,
    "faces": faces,
    "drawn_signs": partial(draws, name="gtsrb", key="X_train", title="traffic signs (GTSRB)"),
    "drawn_faces": partial(draws, name="att_faces", key="X", title="faces (AT&T)"),
    "drawn_digits": partial(draws, name="mnist", key="X_train", title="MNIST"),
    "drawn_clothes": partial(draws, name="fashion_mnist", key="X_train", title="Fashion-MNIST"),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="*", help=f"some of {', '.join(PICTURES)}; else all")
    parser.add_argument("--data-home", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=STATIC)
    options = parser.parse_args()
    for name in options.pictures or PICTURES:
        path = options.output / f"{name}.png"
        PICTURES[name](options.data_home).savefig(path, dpi=100)
        # A palette makes a small file.
        Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main()

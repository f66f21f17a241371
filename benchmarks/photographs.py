"""What the default stack draws of photographs, or of digits and clothes, beside as many real ones.

python -m benchmarks.photographs --data-home FOLDER --output docs/_static/photographs.png
python -m benchmarks.photographs --data-home FOLDER --sets mnist fashion_mnist \
    --output docs/_static/draws.png

FOLDER holds gtsrb.npz (traffic signs, colour) and att_faces.npz (faces, which are made 64 x 64), or
mnist.npz and fashion_mnist.npz.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import zoom
from sklearn.decomposition import PCA

from benchmarks.features import precision_recall
from skdcgmm import DCGMMEstimator
from skdcgmm.plotting import plot_images

N_SHOWN, N_FEATURES = 40, 50


def faces(folder):
    with np.load(folder / "att_faces.npz") as arrays:
        X = arrays["X"].astype(np.float32)
    small = zoom(X, (1, 64 / X.shape[1], 64 / X.shape[2]), order=1)
    return small.clip(0, 255).astype(np.uint8)


def training(folder, name):
    with np.load(folder / f"{name}.npz") as arrays:
        return arrays["X_train"]


SETS = {
    "gtsrb": ("traffic signs (GTSRB)", partial(training, name="gtsrb")),
    "att_faces": ("faces (AT&T)", faces),
    "mnist": ("MNIST", partial(training, name="mnist")),
    "fashion_mnist": ("Fashion-MNIST", partial(training, name="fashion_mnist")),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-home", type=Path, required=True)
    parser.add_argument("--sets", nargs=2, choices=SETS, default=["gtsrb", "att_faces"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="photographs.png")
    options = parser.parse_args()
    figure = Figure(figsize=(10, 8.4), layout="constrained")
    axes = iter(figure.subplots(6, 1).flat)
    for name, read in (SETS[chosen] for chosen in options.sets):
        X = read(options.data_home)
        start = time.perf_counter()
        est = DCGMMEstimator(image_shape=X.shape[1:], random_state=options.seed).fit(X)
        fit_s = time.perf_counter() - start
        drawn = est.sample(min(len(X), 5000))[0].reshape(-1, *X.shape[1:]).clip(0, 255)
        pca = PCA(N_FEATURES, random_state=0).fit(X.reshape(len(X), -1))
        features = [pca.transform(rows.reshape(len(rows), -1)) for rows in (drawn, X)]
        precision, recall = precision_recall(*features)
        print(f"{name}: precision {precision:.2f}, recall {recall:.2f}, fit {fit_s:.0f} s")
        real = X[np.random.RandomState(0).choice(len(X), N_SHOWN, replace=False)]
        pictures = est.sample(N_SHOWN, temperature=0)[0].reshape(-1, *X.shape[1:]).clip(0, 255)
        for title, images in (
            ("images", real),
            ("drawn, temperature 1", drawn[:N_SHOWN]),
            ("drawn, temperature 0", pictures),
        ):
            ax = next(axes)
            plot_images(images / 255, image_shape=X.shape[1:], n_columns=20, ax=ax, vmin=0, vmax=1)
            ax.set_title(f"{name}: {title}")
    figure.savefig(options.output, dpi=100)
    Image.open(options.output).convert("RGB").quantize().save(options.output)


if __name__ == "__main__":
    main()

"""What a stack of tiles draws and completes after one fit to MNIST.

python -m benchmarks.pictures --data-home FOLDER --output docs/_static/joint.png
"""

import argparse

import numpy as np
from matplotlib.figure import Figure

from skdcgmm import DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import plot_images

N_IMAGES = 40


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist", choices=["mnist", "fashion_mnist"])
    parser.add_argument("--data-home")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="joint.png")
    options = parser.parse_args()
    data = load_images(options.data, data_home=options.data_home)
    est = DCGMMEstimator(image_shape=data.image_shape, pixels="tiles", random_state=options.seed)
    est.fit(data.X_train)
    height, width = data.image_shape[:2]
    hidden = data.X_test[:N_IMAGES].reshape(-1, height, width).copy()
    hidden[:, :, width // 2 :] = np.nan
    panels = [
        ("drawn, temperature 0", est.sample(N_IMAGES, temperature=0)[0]),
        ("drawn, temperature 1", est.sample(N_IMAGES)[0].clip(0, 1)),
        ("test images, right half missing", np.nan_to_num(hidden, nan=0.5)),
        ("completed by the conditional mean", est.impute(hidden)),
    ]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for ax, (title, images) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        plot_images(images, image_shape=data.image_shape, n_columns=10, ax=ax, vmin=0, vmax=1)
        ax.set_title(title)
    figure.savefig(options.output, dpi=100)


if __name__ == "__main__":
    main()

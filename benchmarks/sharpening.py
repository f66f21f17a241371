"""Architecture b on MNIST: how its annealing ends, and what sharpening does to its samples.

    python -m benchmarks.sharpening --data-home FOLDER --output docs/_static/mnist.png

Prints a JSON line and writes a picture: samples, the same sharpened, and the parts. With
`--learning-rate 0.011 --max-epochs 20`, training at the published pace.
"""

import argparse
import json
import time

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import normalized_mutual_info_score

from skdcgmm import DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import plot_images


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist", choices=["mnist", "fashion_mnist"])
    parser.add_argument("--data-home")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, help="published: 0.011")
    parser.add_argument("--max-epochs", type=int)
    parser.add_argument("--output", default="mnist.png")
    options = parser.parse_args()
    data = load_images(options.data, data_home=options.data_home)
    est = DCGMMEstimator(
        layers="dcgmm-b",
        objective="layerwise",
        score_method="layer",
        image_shape=data.image_shape,
        learning_rate=options.learning_rate,
        max_epochs=options.max_epochs,
        random_state=options.seed,
        verbose=1,
    )
    start = time.perf_counter()
    est.fit(data.X_train)
    fit_time = time.perf_counter() - start
    labels = est.predict(data.X_test)
    samples, clusters = est.sample(40)
    start = time.perf_counter()
    sharp = est.sharpen(samples)
    sharpen_time = time.perf_counter() - start
    row = {
        "data": options.data,
        "seed": options.seed,
        "learning_rate": options.learning_rate,
        "n_images": len(data.X_train),
        "fit_s": round(fit_time, 1),
        "epochs": est.n_iter_,
        "radii": [est.history_[-1][f"{name}__radius"] for name in est.weights_],
        "test_score": round(float(est.score_samples(data.X_test).mean()), 1),
        "clusters_used": len(np.unique(labels)),
        "nmi": round(normalized_mutual_info_score(data.y_test, labels), 3),
        "samples_recognised": float(np.mean(est.predict(samples) == clusters)),
        "sharpen_ms_per_image": round(sharpen_time / len(samples) * 1e3, 1),
    }
    for name in est.weights_:
        est.set_params(score_layer=name)
        before, after = est.score_samples(samples), est.score_samples(sharp)
        alone = est.score_samples(est.sharpen(samples, layer=name))
        row[f"{name}_score"] = {
            "samples": round(float(before.mean()), 2),
            "sharpened": round(float(after.mean()), 2),
            "sharpened for this layer": round(float(alone.mean()), 2),
            "share raised": float(np.mean(alone > before)),
        }
    print(json.dumps(row))
    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = [
        ("samples", samples),
        ("the same, sharpened", sharp),
        ("training images", data.X_train[:40]),
        ("parts: means of the first layer", est.means_["convgmm1"][:40]),
    ]
    for ax, (title, images) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        side = round(images.shape[1] ** 0.5)
        plot_images(images, image_shape=(side, side), ax=ax, n_columns=8, vmin=0, vmax=1)
        ax.set_title(title)
    figure.savefig(options.output, dpi=80)


if __name__ == "__main__":
    main()

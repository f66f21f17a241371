"""The demo: a deep stack beside scikit-learn's flat mixture, on the same images."""

import argparse
import time
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.utils import Bunch

from skdcgmm import DCGMMEstimator, DCGMMOutlierDetector
from skdcgmm.datasets import load_images
from skdcgmm.plotting import plot_images

# Half of the variance of the pixels, the same bound of the variances for both models.
_REG_COVAR = 0.05
_N_CLUSTERS, _N_DRAWN = 10, 40


def main(arguments: list[str] | None = None) -> None:
    """Fit, compare, print a table and write a picture."""
    parser = argparse.ArgumentParser(prog="python -m skdcgmm", description=__doc__)
    parser.add_argument("--data", default="digits", choices=["digits", "mnist", "fashion_mnist"])
    parser.add_argument("--data-home", help="folder of the data; default: SKDCGMM_DATA")
    parser.add_argument("--left-out", type=int, default=8, help="the class of the outliers")
    parser.add_argument("--output", default="skdcgmm-demo.png", help="the picture to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    data = load_images(options.data, data_home=options.data_home)
    common: dict[str, Any] = {"reg_covar": _REG_COVAR, "random_state": options.seed}
    flat = GaussianMixture(_N_CLUSTERS, covariance_type="diag", **common)
    # Ten components would find few outliers, and draw blurs.
    larger = GaussianMixture(49, covariance_type="diag", **common)
    common["image_shape"] = data.image_shape
    deep = DCGMMEstimator(_N_CLUSTERS, **common)
    # Only the order of the scores counts here: no images need be held out for a threshold.
    detector = DCGMMOutlierDetector(validation_fraction=None, **common)
    print(
        f"{options.data}: {len(data.X_train)} training and {len(data.X_test)} test images. "
        f"Clusters: {_N_CLUSTERS}; outliers: class {options.left_out}, left out of training.\n"
    )
    print(f"{'':24}{'fit s':>8}{'NMI':>8}{'ARI':>8}{'outlier AUC':>13}{'ms a sample':>13}")
    _measure("GaussianMixture (flat)", flat, larger, data, options.left_out)
    _measure("DCGMM (deep)", deep, detector, data, options.left_out)
    _draw(larger.fit(data.X_train), deep, data, options.output, options.seed)
    print(f"\nPicture: {options.output}")


def _measure(name: str, clusterer: Any, detector: Any, data: Bunch, left_out: int) -> None:
    """Fit a model for clusters and one for outliers, and print their figures."""
    start = time.perf_counter()
    clusterer.fit(data.X_train)
    fit_time = time.perf_counter() - start
    labels = clusterer.predict(data.X_test)
    nmi = normalized_mutual_info_score(data.y_test, labels)
    ari = adjusted_rand_score(data.y_test, labels)
    detector.fit(data.X_train[data.y_train != left_out])
    auc = roc_auc_score(data.y_test == left_out, -detector.score_samples(data.X_test))
    start = time.perf_counter()
    clusterer.sample(1000)  # of which each takes as many milliseconds as all take seconds
    sample_time = time.perf_counter() - start
    print(f"{name:24}{fit_time:8.1f}{nmi:8.3f}{ari:8.3f}{auc:13.3f}{sample_time:13.3f}")


def _draw(flat: Any, deep: Any, data: Bunch, path: str, seed: int) -> None:
    """Write prototypes and samples of both models, and completed images, to one picture."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    n_each = _N_DRAWN // _N_CLUSTERS
    of_clusters = [deep.sample(n_each, cluster=k, temperature=0)[0] for k in range(_N_CLUSTERS)]
    halves = data.X_test[:_N_DRAWN].reshape(-1, *data.image_shape).copy()
    halves[:, :, data.image_shape[1] // 2 :] = np.nan
    halves = halves.reshape(_N_DRAWN, -1)
    panels = {
        "flat: component means": flat.means_[:_N_DRAWN],
        "deep: samples of each cluster without noise": np.concatenate(np.stack(of_clusters, 1)),
        "flat: samples": np.random.default_rng(seed).permutation(flat.sample(_N_DRAWN)[0]),
        "deep: samples": deep.sample(_N_DRAWN)[0],
        "test images, right half hidden": halves,
        "deep: completed": deep.impute(halves),
    }
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(10, 7.5), layout="constrained")
        for ax, (title, images) in zip(figure.subplots(3, 2).flat, panels.items(), strict=True):
            plot_images(images, image_shape=data.image_shape, ax=ax, vmin=0, vmax=1)
            ax.set_title(title)
        figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()

"""The demo: a deep stack beside scikit-learn's flat mixture, on the same images."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    roc_auc_score,
)
from sklearn.mixture import GaussianMixture
from sklearn.utils import Bunch

from skdcgmm import DCGMMEstimator, DCGMMOutlierDetector
from skdcgmm.datasets import load_images
from skdcgmm.plotting import plot_images

# Half of the variance of the pixels, the same bound of the variances for both models.
_REG_COVAR = 0.05
_N_DRAWN = 40


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
    seed = options.seed

    def flat(n_components: int) -> GaussianMixture:
        return GaussianMixture(
            n_components, covariance_type="diag", reg_covar=_REG_COVAR, random_state=seed
        )

    parameters = {"image_shape": data.image_shape, "reg_covar": _REG_COVAR, "random_state": seed}
    makers: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "GaussianMixture (flat)": (lambda: flat(10), lambda: flat(49)),
        "DCGMM (deep)": (
            lambda: DCGMMEstimator(10, **parameters),
            # Only the order of the scores counts here: no images need be held out for a threshold.
            lambda: DCGMMOutlierDetector(validation_fraction=None, **parameters),
        ),
    }
    print(
        f"{options.data}: {len(data.X_train)} training and {len(data.X_test)} test images. "
        f"Clusters: 10; outliers: class {options.left_out}, left out of training.\n"
    )
    print(f"{'':24}{'fit s':>8}{'NMI':>8}{'ARI':>8}{'outlier AUC':>13}{'ms a sample':>13}")
    models = {}
    for name, (clusterer, detector) in makers.items():
        models[name], figures = _measure(clusterer(), detector(), data, options.left_out)
        fit_time, nmi, ari, auc, sample_time = figures
        print(f"{name:24}{fit_time:8.1f}{nmi:8.3f}{ari:8.3f}{auc:13.3f}{sample_time:13.3f}")
    # Ten components would draw blurs: for the picture, as many as find outliers.
    _draw(flat(49).fit(data.X_train), models["DCGMM (deep)"], data, options.output, seed)
    print(f"\nPicture: {options.output}")


def _measure(
    clusterer: Any, detector: Any, data: Bunch, left_out: int
) -> tuple[Any, tuple[float, float, float, float, float]]:
    """Fit a model for clusters and one for outliers; the former and the figures."""
    start = time.perf_counter()
    clusterer.fit(data.X_train)
    fit_time = time.perf_counter() - start
    labels = clusterer.predict(data.X_test)
    detector.fit(data.X_train[data.y_train != left_out])
    auc = roc_auc_score(data.y_test == left_out, -detector.score_samples(data.X_test))
    start = time.perf_counter()
    clusterer.sample(1000)
    sample_time = time.perf_counter() - start
    return clusterer, (
        fit_time,
        normalized_mutual_info_score(data.y_test, labels),
        adjusted_rand_score(data.y_test, labels),
        auc,
        sample_time,
    )


def _draw(flat: Any, deep: Any, data: Bunch, path: str, seed: int) -> None:
    """Write prototypes and samples of both models, and completed images, to one picture."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    by_cluster = [deep.sample(4, cluster=k, temperature=0)[0] for k in range(10)]
    halves = data.X_test[:_N_DRAWN].reshape(-1, *data.image_shape).copy()
    halves[:, :, data.image_shape[1] // 2 :] = np.nan
    halves = halves.reshape(_N_DRAWN, -1)
    panels: list[tuple[str, NDArray[np.floating[Any]]]] = [
        ("flat: component means", flat.means_[:_N_DRAWN]),
        (
            "deep: samples of each cluster without noise",
            np.stack(by_cluster, 1).reshape(_N_DRAWN, -1),
        ),
        ("flat: samples", np.random.default_rng(seed).permutation(flat.sample(_N_DRAWN)[0])),
        ("deep: samples", deep.sample(_N_DRAWN)[0]),
        ("test images, right half hidden", halves),
        ("deep: completed", deep.impute(halves)),
    ]
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(10, 7.5), layout="constrained")
        for ax, (title, images) in zip(figure.subplots(3, 2).flat, panels, strict=True):
            side = round(images.shape[1] ** 0.5)
            plot_images(images, image_shape=(side, side), ax=ax, vmin=0, vmax=1)
            ax.set_title(title)
        figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()

"""Small pieces of the real data."""

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score
from sklearn.mixture import GaussianMixture

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.datasets import load_images


@pytest.mark.slow
def test_architecture_b_anneals_clusters_and_draws_on_mnist(data_home):
    data = load_images("mnist", data_home=data_home)
    X, y = data.X_train[:4000], data.y_train[:4000]
    est = DCGMMEstimator(
        layers=[ConvGMM(49, 8, 2), ConvGMM(25)],
        image_shape=data.image_shape,
        objective="layerwise",
        max_epochs=20,
        random_state=0,
    ).fit(X)
    assert est.history_[-1]["convgmm1__radius"] == 0.01
    assert est.history_[-1]["convgmm2__radius"] == 0.01
    assert normalized_mutual_info_score(y, est.labels_) > 0.4
    images, labels = est.sample(100)
    # What a cluster draws, the model recognises as that cluster.
    assert np.mean(est.predict(images) == labels) > 0.8


@pytest.mark.slow
def test_the_default_stack_beats_a_flat_mixture_and_completes_images(data_home):
    data = load_images("mnist", data_home=data_home)
    X = data.X_train[:5000]
    flat = GaussianMixture(49, covariance_type="diag", reg_covar=0.05, random_state=0).fit(X)
    est = DCGMMEstimator(
        image_shape=data.image_shape, reg_covar=0.05, max_epochs=10, random_state=0
    ).fit(X)
    assert est.score(data.X_test) > flat.score(data.X_test) + 50
    assert len(np.unique(est.labels_)) >= 80
    halves = data.X_test[:500].reshape(-1, 28, 28).copy()
    halves[:, :, 14:] = np.nan
    whole = data.X_test[:500].reshape(-1, 28, 28)
    alone = DCGMMEstimator(layers=[ConvGMM(49)], image_shape=data.image_shape, random_state=0)
    errors = [np.square(model.impute(halves) - whole).mean() for model in (est, alone.fit(X))]
    assert errors[0] < 0.9 * errors[1]

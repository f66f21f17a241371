"""Small pieces of the real data."""

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from skdcgmm import DCGMMEstimator
from skdcgmm.datasets import load_images


@pytest.mark.slow
def test_architecture_b_anneals_clusters_and_draws_on_mnist(data_home):
    data = load_images("mnist", data_home=data_home)
    X, y = data.X_train[:4000], data.y_train[:4000]
    est = DCGMMEstimator(
        25, layers="dcgmm-b", image_shape=data.image_shape, max_epochs=20, random_state=0
    ).fit(X)
    assert est.history_[-1]["convgmm1__radius"] == 0.01
    assert est.history_[-1]["convgmm2__radius"] == 0.01
    assert normalized_mutual_info_score(y, est.labels_) > 0.4
    images, labels = est.sample(100)
    # What a cluster draws, the model recognises as that cluster.
    assert np.mean(est.predict(images) == labels) > 0.8

"""Which estimator, which stack, how many parts? One grid search asks all three."""

import pandas as pd
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler

from skdcgmm import ConvGMM, DCGMMEstimator, MaxPool
from skdcgmm.datasets import load_images

data = load_images("digits")
flat = GaussianMixture(10, covariance_type="diag", reg_covar=0.05, random_state=0)
deep = DCGMMEstimator(10, image_shape=data.image_shape, max_epochs=60, random_state=0)

search = GridSearchCV(
    Pipeline([("scale", MinMaxScaler()), ("model", deep)]),
    [
        {"model": [flat]},
        {
            "model": [deep],
            "model__layers": [
                [ConvGMM(25, kernel_size=3, stride=1), ConvGMM(10)],
                [ConvGMM(25, kernel_size=3, stride=1), MaxPool(2), ConvGMM(10)],
            ],
            "model__convgmm1__n_components": [16, 36],
        },
    ],
    scoring="adjusted_rand_score",
    cv=3,
)
search.fit(data.X_train, data.y_train)

results = pd.DataFrame(search.cv_results_)
for row in results.sort_values("rank_test_score").to_dict("records"):
    name = type(row["params"]["model"]).__name__
    kinds = [type(layer).__name__ for layer in row["params"].get("model__layers", [])]
    parts = row["params"].get("model__convgmm1__n_components", "")
    print(f"{row['mean_test_score']:.3f}  {name:16} {' - '.join(kinds):30} {parts}")

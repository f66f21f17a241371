"""Which stack, and is it better than a flat mixture? Held-out log density tells."""

import pandas as pd
from sklearn.base import clone
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler

from skdcgmm import ConvGMM, DCGMMEstimator, MaxPool
from skdcgmm.datasets import load_images

data = load_images("digits")
flat = GaussianMixture(49, covariance_type="diag", reg_covar=0.05, random_state=0)
deep = DCGMMEstimator(image_shape=data.image_shape, reg_covar=0.05, random_state=0)
tiles = ConvGMM(16, kernel_size=2, shared=False)
stacks = {
    "4 x 4 tiles": [ConvGMM(49, kernel_size=4, shared=False), ConvGMM(49)],
    "2 x 2 tiles": [tiles, ConvGMM(49)],
    "2 x 2 tiles, pooled": [tiles, MaxPool(2), ConvGMM(49)],
    "2 x 2 tiles, windows": [tiles, ConvGMM(49, kernel_size=2, shared=False), ConvGMM(49)],
    "one component": [ConvGMM(1)],
}
pipeline = Pipeline([("scale", MinMaxScaler()), ("model", deep)])
grid = [{"model": [flat]}, {"model": [deep], "model__layers": list(stacks.values())}]
search = GridSearchCV(pipeline, grid, cv=3).fit(data.X_train)

results = pd.DataFrame(search.cv_results_).assign(stack=["GaussianMixture", *stacks])
print("held-out   test   nats an image")
for row in results.sort_values("rank_test_score").to_dict("records"):
    fitted = clone(pipeline).set_params(**row["params"]).fit(data.X_train)
    print(f"{row['mean_test_score']:8.2f} {fitted.score(data.X_test):6.2f}   {row['stack']}")

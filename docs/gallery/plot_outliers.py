"""
Outliers in a pipeline
======================

The detector learns from all digits but the zeros, and scores test images of all ten.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.metrics import RocCurveDisplay
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from skdcgmm import DCGMMOutlierDetector
from skdcgmm.datasets import load_images
from skdcgmm.plotting import SamplesDisplay

data = load_images("digits")
normal = data.X_train[data.y_train != 0]
detector = DCGMMOutlierDetector(image_shape=data.image_shape, contamination=0.05, random_state=0)
models = {
    "DCGMMOutlierDetector": make_pipeline(MinMaxScaler(), detector),
    "GaussianMixture": GaussianMixture(49, covariance_type="diag", reg_covar=0.05, random_state=0),
    "IsolationForest": IsolationForest(random_state=0),
}

# %%
# Scores are low for outliers, so that their negative ranks zeros first.
fig, ax = plt.subplots(figsize=(5, 5), layout="constrained")
for name, model in models.items():
    scores = model.fit(normal).score_samples(data.X_test)
    RocCurveDisplay.from_predictions(data.y_test == 0, -scores, name=name, ax=ax)
ax.set_title("zeros among test images")

# %%
# ``predict`` calls an image an outlier, -1, if it scores below ``offset_``, as a share of
# ``contamination`` of the images do that were held out: images that a model has learnt from score
# higher than new ones. Here test images are by other writers, so that more are called.
model = models["DCGMMOutlierDetector"]
outlier = model.predict(data.X_test) == -1
zero = data.y_test == 0
print(
    f"called outliers: {outlier[zero].mean():.0%} of zeros, {outlier[~zero].mean():.0%} of others"
)

# %%
# A grid search needs outliers to judge by, but not to learn from: folds that train on normal images
# and test on both.
outliers = data.X_train[data.y_train == 0]
X, y = np.r_[normal, outliers], np.r_[np.ones(len(normal)), -np.ones(len(outliers))]
beyond = np.arange(len(normal), len(X))
folds = [
    (train, np.r_[test, beyond])
    for train, test in KFold(3, shuffle=True, random_state=0).split(normal)
]
short = make_pipeline(MinMaxScaler(), clone(detector).set_params(max_epochs=20))
search = GridSearchCV(
    short,
    {"dcgmmoutlierdetector__reg_covar": [0.03, 0.15]},
    scoring="roc_auc",
    cv=folds,
    refit=False,
).fit(X, y)
print(search.best_params_, search.cv_results_["mean_test_score"].round(3))

# %%
# The test images of lowest score, the lowest first.
order = np.argsort(model.score_samples(data.X_test))
SamplesDisplay(data.X_test[order[:30]], image_shape=data.image_shape, n_columns=15).plot()

# %%
# Where an image is abnormal is told in :doc:`plot_inspection`.

"""
Grid search over stacks
=======================

A whole stack is a parameter, and so is each layer's, such as ``convgmm1__n_components``. A flat
:sklearn:`GaussianMixture <mixture.GaussianMixture>` stands in the same grid: all are densities of
the same images, and held-out density says which describes them best. A score of the clusters, here
the mutual information with the digits, adjusted for chance, goes along. ``reg_covar`` is the same
for all. ``GaussianMixture`` adds it to variances that it only bounds here, so that the fair
baseline of depth is the flat stack. Trainings are cut short, to 40 epochs, since this is a first
look. The images are as they are: a scaler would change the units of the densities.
"""

import matplotlib.pyplot as plt
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.pipeline import Pipeline

from skdcgmm import ConvGMM, DCGMMEstimator, MaxPool
from skdcgmm.datasets import load_images

data = load_images("digits")
flat = GaussianMixture(49, covariance_type="diag", reg_covar=0.05, random_state=0)
deep = DCGMMEstimator(image_shape=data.image_shape, reg_covar=0.05, max_epochs=40, random_state=0)
tiles = ConvGMM(16, kernel_size=2, shared=False)
stacks = {
    "flat stack": [ConvGMM(49)],
    "4 x 4 tiles": [ConvGMM(49, kernel_size=4, shared=False), ConvGMM(49)],
    "2 x 2 tiles": [tiles, ConvGMM(49)],
    "2 x 2 tiles, pooled": [tiles, MaxPool(2), ConvGMM(49)],
    "2 x 2 tiles, windows": [tiles, ConvGMM(49, kernel_size=2, shared=False), ConvGMM(49)],
}


def scores(model, X, y):
    clustering = adjusted_mutual_info_score(y, model.predict(X))
    return {"density": model.score(X), "clustering": clustering}


search = GridSearchCV(
    Pipeline([("model", deep)]),
    [{"model": [flat]}, {"model": [deep], "model__layers": list(stacks.values())}],
    scoring=scores,
    refit="density",
    cv=ShuffleSplit(2, test_size=0.25, random_state=0),
)
search.fit(data.X_train, data.y_train)
print("best:", search.best_params_.get("model__layers", "flat"))
print(f"test images: {search.score(data.X_test, data.y_test):.2f} nats")

# %%
# Means over two splits.
names = ["GaussianMixture", *stacks]
fig, axes = plt.subplots(1, 2, figsize=(8, 2.7), layout="constrained", sharey=True)
labels = {"density": "held-out log density in nats", "clustering": "adjusted mutual information"}
for ax, (key, label) in zip(axes, labels.items(), strict=True):
    ax.barh(names, search.cv_results_[f"mean_test_{key}"], color=["C1", *["C0"] * len(stacks)])
    ax.set_xlabel(label)
axes[0].invert_yaxis()

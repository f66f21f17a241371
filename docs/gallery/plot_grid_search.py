"""
Grid search in bits
===================

A whole stack is a parameter. *Bits a value*, what an ideal code needs for held-out images, compares
stacks with each other and with a flat mixture, and the least variance goes along, which decides how
finely pixels are told. Pixels are whole numbers from 0 to 16, as they are stored; there is no
scaler, which would change the units. Trainings are cut short, to 40 epochs, since this is a first
look: the winner is then trained in full, with ``max_epochs=None``, and compared with the default
stack, whose pixels have atoms, which no ``reg_covar`` allows.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.pipeline import Pipeline

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.metrics import bits_per_dim

X, _ = load_digits(return_X_y=True)
flat = GaussianMixture(49, covariance_type="diag", random_state=0)
deep = DCGMMEstimator(image_shape=(8, 8), max_epochs=40, random_state=0)
stacks = {
    "flat": [ConvGMM(49)],
    "4 x 4 tiles": [ConvGMM(49, kernel_size=4, shared=False), ConvGMM(49)],
    "2 x 2 tiles": [
        ConvGMM(16, kernel_size=2, shared=False),
        ConvGMM(49, kernel_size=2, shared=False),
        ConvGMM(49),
    ],
}


floors = [0.1, 1]
search = GridSearchCV(
    Pipeline([("model", deep)]),
    [
        {"model": [flat], "model__reg_covar": floors},
        {"model": [deep], "model__layers": list(stacks.values()), "model__reg_covar": floors},
    ],
    scoring=lambda model, X, _=None: -bits_per_dim(model, X).mean(),
    cv=ShuffleSplit(2, test_size=0.25, random_state=0),
)
search.fit(X[:1200])
print(f"other images: {-search.score(X[1200:]):.2f} bits a value")

# %%
# Means over two splits; lower is better.
names = ["GaussianMixture", *stacks]
bits = -search.cv_results_["mean_test_score"].reshape(len(names), len(floors))
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for floor, of_floor in zip(floors, bits.T, strict=True):
    ax.plot(of_floor, names, "o", label=f"reg_covar={floor}")
ax.invert_yaxis()
ax.set(xlabel="bits a value")
ax.grid(axis="y")
ax.legend()

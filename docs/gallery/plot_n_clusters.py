"""
Choosing the number of clusters
===============================

``n_clusters`` is a cut through a tree, ``children_``, by which all top components of a fitted stack
are merged, those first that the model confuses most. So one training serves all numbers of
clusters, and the tree helps to choose one.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import adjusted_rand_score

from skdcgmm import DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import DendrogramDisplay, PrototypesDisplay

data = load_images("digits")
# A pyramid, the pixels for clusters, which are the default where a number of them is given.
est = DCGMMEstimator(image_shape=data.image_shape, pixels="pyramid", random_state=0)
est.fit(data.X_train)
n_components = len(est.distances_) + 1
print(n_components, "top components")

# %%
# The last mergers, from 20 clusters on, above the mean images of these. Heights are ``distances_``;
# the dashed line is where ``n_clusters`` cuts.
est.set_params(n_clusters=12)
DendrogramDisplay.from_estimator(est, n_leaves=20)

# %%
# Where the distance steps up, what is merged next is farther apart than what was merged before: the
# numbers before large steps are candidates. The largest steps are often near the top, where odd
# clusters join last, and say little; look among the numbers that would be of use, here 3 to 30.
numbers = np.arange(2, 31)
steps = np.diff(est.distances_, prepend=0)[n_components - numbers]
chosen = numbers[1:][steps[1:].argmax()]
rand = [
    adjusted_rand_score(data.y_test, est.set_params(n_clusters=n).predict(data.X_test))
    for n in numbers
]
fig, axes = plt.subplots(2, 1, figsize=(7, 4), layout="constrained", sharex=True)
axes[0].bar(numbers, steps, color=np.where(numbers == chosen, "C1", "C0"))
axes[0].set(ylabel="step up")
axes[1].plot(numbers, rand, "o-")
axes[1].set(xlabel="clusters", ylabel="adjusted Rand index", xticks=numbers[::2])
print("chosen:", chosen)

# %%
# By the digits, which the model has not seen, the Rand index rises up to ten clusters and is then
# level for a while: with fewer, digits merge; with more, the ways to write one of them part. Mean
# images of the chosen clusters:
PrototypesDisplay.from_estimator(est.set_params(n_clusters=chosen), n_columns=chosen)

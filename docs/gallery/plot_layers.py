"""
A model, read layer by layer
============================

What a fitted stack has learnt can be looked at: parts in the first layer, and how they go together
in the tables of the next. What each layer sees in an image is in :doc:`plot_readout`.
"""

import matplotlib.pyplot as plt
import numpy as np

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import PrototypesDisplay, plot_images

data = load_images("digits")
stack = [("parts", ConvGMM(40, kernel_size=4, shared=False)), ("whole", ConvGMM(60))]
est = DCGMMEstimator(layers=stack, image_shape=data.image_shape, random_state=0).fit(data.X_train)
for name, means in est.means_.items():
    print(name, means.shape)

# %%
# The first layer has a mixture at each of two by two positions: parts of digits, 4 x 4 pixels each.
fig, axes = plt.subplots(2, 2, figsize=(8, 5), layout="constrained")
for position in np.ndindex(2, 2):
    ax = axes[position]
    plot_images(est.means_["parts"][position], image_shape=(4, 4), n_columns=10, ax=ax)
    ax.set_title(f"parts at row {position[0]}, column {position[1]}")

# %%
# A component of the top layer has a table for each position: the probability of each part there.
top = np.argsort(-est.weights_["whole"])[:10]  # the ten heaviest components
tables = est.means_["whole"].reshape(60, 2, 2, 40)[top]
fig, axes = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained", sharey=True)
for ax, position in zip(axes, np.ndindex(2, 2), strict=True):
    picture = ax.imshow(tables[:, *position], cmap="Greys", vmin=0, vmax=1, aspect="auto")
    ax.set(xlabel="part", title=f"row {position[0]}, column {position[1]}")
axes[0].set(ylabel="top component", yticks=range(10), yticklabels=top)
fig.colorbar(picture, ax=axes, label="probability")

# %%
# Parts, averaged by these tables, are the mean image of each top component.
PrototypesDisplay.from_estimator(est, n_columns=15)

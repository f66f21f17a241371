"""
Colour: tissue, by its patches
==============================

Images may have colours: here, patches of a microscope's picture of tissue, of 16 x 16 pixels. Their
clusters, put back where the patches were cut, divide the picture.
"""

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from skimage.data import immunohistochemistry

from skdcgmm import DCGMMEstimator
from skdcgmm.plotting import SamplesDisplay

image = immunohistochemistry()  # (512, 512, 3), bytes
side, step = 16, 4
windows = sliding_window_view(image, (side, side), axis=(0, 1))[::step, ::step]
n_rows, n_columns = windows.shape[:2]
patches = windows.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)  # channels last
rng = np.random.default_rng(0)
est = DCGMMEstimator(5, random_state=0).fit(rng.choice(patches, 3000, replace=False))

# %%
# Patches of each cluster, a row each.
labels = est.predict(patches)
rows = [rng.choice(patches[labels == cluster], 15) for cluster in range(5)]
SamplesDisplay(np.concatenate(rows), image_shape=patches.shape[1:], n_columns=15).plot()

# %%
# Where they are.
fig, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained", sharex=True, sharey=True)
border = side // 2 - step // 2
extent = (border, border + n_columns * step, border + n_rows * step, border)
axes[0].imshow(image)
axes[1].imshow(labels.reshape(n_rows, n_columns), extent=extent, cmap="Set2", vmax=7)
for ax in axes:
    ax.set_axis_off()

# %%
# Traffic signs (8000 images of GTSRB) in 43 clusters, of which the largest 20 are shown: colour,
# shape and light make them, and what is written on a sign hardly counts.
#
# .. image:: /_static/signs.png
#    :alt: Ten traffic signs of each of twenty clusters.

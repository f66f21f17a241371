"""
Missing pixels
==============

The lower half of some digits is hidden. The mean given the upper half is the best guess in squared
error; draws show what else it may have been. Rows: what is seen, the mean, five draws.
"""

import numpy as np

from skdcgmm import DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import InpaintingDisplay

data = load_images("digits")
est = DCGMMEstimator(image_shape=data.image_shape, pixels="tiles", random_state=0)
est.fit(data.X_train)

height, width = data.image_shape
mask = np.zeros((6, height, width), dtype=bool)
mask[:, height // 2 :] = True
X = np.where(mask.reshape(6, -1), np.nan, data.X_test[:6])
InpaintingDisplay.from_estimator(est, X, n_draws=5, random_state=0)

# %%
# How far the mean is off, beside the mean image of the training data.
lower = mask[0].ravel()
hidden = np.where(lower, np.nan, data.X_test)
error = np.square(est.impute(hidden) - data.X_test)[:, lower].mean()
baseline = np.square(data.X_train.mean(0) - data.X_test)[:, lower].mean()
print(f"mean squared error {error:.4f}, of the mean image {baseline:.4f}")

# %%
# Faces (AT&T, 56 x 46 pixels): of each of forty people, nine photographs teach the model, and the
# tenth is filled in. Small gaps close; a half is a guess, and blurred.
#
# .. image:: /_static/faces.png
#    :alt: Faces with missing parts, filled in, and as they are.

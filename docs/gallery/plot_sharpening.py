"""
Samples, and their sharpening
=============================

``sharpen`` climbs the log density of images by gradient ascent on their pixels. The value never
falls, and the steps find their own length.
"""

import matplotlib.pyplot as plt

from skdcgmm import DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import SamplesDisplay

data = load_images("digits")
est = DCGMMEstimator(image_shape=data.image_shape, pixels="tiles", random_state=0)
est.fit(data.X_train)
samples, _ = est.sample(24, random_state=0)
sharp, values = est.sharpen(samples, n_steps=40, return_values=True)

# %%
# Exact draws of tiles carry the pixel noise of their components, which sharpening takes away.
fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for ax, images, title in zip(axes, (samples, sharp), ("samples", "sharpened"), strict=True):
    SamplesDisplay(images, image_shape=data.image_shape, n_columns=6).plot(ax=ax)
    ax.set_title(title)

# %%
# What was climbed, image by image.
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.plot(values.T, color="C0", alpha=0.4)
ax.set(xlabel="step", ylabel="log density in nats")

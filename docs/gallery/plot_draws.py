"""
New images, and variants of given ones
======================================

A model is a density, and draws from it: new images, images of a cluster, and what else an image
might have been.
"""

import matplotlib.pyplot as plt
import numpy as np

from skdcgmm import DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import SamplesDisplay

data = load_images("digits")
est = DCGMMEstimator(image_shape=data.image_shape, pixels="tiles", random_state=0)
est.fit(data.X_train)

# %%
# Exact draws, ``temperature=1``, carry the noise of the pixels; ``temperature=0`` leaves it out,
# and keeps to the likeliest parts. ``sharpen`` climbs the log density of images, here of the exact
# draws.
exact, _ = est.sample(24, random_state=0)
pictures, _ = est.sample(24, temperature=0, random_state=0)
titled = {
    "temperature=1": exact,
    "temperature=0": pictures,
    "sharpened": est.sharpen(exact, n_steps=40),
}
fig, axes = plt.subplots(1, 3, figsize=(9, 2.5), layout="constrained")
for ax, (title, images) in zip(axes, titled.items(), strict=True):
    SamplesDisplay(images, image_shape=data.image_shape, n_columns=6).plot(ax=ax)
    ax.set_title(title)

# %%
# ``sample_like`` infers what the model sees in an image at a layer, and draws that anew: from the
# top layer another image of the same kind, from the first the same parts where they are. Test
# images on the left.
X = data.X_test[:5]
fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for ax, layer, title in zip(axes, (-1, 0), ("the top layer", "the first layer"), strict=True):
    variants = est.sample_like(X, layer=layer, n_samples=7, temperature=0, random_state=0)
    images = np.concatenate([X[:, None], variants], 1).reshape(-1, X.shape[1])
    SamplesDisplay(images, image_shape=data.image_shape, n_columns=8).plot(ax=ax)
    ax.set_title(f"variants from {title}")

# %%
# Clothes (Fashion-MNIST, 60 000 images) at the defaults. Shapes are right more often than fabrics:
# pixels of a tile are independent given its component. Networks that are trained to draw, such as
# diffusion models, draw sharper pictures, and have no density to ask.
#
# .. image:: /_static/drawn_clothes.png
#    :alt: Clothes of Fashion-MNIST beside what the default model draws.

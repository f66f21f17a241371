"""
Variants of an image
====================

``sample_like`` infers what the model sees in an image at a layer, and draws it anew: from the top
layer another image of the same kind, from the first layer the same parts where they are.
"""

import numpy as np

from skdcgmm import DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import SamplesDisplay

data = load_images("digits")
est = DCGMMEstimator(image_shape=data.image_shape, random_state=0).fit(data.X_train)
X = data.X_test[:5]


def rows_of_variants(layer):
    variants = est.sample_like(X, layer=layer, n_samples=7, temperature=0, random_state=0)
    return np.concatenate([X[:, None], variants], 1).reshape(-1, X.shape[1])


# %%
# Test images on the left, and seven variants of each from the posterior of the top layer: other
# images of the same components.
display = SamplesDisplay(rows_of_variants(-1), image_shape=data.image_shape, n_columns=8).plot()
display.ax_.set_title("variants from the top layer")

# %%
# From the first layer: its components are drawn from their posterior, which is nearly certain.
display = SamplesDisplay(rows_of_variants(0), image_shape=data.image_shape, n_columns=8).plot()
display.ax_.set_title("variants from the first layer")

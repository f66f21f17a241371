"""
Images that come in chunks
==========================

``partial_fit`` goes once over a chunk, which can then be forgotten. Here a stream brings training
digits moved by up to a pixel; test images tell how the model grows.
"""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import SamplesDisplay

data = load_images("digits")
images = data.X_train.reshape(-1, *data.image_shape)
moved = [np.roll(images, shift, axis=(1, 2)) for shift in product((-1, 0, 1), repeat=2)]
moved = np.concatenate(moved).reshape(-1, images[0].size)
rng = np.random.default_rng(0)

stack = [ConvGMM(50, kernel_size=4, shared=False), ConvGMM(50)]
est = DCGMMEstimator(layers=stack, image_shape=data.image_shape, random_state=0)
densities = []
for _ in range(100):
    est.partial_fit(rng.choice(moved, 2500))
    densities.append(est.score(data.X_test))

# %%
# A step takes 250 images, so that these are 1000 steps, over which the learning rate falls.
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.plot(range(1, 101), densities)
ax.set(xlabel="chunks", ylabel="test log density in nats")

# %%
# ``fit`` takes batches, too: from a ``DataLoader``, or from any other object that makes them anew
# when it is gone through, once for each epoch.


class Batches:
    def __iter__(self):
        return (rng.choice(moved, 250) for _ in range(20))


other = clone(est).set_params(max_epochs=20).fit(Batches())
print(f"100 chunks, 1000 steps: {densities[-1]:.2f} nats")
print(f"20 epochs of batches, 400 steps: {other.score(data.X_test):.2f} nats")

# %%
# Drawn from the model of the stream.
SamplesDisplay.from_estimator(est, n_samples=30, n_columns=15, random_state=0)

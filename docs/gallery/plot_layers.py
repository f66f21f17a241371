"""
A pyramid, read layer by layer
==============================

In a pyramid, each layer emits the details of its windows, and hands their means to the layer above.
The images are pieces of three textures, of 16 x 16 pixels; a piece has no right place in them, so
that all positions share their components.
"""

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import idctn
from skimage.data import brick, grass, gravel
from sklearn.linear_model import LogisticRegression

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.plotting import SamplesDisplay, plot_images

side = 16


def pieces(texture, step):
    return sliding_window_view(texture, (side, side))[::step, ::step].reshape(-1, side, side)


textures = [brick(), grass(), gravel()]
X = np.concatenate([pieces(texture[:, :320], 10) for texture in textures])
X_test = np.concatenate([pieces(texture[:, 320:], side) for texture in textures])
y, y_test = (np.repeat(["brick", "grass", "gravel"], len(each) // 3) for each in (X, X_test))
layers = [
    ("4 x 4", ConvGMM(48, kernel_size=4)),
    ("8 x 8", ConvGMM(48, kernel_size=2)),
    ("16 x 16", ConvGMM(100)),
]
est = DCGMMEstimator(layers=layers, pixels="pyramid", random_state=0).fit(X)
print(est.summary())

# %%
# Components of the first layer emit details of 4 x 4 pixels, as coefficients of cosines, of which
# the first, the mean, is missing: it is for the layers above to say.
details = np.pad(est.means_["4 x 4"], [(0, 0), (1, 0)]).reshape(-1, 4, 4)
order = np.argsort(-est.weights_["4 x 4"].mean((0, 1)))  # over positions
plot_images(idctn(details[order], axes=(1, 2), norm="ortho"), image_shape=(4, 4), n_columns=16)

# %%
# What does a layer know of an image? ``sample_like`` keeps what it is sure of there, and draws anew
# what is below. Rows: images; the same from the first layer, the second, and the top.
shown = X_test[:: len(X_test) // 14][:14]
rows = [shown]
for layer in est.means_:
    rows.append(est.sample_like(shown, layer=layer, n_samples=1, temperature=0, random_state=0))
images = np.concatenate([each.reshape(-1, side, side) for each in rows])
SamplesDisplay(images, image_shape=(side, side), n_columns=14).plot()

# %%
# Which layer knows what texture it is? Responsibilities of its components, as features of a linear
# classifier, say it; the stack has seen no classes, and need not learn again.
accuracies = {}
for layer in est.means_:
    features = est.set_params(transform_layers=layer).transform(X)
    linear = LogisticRegression(max_iter=1000).fit(features, y)
    accuracies[layer] = linear.score(est.transform(X_test), y_test)
linear = LogisticRegression(max_iter=1000).fit(X.reshape(len(X), -1) / 255, y)
accuracies["pixels"] = linear.score(X_test.reshape(len(X_test), -1) / 255, y_test)
fig, ax = plt.subplots(figsize=(5, 2), layout="constrained")
ax.barh(list(accuracies), list(accuracies.values()))
ax.set(xlabel="accuracy on new pieces", xlim=(0, 1))

"""
Clusters, and how training went
===============================

Ten clusters of digits. Each is made of many components of the top layer, whose mean images together
show what it is.
"""

# sphinx_gallery_thumbnail_path = '_static/objects.png'
import matplotlib.pyplot as plt
from sklearn.metrics import ConfusionMatrixDisplay, normalized_mutual_info_score

from skdcgmm import DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import PrototypesDisplay, TrainingDisplay

data = load_images("digits")
est = DCGMMEstimator(10, image_shape=data.image_shape, random_state=0)
labels = est.fit(data.X_train).predict(data.X_test)
print("NMI with the digits:", round(normalized_mutual_info_score(data.y_test, labels), 2))

# %%
# Mean images of the clusters.
PrototypesDisplay.from_estimator(est)

# %%
# How many test images of each digit, in rows, each cluster holds. The model has seen no labels.
fig, ax = plt.subplots(figsize=(5, 5), layout="constrained")
ConfusionMatrixDisplay.from_predictions(data.y_test, labels, ax=ax, cmap="Greys", colorbar=False)
ax.set(xlabel="cluster", ylabel="digit")

# %%
# The log density of the training images by epoch; in the first 30 % of the training it is tempered.
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
TrainingDisplay.from_estimator(est, ax=ax)

# %%
# Objects on a turntable (COIL-20, 1440 images), in twenty clusters, a row each. Some
# hold two kinds of objects, such as cars and boxes.
#
# .. image:: /_static/objects.png
#    :alt: Ten images of each of twenty clusters of objects.

"""
MNIST, or images of your own
============================

This one is not run with the documentation: 60 000 images of 28 x 28 pixels take about a minute
on two idle cores. ``mnist.npz`` is read from the folder that the environment variable
``SKDCGMM_DATA`` names, or else fetched from OpenML. Put other images in place of ``data.X_train``:
an array of shape (n, height, width) or (n, height, width, channels), of any scale.
"""

# sphinx_gallery_thumbnail_path = '_static/clusters_of_mnist.png'
import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from skdcgmm import DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import SamplesDisplay

data = load_images("mnist")
est = DCGMMEstimator(10, image_shape=data.image_shape, random_state=0, verbose=1)
est.fit(data.X_train)
print(f"test log density: {est.score(data.X_test):.1f} nats")
labels = est.predict(data.X_test)
nmi = normalized_mutual_info_score(data.y_test, labels)
print(f"NMI of clusters and digits: {nmi:.2f}")

# %%
# It printed:
#
# .. code-block:: none
#
#    test log density: 376.1 nats
#    NMI of clusters and digits: 0.73
#
# A row of each cluster: ten drawn images, without pixel noise, then ten test images.
rows = []
for cluster in range(10):
    drawn, _ = est.sample(10, cluster=cluster, temperature=0, random_state=0)
    rows += [drawn, data.X_test[labels == cluster][:10]]
images = np.concatenate(rows)
display = SamplesDisplay(images, image_shape=data.image_shape, n_columns=20).plot()
display.figure_.savefig("clusters_of_mnist.png", bbox_inches="tight")

# %%
# .. image:: /_static/clusters_of_mnist.png
#    :alt: Ten drawn and ten test images of each cluster.

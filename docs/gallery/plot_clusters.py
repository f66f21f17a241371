"""
Clusters, and how training went
===============================

Ten clusters of digits. Each is made of many components of the top layer, whose mean images together
show what it is.
"""

from sklearn.metrics import normalized_mutual_info_score

from skdcgmm import DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import PrototypesDisplay, TrainingDisplay, plot_images

data = load_images("digits")
est = DCGMMEstimator(10, image_shape=data.image_shape, random_state=0)
labels = est.fit(data.X_train).predict(data.X_test)
print("NMI with the digits:", round(normalized_mutual_info_score(data.y_test, labels), 2))

# %%
# Mean images of the clusters.
PrototypesDisplay.from_estimator(est)

# %%
# Parts: means of the first layer's components in the upper left tile.
plot_images(est.means_["convgmm1"][0, 0], image_shape=(4, 4), n_columns=20)

# %%
# The log density of the training images by epoch.
TrainingDisplay.from_estimator(est)

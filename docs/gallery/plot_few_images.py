"""
How many images does it take?
=============================

Ten clusters of few digits, by how well they agree with the digits of other images, which no model
has seen. A deep stack has more to learn than ten means: from 200 images and fewer, k-means and a
flat mixture are ahead here.
"""

import matplotlib.pyplot as plt
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.mixture import GaussianMixture

from skdcgmm import DCGMMEstimator
from skdcgmm.datasets import load_images

data = load_images("digits")
models = {
    "DCGMMEstimator": DCGMMEstimator(10, image_shape=data.image_shape, random_state=0),
    "KMeans": KMeans(10, random_state=0),
    "GaussianMixture": GaussianMixture(10, covariance_type="diag", reg_covar=0.05, random_state=0),
}
numbers = [50, 100, 200, 400, len(data.X_train)]
fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, model in models.items():
    agreement = []
    for n in numbers:
        labels = model.fit(data.X_train[:n]).predict(data.X_test)
        agreement.append(adjusted_mutual_info_score(data.y_test, labels))
    ax.plot(numbers, agreement, "o-", label=name)
    print(name, *(f"{value:.2f}" for value in agreement))
ax.set(xlabel="images to learn from", ylabel="adjusted mutual information", xscale="log")
ax.set_xticks(numbers, numbers)
ax.minorticks_off()
ax.legend()

"""
Classes from fifty labels
=========================

Fifty of the training digits have a label, the others -1. ``DCGMMClassifier`` learns from all of
them one density of images and classes, and can then draw images of a class.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import SelfTrainingClassifier

from skdcgmm import DCGMMClassifier
from skdcgmm.datasets import load_images
from skdcgmm.plotting import SamplesDisplay

data = load_images("digits")
few = np.full(len(data.y_train), -1)
for digit in range(10):
    few[np.flatnonzero(data.y_train == digit)[:5]] = digit
labelled = few >= 0

clf = DCGMMClassifier(image_shape=data.image_shape, random_state=0).fit(data.X_train, few)
alone = LogisticRegression(max_iter=1000).fit(data.X_train[labelled], few[labelled])
taught = SelfTrainingClassifier(LogisticRegression(max_iter=1000)).fit(data.X_train, few)
for name, model in [
    ("DCGMMClassifier", clf),
    ("logistic regression on the fifty", alone),
    ("self-training", taught),
]:
    print(f"{name}: accuracy {model.score(data.X_test, data.y_test):.3f}")

# %%
# Eight images of each class, without pixel noise.
images = np.concatenate([clf.sample(8, y=y, temperature=0, random_state=1)[0] for y in range(10)])
SamplesDisplay(images, image_shape=data.image_shape, n_columns=8).plot()

"""
Classes, read out by a linear classifier
========================================

With ``transform_layers``, ``transform`` gives the responsibilities of any mixture layers, in a
pipeline the features of any classifier. With a logistic regression this is the readout of the
published work: the stack learns without labels, and classes are a linear function of what it sees.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.datasets import load_images
from skdcgmm.plotting import plot_images

data = load_images("digits")
stack = [("parts", ConvGMM(40, kernel_size=4, shared=False)), ("whole", ConvGMM(60))]
est = DCGMMEstimator(
    layers=stack, image_shape=data.image_shape, transform_layers=["parts", "whole"], random_state=0
)
model = make_pipeline(est, LogisticRegression(max_iter=1000))
model.fit(data.X_train, data.y_train)
print(f"accuracy of both layers: {model.score(data.X_test, data.y_test):.3f}")

# %%
# Which layer knows the digits? The stack need not learn again for that.
readouts = {}
for layer in ("parts", "whole"):
    features = est.set_params(transform_layers=layer).transform(data.X_train)
    readouts[layer] = LogisticRegression(max_iter=1000).fit(features, data.y_train)
    accuracy = readouts[layer].score(est.transform(data.X_test), data.y_test)
    print(f"{layer}: {features.shape[1]} features, accuracy {accuracy:.3f}")
alone = LogisticRegression(max_iter=1000).fit(data.X_train, data.y_train)
print(f"pixels: 64 features, accuracy {alone.score(data.X_test, data.y_test):.3f}")

# %%
# The features are in the order (row, column, component), with names such as ``parts_0_1_17``, so
# that weights of the regression can be read: at each position, the five parts that speak most for a
# three.
weights = readouts["parts"].coef_[3].reshape(2, 2, 40)
fig, axes = plt.subplots(2, 2, figsize=(7, 2.6), layout="constrained")
for row, column in np.ndindex(2, 2):
    ax, best = axes[row, column], np.argsort(-weights[row, column])[:5]
    plot_images(est.means_["parts"][row, column, best], image_shape=(4, 4), n_columns=5, ax=ax)
    ax.set_title(f"row {row}, column {column}: parts {', '.join(map(str, best))}")

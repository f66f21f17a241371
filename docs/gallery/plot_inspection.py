"""
Inspection: is it damaged, and where?
=====================================

A detector learns what good pieces of a brick wall look like, and says of new pieces whether they
are damaged, and where. The damage is planted: scratches, lumps of gravel, and smooth spots.
"""

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.data import brick, gravel
from sklearn.metrics import roc_auc_score

from skdcgmm import DCGMMOutlierDetector
from skdcgmm.plotting import AnomalyDisplay

side, spot = 32, 10
n = 512 // side  # the wall has 512 x 512 pixels
pieces = brick().reshape(n, side, n, side).swapaxes(1, 2).reshape(-1, side, side)
rng = np.random.default_rng(0)
good, new = np.split(rng.permutation(pieces), [200])

# %%
# Each new piece is damaged in three ways, once each.
lump = gravel()[:spot, :spot]
damage = {"scratch": new.copy(), "gravel": new.copy(), "smooth spot": new.copy()}
for i, (row, column) in enumerate(rng.integers(side - spot, size=(len(new), 2))):
    place = i, slice(row, row + spot), slice(column, column + spot)
    damage["scratch"][i, row + np.arange(spot), column + np.arange(spot)] = 230
    damage["gravel"][place] = lump
    damage["smooth spot"][place] = gaussian_filter(new[i], 3)[place[1:]]

# %%
# Only what windows look like counts here, so that the stack needs hardly any training. A fifth of
# the good pieces is held out by itself, and tells what is usual.
detector = DCGMMOutlierDetector(
    score_method="windows", max_epochs=1, contamination=0.05, random_state=0
).fit(good)

# %%
# How well do scores tell damaged pieces from good ones? What is unlike all that was learnt is
# found; a smooth spot is likely anywhere, and is missed.
normal = detector.score_samples(new)
print(f"good: called damaged {np.mean(normal < detector.offset_):.0%}")
for kind, images in damage.items():
    scores = detector.score_samples(images)
    auc = roc_auc_score(np.repeat([0, 1], len(new)), -np.r_[normal, scores])
    called = np.mean(scores < detector.offset_)
    print(f"{kind}: called damaged {called:.0%}, area under the ROC curve {auc:.2f}")

# %%
# Where? Red is what is unlikely. Scratches, gravel, and good pieces.
shown = np.concatenate([damage["scratch"][:4], damage["gravel"][4:8], new[8:12]])
AnomalyDisplay.from_estimator(detector, shown, n_columns=6)

# %%
# The same on printed boards (DeepPCB): a detector that has seen 200 good ones. The two on the right
# are good.
#
# .. image:: /_static/boards.png
#    :alt: Boards, and below each the same with abnormal places in red.
#
# :doc:`/inspection` goes on from here.

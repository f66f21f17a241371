"""Deep convolutional Gaussian mixture models for images, as scikit-learn estimators."""

from skdcgmm._classifier import DCGMMClassifier
from skdcgmm._detector import DCGMMOutlierDetector
from skdcgmm._estimator import DCGMMEstimator
from skdcgmm.layers import ConvGMM, MaxPool

__version__ = "0.1.0"

__all__ = [
    "ConvGMM",
    "DCGMMClassifier",
    "DCGMMEstimator",
    "DCGMMOutlierDetector",
    "MaxPool",
    "__version__",
]

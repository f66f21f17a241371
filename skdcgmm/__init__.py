"""Deep convolutional Gaussian mixture models for images, as scikit-learn estimators."""

from skdcgmm.estimators.classifier import DCGMMClassifier
from skdcgmm.estimators.clusterer import DCGMMEstimator
from skdcgmm.estimators.detector import DCGMMOutlierDetector
from skdcgmm.estimators.imputer import DCGMMImputer
from skdcgmm.model.specs import ConvGMM, MaxPool

__version__ = "0.1.0"

__all__ = [
    "ConvGMM",
    "DCGMMClassifier",
    "DCGMMEstimator",
    "DCGMMImputer",
    "DCGMMOutlierDetector",
    "MaxPool",
    "__version__",
]

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from skdcgmm import (
    ConvGMM,
    DCGMMClassifier,
    DCGMMEstimator,
    DCGMMImputer,
    DCGMMOutlierDetector,
)

NO_DENSITY = "score is a mean log density, which a layer-wise stack of several layers has not"
RANDOM_BATCHES = "weights change which images a batch and the start hold, and so the local optimum"
UNLABELLED = "one of its cases has the classes -1 and 1, but -1 is the label of unlabelled images"


def joint():
    """A deep joint stack on whatever features a check brings: every layer sees all of them."""
    return DCGMMEstimator(3, layers=[ConvGMM(4, shared=False), ConvGMM(5)], max_epochs=30)


def layerwise():
    return joint().set_params(objective="layerwise", score_method="layer")


def deep_detector():
    layers = [ConvGMM(4, shared=False), ConvGMM(3)]
    return DCGMMOutlierDetector(layers=layers, max_epochs=30)


def deep_classifier():
    layers = [ConvGMM(5, shared=False), ConvGMM(4)]
    return DCGMMClassifier(layers=layers, max_epochs=100)


def expected_failures(estimator):
    if isinstance(estimator, DCGMMOutlierDetector):
        return {"check_sample_weight_equivalence_on_dense_data": RANDOM_BATCHES}
    if isinstance(estimator, DCGMMClassifier):
        return {
            "check_classifiers_classes": UNLABELLED,
            "check_sample_weight_equivalence_on_dense_data": RANDOM_BATCHES,
        }
    if estimator.layers == "auto":
        return {}
    failures = {"check_sample_weight_equivalence_on_dense_data": RANDOM_BATCHES}
    if estimator.objective == "layerwise":
        failures["check_fit_score_takes_y"] = NO_DENSITY
        failures["check_pipeline_consistency"] = NO_DENSITY
        failures["check_array_api_input"] = NO_DENSITY
    return failures


@pytest.mark.filterwarnings("ignore:Only . of n_clusters=. clusters have images")
@parametrize_with_checks(
    [
        DCGMMEstimator(max_epochs=300),
        joint(),
        layerwise(),
        DCGMMOutlierDetector(max_epochs=30),
        deep_detector(),
        DCGMMClassifier(max_epochs=30),
        deep_classifier(),
        DCGMMImputer(max_epochs=30),
    ],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)

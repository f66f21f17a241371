from sklearn.utils.estimator_checks import parametrize_with_checks

from skdcgmm import ConvGMM, DCGMMEstimator

NO_DENSITY = "score is a mean log density, which a layer-wise stack of several layers has not"


def deep():
    """A deep stack on whatever features a check brings: every layer sees all of them."""
    return DCGMMEstimator(3, layers=[ConvGMM(4, shared=False), ConvGMM(3)], max_epochs=30)


def expected_failures(estimator):
    if estimator.layers == "auto":
        return {}
    return {"check_fit_score_takes_y": NO_DENSITY, "check_pipeline_consistency": NO_DENSITY}


@parametrize_with_checks([DCGMMEstimator(), deep()], expected_failed_checks=expected_failures)
def test_scikit_learn_checks(estimator, check):
    check(estimator)

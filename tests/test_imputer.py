"""The imputer: a step of pipelines that fills in what is missing."""

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

from skdcgmm import ConvGMM, DCGMMEstimator, DCGMMImputer

IMAGES = {"image_shape": (8, 8), "max_epochs": 15, "random_state": 0}


@pytest.fixture(scope="module")
def holes(digits):
    """Digits, of which patches are missing."""
    X = digits[0][:900].reshape(-1, 8, 8).copy()
    rng = np.random.default_rng(0)
    for image, row, column in zip(X, *rng.integers(0, 5, (2, len(X))), strict=True):
        image[row : row + 4, column : column + 4] = np.nan
    return X.reshape(-1, 64)


def test_it_fills_in_as_the_estimator_does(digits, holes):
    imputer = DCGMMImputer(**IMAGES).fit(holes[:600])
    est = DCGMMEstimator(pixels="tiles", **IMAGES).fit(holes[:600])
    filled = imputer.transform(holes[600:])
    np.testing.assert_array_equal(filled, est.impute(holes[600:]))
    assert filled.dtype == np.float32
    seen = ~np.isnan(holes[600:])
    np.testing.assert_array_equal(filled[seen], holes[600:][seen])
    errors = [
        np.square(each - digits[0][600:900])[~seen].mean()
        for each in (filled, SimpleImputer().fit(holes[:600]).transform(holes[600:]))
    ]
    assert errors[0] < 0.7 * errors[1]
    images = imputer.transform(holes[600:].reshape(-1, 8, 8))
    np.testing.assert_array_equal(images.reshape(-1, 64), filled)
    np.testing.assert_array_equal(imputer.fit_transform(holes[:600]), est.impute(holes[:600]))


def test_draws_differ_and_are_seeded(holes):
    imputer = DCGMMImputer(method="sample", **IMAGES).fit(holes)
    first, again = (imputer.transform(holes[:50]) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = imputer.set_params(random_state=1).transform(holes[:50])
    assert (first != other)[np.isnan(holes[:50])].mean() > 0.9


def test_pipelines_and_searches(digits, holes, tmp_path):
    y = digits[1][:900]
    imputer = DCGMMImputer(**IMAGES)
    pipeline = make_pipeline(imputer, LogisticRegression(max_iter=1000))
    assert cross_val_score(pipeline, holes, y, cv=3).mean() > 0.75
    layers = [[ConvGMM(2)], [ConvGMM(20, 4, shared=False), ConvGMM(40)]]
    search = GridSearchCV(pipeline, {"dcgmmimputer__layers": layers}, cv=2).fit(holes, y)
    assert search.best_index_ == 1
    imputer.fit(holes).save(tmp_path / "imputer")
    back = DCGMMImputer.load(tmp_path / "imputer")
    np.testing.assert_array_equal(back.transform(holes), imputer.transform(holes))


def test_frames_keep_their_columns(holes):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(holes, columns=[f"pixel{i}" for i in range(64)])
    filled = DCGMMImputer(**IMAGES).set_output(transform="pandas").fit_transform(frame)
    assert list(filled.columns) == list(frame.columns)
    assert not filled.isna().any(axis=None)


def test_features_of_which_nothing_is_known(holes):
    X = holes.copy()
    X[:, [10, 12]] = np.nan
    with pytest.warns(UserWarning, match="X has 2 features without any observed value, .* is 10"):
        imputer = DCGMMImputer(**IMAGES).fit(X)
    assert np.isfinite(imputer.transform(X)).all()


def test_bad_parameters(holes):
    with pytest.raises(ValueError, match="method must be one of"):
        DCGMMImputer(method="median", **IMAGES).fit(holes)
    with pytest.raises(ValueError, match="NaN, which have no place in the training of a pyramid"):
        DCGMMImputer(pixels="pyramid", **IMAGES).fit(holes)

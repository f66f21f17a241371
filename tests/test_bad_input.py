"""Each bad input gives an error that names the parameter and the remedy, and harms no fit."""

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import NotFittedError

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator, DCGMMOutlierDetector, MaxPool

TOP = ConvGMM(3)


@pytest.fixture(scope="module")
def est(digits):
    return DCGMMEstimator(
        layers=[ConvGMM(3, 4), TOP], image_shape=(8, 8), max_epochs=2, random_state=0
    ).fit(digits[0])


def with_value(X, value):
    X = X.copy()
    X[3, 5] = value
    return X


BAD_X = [
    (lambda X: with_value(X, np.inf), ValueError, "X contains infinity.*finite"),
    (lambda X: X[:, :63], ValueError, "63 features.*64 features"),
    (lambda X: scipy.sparse.csr_matrix(X), TypeError, "[Ss]parse.*dense"),
    (lambda X: X + 1j, ValueError, "[Cc]omplex data not supported.*real"),
    (lambda X: np.full(X.shape, "a"), ValueError, "string.*X must be"),
    (lambda X: np.full(X.shape, {}, dtype=object), TypeError, "X must be a dense"),
    (lambda X: X[:0], ValueError, "0 sample.*X must be"),
    (lambda X: X[0], ValueError, "1D array.*X must be"),
    (lambda X: X[0].reshape(8, 8), ValueError, r"one image, \(8, 8\).*X\[None\]\.$"),
    (lambda X: X[0].reshape(8, 8, 1), ValueError, r"one image, \(8, 8, 1\).*X\[None\]\.$"),
    (lambda X: X.reshape(-1, 2, 2, 4, 4), ValueError, "5 dimensions; 2, 3 or 4.*X must be"),
    (lambda X: X.reshape(-1, 4, 16), ValueError, "image_shape"),
    (lambda _: [[1.0, 2.0], [1.0]], ValueError, "X must be a dense"),
    (lambda X: torch.from_numpy(X).to_sparse(), TypeError, "X must be a dense.*to_dense"),
    (lambda X: torch.from_numpy(X).to("meta"), TypeError, "X must be a dense.*meta"),
    (lambda X: masked(torch.from_numpy(X)), TypeError, "X must be a dense.*NaN for what"),
    (lambda X: nested(torch.from_numpy(X)), TypeError, "X must be a dense"),
    (lambda X: X.reshape(-1, 2, 4, 8), ValueError, "image_shape"),
]


def masked(X):
    return torch.masked.masked_tensor(X, X > 0)


def nested(X):
    return torch.nested.nested_tensor([X, X[:, :2]], layout=torch.jagged)


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors is in prototype stage")
@pytest.mark.parametrize(("make", "error", "message"), BAD_X)
@pytest.mark.parametrize("method", ["fit", "partial_fit", "predict", "score_samples", "transform"])
def test_bad_x(est, digits, method, make, error, message):
    X = digits[0][:50]
    before, attributes = est.predict_proba(X), est.__dict__.copy()
    if method == "fit" and "63" in message:
        message = "image_shape.*64.*63"  # another number of features is news to fit
    with pytest.raises(error, match=f"(?s){message}"):
        getattr(est, method)(make(X))
    assert est.__dict__ == attributes
    np.testing.assert_array_equal(est.predict_proba(X), before)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"layers": [ConvGMM(0)]}, ValueError, "convgmm1__n_components must be an integer >= 1"),
        ({"layers": [ConvGMM("a")]}, TypeError, "convgmm1__n_components must be an integer"),
        ({"layers": [ConvGMM(201, 4), TOP]}, ValueError, "convgmm1__n_components.*at most 200"),
        ({"layers": [ConvGMM(51, 4, shared=False), TOP]}, ValueError, "convgmm1.*at most 50"),
        ({"layers": [ConvGMM(3, 9), TOP]}, ValueError, "convgmm1__kernel_size.*8x8.*smaller"),
        ({"layers": [ConvGMM(3, (4, 0)), TOP]}, ValueError, "kernel_size must be an int"),
        ({"layers": [ConvGMM(3, (4, 4, 4)), TOP]}, ValueError, "kernel_size must be one integer"),
        (
            {"layers": [ConvGMM(3, 4, -1), TOP]},
            ValueError,
            "convgmm1__stride must be an int",
        ),
        ({"layers": [ConvGMM(3, 4, covariance_type="full"), TOP]}, ValueError, "'diag', 'spher"),
        ({"layers": [ConvGMM(3, 4), MaxPool(3), TOP]}, ValueError, "maxpool1__kernel_size.*2x2"),
        ({"layers": [ConvGMM(3, 4)]}, ValueError, "end in one position.*kernel_size=None"),
        ({"layers": [ConvGMM(3, 4), MaxPool(2)]}, ValueError, "begin and end with a ConvGMM"),
        ({"layers": [MaxPool(2), TOP]}, ValueError, "begin and end with a ConvGMM"),
        ({"layers": []}, ValueError, "at least one layer"),
        ({"layers": 5}, TypeError, "layers must be 'auto'.*got 5"),
        ({"layers": [5]}, TypeError, "ConvGMM and MaxPool.*got 5"),
        ({"layers": "dcgmm-d", "image_shape": None}, ValueError, "plain features.*image_shape"),
        ({"score_layer": 5}, ValueError, "score_layer must be a mixture layer"),
        ({"layers": "dcgmm-z"}, ValueError, "'dcgmm-z' is no known stack.*dcgmm-b"),
        ({"layers": [("a", ConvGMM(3, 4)), ("a", TOP)]}, ValueError, "unique names.*'a'"),
        ({"layers": [("device", ConvGMM(3, 4)), TOP]}, ValueError, "named 'device'.*another"),
        ({"layers": [("a__b", ConvGMM(3, 4)), TOP]}, ValueError, "named 'a__b'"),
        ({"image_shape": (8, 9)}, ValueError, r"image_shape=\(8, 9, 1\).*72.*64"),
        ({"image_shape": (8,)}, ValueError, "image_shape must be"),
        ({"image_shape": (8, -8)}, ValueError, "image_shape must hold positive"),
        ({"objective": "other"}, ValueError, "objective must be one of.*layerwise.*'other'"),
        ({"score_method": "other"}, ValueError, "score_method must be one of"),
        ({"device": "tpu9"}, ValueError, "device must be 'auto'.*'tpu9'"),
        ({"device": "meta"}, ValueError, "device must be 'auto'.*'meta'.*holds no numbers"),
        ({"device": "mps"}, ValueError, "device must be.*'mps'.*choose device='cpu'"),
        ({"device": "hpu"}, ValueError, "device must be 'auto'.*'hpu'"),
        ({"verbose": "yes"}, TypeError, "verbose must be an integer >= 0; got 'yes'"),
        ({"warm_start": "x"}, TypeError, "warm_start must be True or False; got 'x'"),
        ({"layers": [ConvGMM(3, shared="no")]}, TypeError, "convgmm1__shared must be True or"),
        ({"reg_covar": 0}, ValueError, "reg_covar must be a number > 0"),
        ({"max_epochs": 0}, ValueError, "max_epochs must be an integer >= 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be a number > 0"),
        ({"tol": -1.0}, ValueError, "tol must be a number >= 0"),
        ({"n_iter_no_change": 0}, ValueError, "n_iter_no_change"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction must be a number > 0 and"),
    ],
)
def test_bad_parameters(est, digits, parameters, error, message):
    X = digits[0][:50]
    before = est.predict_proba(X)
    original = est.get_params(deep=False)
    est.set_params(**parameters)
    try:
        with pytest.raises(error, match=f"(?s){message}"):
            est.fit(X)
        np.testing.assert_array_equal(est.predict_proba(X), before)
    finally:
        est.set_params(**original)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"n_clusters": 0}, ValueError, "n_clusters must be an integer >= 1.*got 0"),
        ({"n_clusters": 2.5}, TypeError, "n_clusters must be an integer.*got 2.5"),
        ({"n_clusters": 4}, ValueError, "n_clusters must be at most 3,.*got 4.*more components"),
        ({"n_clusters": 10**9}, ValueError, "n_clusters must be at most 3,.*fewer clusters"),
        ({"n_clusters": 51, "layers": "auto"}, ValueError, "n_clusters must be at most 50,"),
        ({"n_clusters": 10**9, "layers": "auto"}, ValueError, "n_clusters must be at most 50,"),
    ],
)
@pytest.mark.parametrize("warm_start", [False, True])
def test_bad_n_clusters(est, digits, tmp_path, parameters, error, message, warm_start):
    X = digits[0][:50]
    attributes, scores, posterior = est.__dict__.copy(), est.score_samples(X), est.predict_proba(X)
    file = tmp_path / "checkpoint"  # which the first step would write
    est.set_params(warm_start=warm_start, checkpoint=file, checkpoint_minutes=0, **parameters)
    try:
        for method in (est.fit, est.partial_fit):
            if method == est.partial_fit and "layers" in parameters:
                continue  # it goes on with the layers that there are
            with pytest.raises(error, match=f"(?s){message}"):
                method(X)
        assert not file.exists()
        np.testing.assert_array_equal(est.score_samples(X), scores)
        for method in (est.predict, est.predict_proba, est.transform, est.get_feature_names_out):
            with pytest.raises(error, match="n_clusters must be"):
                method(X)
        for attribute in ("clusters_", "cluster_centers_"):
            with pytest.raises(error, match="n_clusters must be"):
                getattr(est, attribute)
        with pytest.raises(error, match="n_clusters must be"):
            est.sample(2, cluster=0)
    finally:
        vars(est).clear()
        vars(est).update(attributes)
    np.testing.assert_array_equal(est.predict_proba(X), posterior)


@pytest.mark.parametrize("cls", [DCGMMEstimator, DCGMMClassifier, DCGMMOutlierDetector])
@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 32, 32), (4, 32, 20), (13, 20, 32)])
def test_channels_first(cls, shape, rng):
    X = rng.random((20, *shape))
    with pytest.raises(ValueError, match=r"looks like channels first.*moveaxis"):
        cls(max_epochs=1).fit(X, np.arange(20) % 2)


def test_a_shape_with_channels_first(rng):
    X = rng.random((20, 3 * 8 * 8))
    with pytest.warns(UserWarning, match=r"image_shape=\(3, 8, 8\) is .*looks like channels first"):
        DCGMMEstimator(layers=[ConvGMM(2)], image_shape=(3, 8, 8), max_epochs=1).fit(X)


@pytest.mark.parametrize("shape", [(32, 32, 13), (8, 8, 200), (20, 32, 4), (1, 30, 3), (3, 3, 8)])
def test_channels_last(shape, rng):
    est = DCGMMEstimator(layers=[ConvGMM(2)], max_epochs=1).fit(rng.random((20, *shape)))
    assert est.image_shape_ == shape


def test_layers_of_a_preset_have_no_names():
    with pytest.raises(
        ValueError, match=r"(?s)'convgmm1__n_components'.*'auto'.*Give layers as a list"
    ):
        DCGMMEstimator().set_params(convgmm1__n_components=3)


def test_values_beyond_double_precision(digits):
    with (
        pytest.raises(ValueError, match=r"variance is beyond double precision"),
        np.errstate(over="ignore"),
    ):
        DCGMMEstimator().fit(digits[0].astype(np.float64) * 1e300)


def test_one_sample_is_too_few(digits):
    with pytest.raises(ValueError, match=r"1 sample.*minimum of 2"):
        DCGMMEstimator().fit(digits[0][:1])


@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "transform", "score_samples", "score", "sharpen"]
)
def test_methods_need_a_fit(digits, method):
    with pytest.raises(NotFittedError):
        getattr(DCGMMEstimator(), method)(digits[0])


def test_sample_and_attributes_need_a_fit():
    with pytest.raises(NotFittedError):
        DCGMMEstimator().sample()
    assert not hasattr(DCGMMEstimator(), "means_")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_samples": 0}, "n_samples"),
        ({"cluster": 3}, "cluster must be an integer >= 0 and < 3"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_s": 0}, "top_s"),
    ],
)
def test_bad_sampling(est, parameters, message):
    with pytest.raises(ValueError, match=message):
        est.sample(**parameters)


@pytest.mark.parametrize("parameters", [{"n_steps": -1}, {"pull": -1.0}])
def test_bad_sharpening(est, digits, parameters):
    (name,) = parameters
    with pytest.raises(ValueError, match=f"{name} must be"):
        est.sharpen(digits[0][:2], **parameters)


@pytest.mark.parametrize("layer", [2, -3, "top", "maxpool1"])
def test_unknown_score_layer(est, digits, layer):
    with pytest.raises(ValueError, match="must be a mixture layer"):
        est.sharpen(digits[0][:2], layer=layer)


def test_a_device_without_numbers_leaves_the_model_as_it_is(est, digits):
    X = digits[0][:50]
    before = est.predict_proba(X)
    device = est.device
    try:
        np.testing.assert_array_equal(est.set_params(device="meta").predict_proba(X), before)
    finally:
        est.set_params(device=device)
    np.testing.assert_array_equal(est.predict_proba(X), before)

"""Files of fitted estimators: what comes back, and what broken or hostile ones do."""

import json
import pickle
import struct

import joblib
import numpy as np
import pytest
import skops.io
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.exceptions import NotFittedError

from skdcgmm import (
    ConvGMM,
    DCGMMClassifier,
    DCGMMEstimator,
    DCGMMOutlierDetector,
    MaxPool,
    _annealing,
    _saving,
)

IMAGES = {"image_shape": (8, 8), "max_epochs": 2, "random_state": 0}
PARTS = [("parts", ConvGMM(9, 4, 2)), MaxPool(2), ConvGMM(5, covariance_type="spherical")]


def labels(y):
    return np.array(["no", "yes"], dtype=object)[y % 2]


ESTIMATORS = {
    "merged": lambda: DCGMMEstimator(5, **IMAGES),
    "layerwise": lambda: DCGMMEstimator(objective="layerwise", layers=PARTS, **IMAGES),
    "features": lambda: DCGMMEstimator(
        3, max_epochs=2, reg_covar=np.float64(0.1), random_state=np.random.RandomState(0)
    ),
    "detector": lambda: DCGMMOutlierDetector(**IMAGES),
    "flat detector": lambda: DCGMMOutlierDetector(layers=[ConvGMM(4)], **IMAGES),
    "classifier": lambda: DCGMMClassifier(**IMAGES),
    "linear": lambda: DCGMMClassifier(readout="linear", **IMAGES),
}


@pytest.fixture(scope="module", params=ESTIMATORS)
def fitted(request, digits):
    return ESTIMATORS[request.param]().fit(digits[0][:300], labels(digits[1][:300]))


@pytest.fixture(scope="module")
def saved(digits, tmp_path_factory):
    """The bytes of a file, and its estimator."""
    path = tmp_path_factory.mktemp("saved") / "model"
    est = ESTIMATORS["merged"]().fit(digits[0][:100])
    est.save(path)
    return path.read_bytes(), est


def plain(parameters):
    """Parameters by what they say; generators by their state."""
    return {
        name: repr(value.get_state()) if hasattr(value, "get_state") else repr(value)
        for name, value in parameters.items()
    }


def by_file(est, path):
    est.save(path / "model.safetensors")
    return type(est).load(path / "model.safetensors")


def by_joblib(est, path):
    joblib.dump(est, path / "model.joblib")
    return joblib.load(path / "model.joblib")


def by_skops(est, path):
    data = skops.io.dumps(est)
    trusted = skops.io.get_untrusted_types(data=data)
    assert all(name.startswith("skdcgmm.") for name in trusted)
    return skops.io.loads(data, trusted=trusted)


def by_pickle(est, path):
    return pickle.loads(pickle.dumps(est))


@pytest.mark.parametrize("way", [by_file, by_joblib, by_skops, by_pickle])
def test_what_comes_back_is_what_went(fitted, digits, tmp_path, way):
    X = digits[0][300:400]
    back = way(fitted, tmp_path)
    assert type(back) is type(fitted)
    assert plain(back.get_params()) == plain(fitted.get_params())
    assert set(vars(back)) == set(vars(fitted))
    assert repr(back.history_) == repr(fitted.history_)
    np.testing.assert_array_equal(back.predict(X), fitted.predict(X))
    assert back.predict(X).dtype == fitted.predict(X).dtype
    for name, means in fitted.means_.items():
        np.testing.assert_array_equal(back.means_[name], means)
    if getattr(fitted, "objective", "joint") == "joint":
        np.testing.assert_allclose(back.score_samples(X), fitted.score_samples(X), rtol=1e-6)


def test_a_stream_goes_on_in_another_process(digits, tmp_path):
    X = digits[0]
    est = DCGMMEstimator(5, **IMAGES).partial_fit(X[:500])
    back = by_file(est, tmp_path)
    assert back.partial_fit(X[500:900]).score(X) == est.partial_fit(X[500:900]).score(X)


def test_column_names_and_output_format_are_kept(digits, tmp_path):
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(digits[0][:100], columns=[f"pixel{i}" for i in range(64)])
    est = DCGMMEstimator(3, **IMAGES).set_output(transform="pandas").fit(X)
    back = by_file(est, tmp_path)
    assert list(back.feature_names_in_) == list(X.columns)
    pandas.testing.assert_frame_equal(back.transform(X), est.transform(X))


def test_the_file_is_one_of_safetensors_with_json(saved, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(saved[0])
    content, arrays = contents(path)
    means = arrays["_network.arrays.layers.0.emission.means"]
    assert content["state"]["max_epochs"] == 2
    np.testing.assert_array_equal(means, saved[1]._network.first.gaussian.means.detach())


def test_an_unfitted_estimator_has_nothing_to_save(tmp_path):
    with pytest.raises(NotFittedError):
        DCGMMEstimator().save(tmp_path / "model")


def test_what_is_no_plain_value_is_named_and_the_old_file_stays(saved, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(saved[0])
    est = pickle.loads(pickle.dumps(saved[1]))
    est.verbose = {1, 2}
    with pytest.raises(TypeError, match=r"verbose cannot be saved: it is a set.*or use pickle"):
        est.save(path)
    assert path.read_bytes() == saved[0]
    assert list(tmp_path.iterdir()) == [path]


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="save has written"):
        DCGMMEstimator.load(tmp_path / "nothing")


def contents(path):
    """The values and the arrays of a file."""
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["skdcgmm"]), arrays


def refused(path, data, match):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"(?s)path=.*{match}.*DCGMMEstimator\.save has written"):
        DCGMMEstimator.load(path)


@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_files(saved, tmp_path_factory, share):
    data = saved[0]
    part = data[: int(share * len(data))]
    refused(tmp_path_factory.getbasetemp() / "truncated", part, "deserializing header")


@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit(saved, tmp_path_factory, share, bit):
    data = bytearray(saved[0])
    # Spaces at the end of the header say nothing.
    n_header = struct.unpack("<Q", data[:8])[0]
    position = int(share * len(data))
    if position < 8 + n_header and data[position : 8 + n_header].strip() == b"":
        position = 0
    data[position] ^= 1 << bit
    match = "deserializing header|has been changed|not written by skdcgmm"
    refused(tmp_path_factory.getbasetemp() / "changed", bytes(data), f"({match})")


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 100, b"not a model", pickle.dumps({"a": 1}), b"\xff" * 8 + b"{}"],
    ids=["empty", "zeros", "text", "pickle", "huge header"],
)
def test_files_of_another_kind(tmp_path, data):
    refused(tmp_path / "other", data, "deserializing header")


def test_a_file_of_another_class(saved, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(saved[0])
    with pytest.raises(ValueError, match=r"holds a DCGMMEstimator: call DCGMMEstimator\.load"):
        DCGMMClassifier.load(path)


def test_a_file_of_other_tensors(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "model")
    refused(tmp_path / "model", (tmp_path / "model").read_bytes(), "not written by skdcgmm")


def at(content, path):
    for key in path[:-1]:
        content = content[key]
    return content, path[-1]


NETWORK = ("state", "_network", "items")
FIRST_LAYER = (*NETWORK, "layers", "items", 0, "items", 1)
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("format",), 2, "format is 2, and this version reads 1"),
        (("state", "tol"), {"type": "object", "cls": "Popen", "state": {}}, "Popen"),
        (("state", "tol"), {"type": "call", "name": "os.system"}, "no kind of value"),
        (("state", "predict"), "mine", r"has \['predict'\]"),
        (("state", "__class__"), "mine", r"has \['__class__'\]"),
        (("state", "_skl_callbacks"), {"type": "list", "items": [1]}, r"has \['_skl_callbacks'\]"),
        (("state", "_score_methods"), 5, r"has \['_score_methods'\]"),
        (("state", "history_", "items"), [], "IndexError"),
        (("state", "_fitted_objective"), 7, "KeyError"),
        (("state", "n_features_in_"), 63, "image shapes differ"),
        (("state", "_row_shape", "items"), [65], "image shapes differ"),
        ((*NETWORK, "n_clusters"), 3, "out of range"),
        ((*NETWORK, "n_clusters"), 0, "0 clusters of 6 components"),
        ((*NETWORK, "n_clusters"), 10**8, "100000000 clusters of 6 components"),
        ((*NETWORK, "n_clusters"), "many", "'str' object cannot be interpreted as an integer"),
        ((*FIRST_LAYER, "state", "n_components"), 10**12, "size mismatch"),
        ((*FIRST_LAYER, "state", "kernel_size"), 3, "windows that do not tile"),
        ((*FIRST_LAYER, "cls"), "MaxPool", "unexpected keyword argument"),
        ((*FIRST_LAYER, "state"), {}, "missing 1 required positional argument: 'n_components'"),
        ((*FIRST_LAYER, "state", "fit"), 1, "unexpected keyword argument 'fit'"),
        (FIRST_LAYER, None, "has no attribute 'build'"),
        ((*NETWORK, "image_shape", "items"), [1, 10**9, 10**9], "Storage size"),
        ((*NETWORK, "joint"), False, "KeyError: 'layers.1.emission.min_variance'"),
        ((*NETWORK, "n_classes"), 3, r"Missing key\(s\) in state_dict: \"class_logits\""),
        (("state", "_network"), None, "'NoneType' object is not subscriptable"),
        (("state",), {}, "it lacks"),
    ],
)
def test_hostile_files_with_a_right_digest(saved, tmp_path, path, value, match):
    (tmp_path / "model").write_bytes(saved[0])
    content, arrays = contents(tmp_path / "model")
    inside, key = at(content, path)
    inside[key] = value
    rewrite(tmp_path / "model", json.dumps(content), arrays)
    refused(tmp_path / "model", (tmp_path / "model").read_bytes(), match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (DEEP, "RecursionError"),
        ("[]", "list indices"),
        ("{", "JSONDecodeError"),
        ("null", "NoneType"),
        ('{"format": 1}', "KeyError: 'kind'"),
    ],
    ids=["deep", "list", "cut", "null", "no kind"],
)
def test_hostile_headers(tmp_path, text, match):
    rewrite(tmp_path / "model", text, {})
    # Some versions of safetensors refuse such metadata themselves.
    match = f"({match}|InvalidHeader)"
    refused(tmp_path / "model", (tmp_path / "model").read_bytes(), match)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("_network.arrays.layers.0.emission.means", lambda a: a * np.nan, "no finite scores"),
        ("_network.arrays.layers.0.emission.means", lambda a: a + np.inf, "no finite scores"),
        ("_network.arrays.scale", lambda a: np.asarray(-a), "scale is not positive"),
        ("_network.arrays.scale", lambda a: np.full((), np.inf, a.dtype), "scale are not finite"),
        ("_network.arrays.coverage", lambda a: a[1:], "coverage are of another"),
        ("_network.arrays.clusters", lambda a: a[1:], "clusters are of another"),
        ("_network.arrays.shift", lambda a: np.zeros(64, a.dtype), "shift are of another"),
        ("_network.arrays.scale", lambda a: np.ones((1, 8, 8), a.dtype), "scale are of another"),
        ("_network.arrays.scale", lambda a: np.full((1, 1, 1), a), "shift and its scale differ"),
        (
            "_network.arrays.layers.0.emission.min_variance",
            lambda a: np.ones((10**6, 1, 1), a.dtype),
            "min_variance are of another",
        ),
        ("_network.arrays.clusters", lambda a: a.astype(np.uint8), "types that no network has"),
        ("_network.arrays.layers.1.logits", lambda a: a.astype(int), "types that no network has"),
        ("_network.arrays.layers.1.logits", np.float64, "types that no network has"),
        ("_network.arrays.scale", lambda _: np.ones(1, "f2"), "types that no"),
        ("_progress.optimizer.0.exp_avg", lambda _: np.ones(1, "f"), "that of another network"),
    ],
)
def test_hostile_arrays(saved, tmp_path, name, change, match):
    (tmp_path / "model").write_bytes(saved[0])
    content, arrays = contents(tmp_path / "model")
    arrays[name] = change(arrays[name])
    rewrite(tmp_path / "model", json.dumps(content), arrays)
    refused(tmp_path / "model", (tmp_path / "model").read_bytes(), match)


@pytest.mark.parametrize(
    ("kind", "path", "value", "match"),
    [
        ("classifier", ("state", "classes_", "items"), ["no"], "classes_ are not 2"),
        ("classifier", ("state", "classes_", "items"), ["no", "yes", "so"], "classes_ are not 2"),
        ("linear", ("state", "classes_", "items"), ["no"], "IndexError"),
        ("linear", ("state", "readout_", "state", "predict"), 1, r"no \['predict'\]"),
    ],
)
def test_hostile_classifiers(digits, tmp_path, kind, path, value, match):
    y = labels(digits[1][:50])
    est = ESTIMATORS[kind]().set_params(layers=[ConvGMM(3)]).fit(digits[0][:50], y)
    est.save(tmp_path / "model")
    content, arrays = contents(tmp_path / "model")
    inside, key = at(content, path)
    inside[key] = value
    rewrite(tmp_path / "model", json.dumps(content), arrays)
    with pytest.raises(ValueError, match=match):
        DCGMMClassifier.load(tmp_path / "model")


def test_components_without_precisions(digits, tmp_path):
    est = DCGMMEstimator(layers=[ConvGMM(3)], objective="layerwise", **IMAGES).fit(digits[0][:50])
    est.save(tmp_path / "model")
    content, arrays = contents(tmp_path / "model")
    arrays["_network.arrays.layers.0.emission.roots"][0, 1] = 0
    rewrite(tmp_path / "model", json.dumps(content), arrays)
    refused(tmp_path / "model", (tmp_path / "model").read_bytes(), "precisions are not positive")


def test_classes_without_probabilities(digits, tmp_path):
    est = DCGMMClassifier(layers=[ConvGMM(3)], **IMAGES).fit(digits[0][:50], digits[1][:50] % 2)
    est.save(tmp_path / "model")
    content, arrays = contents(tmp_path / "model")
    arrays["_network.arrays.class_logits"] *= np.nan
    rewrite(tmp_path / "model", json.dumps(content), arrays)
    with pytest.raises(ValueError, match="class_logits are not finite"):
        DCGMMClassifier.load(tmp_path / "model")


@pytest.mark.parametrize("position", [-1, 625, 10**8])
def test_a_generator_that_points_elsewhere(digits, tmp_path, position):
    est = DCGMMEstimator(2, max_epochs=1, random_state=np.random.RandomState(0)).fit(digits[0][:20])
    est.save(tmp_path / "model")
    content, arrays = contents(tmp_path / "model")
    content["state"]["random_state"]["state"]["state"]["pos"] = position
    rewrite(tmp_path / "model", json.dumps(content), arrays)
    refused(tmp_path / "model", (tmp_path / "model").read_bytes(), "out of range")


def test_a_huge_image_in_a_small_file_takes_no_memory(digits, tmp_path):
    layers = [ConvGMM(2, 1, 8), ConvGMM(2)]
    est = DCGMMEstimator(objective="layerwise", layers=layers, **IMAGES).fit(digits[0][:20])
    est.save(tmp_path / "model")
    content, arrays = contents(tmp_path / "model")
    network = content["state"]["_network"]["items"]
    network["image_shape"]["items"] = [1, 10**6, 10**6]
    network["layers"]["items"][0]["items"][1]["state"]["stride"]["items"] = [10**6, 10**6]
    rewrite(tmp_path / "model", json.dumps(content), arrays)
    refused(tmp_path / "model", (tmp_path / "model").read_bytes(), "coverage are of another")


def test_a_small_file_of_many_components_takes_no_memory(digits, tmp_path, monkeypatch):
    """Their distances on the grid are for training only."""
    est = DCGMMEstimator(3, objective="layerwise", **IMAGES).fit(digits[0][:50])
    est.save(tmp_path / "model")
    monkeypatch.setattr(_annealing, "grid_distances", None)
    DCGMMEstimator.load(tmp_path / "model").predict(digits[0][:5])


def test_files_are_as_readable_as_others(saved, tmp_path):
    (tmp_path / "other").touch()
    saved[1].save(tmp_path / "model")
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_stays_and_its_file_is_replaced(saved, tmp_path):
    (tmp_path / "models").mkdir()
    link, file = tmp_path / "link", tmp_path / "models" / "model"
    file.write_bytes(b"old")
    link.symlink_to(file)
    saved[1].save(link)
    assert link.is_symlink()
    assert DCGMMEstimator.load(file).get_params() == saved[1].get_params()
    assert list(file.parent.iterdir()) == [file]


def test_a_link_into_nowhere_is_no_place_for_a_file(saved, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "model")
    with pytest.raises(FileNotFoundError, match="path must be a file in a folder"):
        saved[1].save(tmp_path / "link")


def test_the_longest_name(saved, tmp_path):
    path = tmp_path / ("m" * 255)
    saved[1].save(path)
    assert DCGMMEstimator.load(path).get_params() == saved[1].get_params()


@pytest.mark.parametrize("place", ["", "nowhere/model"])
def test_no_place_for_a_file(saved, tmp_path, place):
    with pytest.raises(FileNotFoundError, match="path must be a file in a folder"):
        saved[1].save(tmp_path / place)


def rewrite(path, text, arrays):
    digest = _saving._digest(text, arrays)
    save_file(arrays, path, {"skdcgmm": text, "digest": digest})

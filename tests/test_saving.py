"""Files of fitted estimators: what comes back, and what broken or hostile ones do."""

import json
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import joblib
import numpy as np
import pytest
import skops.io
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.exceptions import NotFittedError

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator, DCGMMOutlierDetector, MaxPool
from skdcgmm.published import objective as layerwise

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
    "windows detector": lambda: DCGMMOutlierDetector(score_method="windows", **IMAGES),
    "flat detector": lambda: DCGMMOutlierDetector(layers=[ConvGMM(4)], **IMAGES),
    "layerwise detector": lambda: DCGMMOutlierDetector(
        objective="layerwise", layers=PARTS, **IMAGES
    ),
    "classifier": lambda: DCGMMClassifier(**IMAGES),
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
    for name in ("labels_", "children_", "distances_", "offset_", "classes_"):
        if hasattr(fitted, name):
            np.testing.assert_array_equal(getattr(back, name), getattr(fitted, name))
    if getattr(fitted, "objective", "joint") == "joint":
        np.testing.assert_allclose(back.score_samples(X), fitted.score_samples(X), rtol=1e-6)


@pytest.mark.parametrize("objective", ["joint", "layerwise"])
def test_a_stream_goes_on_in_another_process(digits, tmp_path, objective):
    X = digits[0]
    est = DCGMMEstimator(
        5, objective=objective, layers=[ConvGMM(9, 4), ConvGMM(8)], score_method="layer", **IMAGES
    ).partial_fit(X[:500])
    back = by_file(est, tmp_path)
    for each in (back, est):
        each.partial_fit(X[500:900])
    assert repr(back.history_) == repr(est.history_)  # nan before a layer starts
    np.testing.assert_array_equal(back.score_samples(X), est.score_samples(X))


def test_column_names_and_output_format_are_kept(digits, tmp_path):
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(digits[0][:100], columns=[f"pixel{i}" for i in range(64)])
    est = DCGMMEstimator(3, **IMAGES).set_output(transform="pandas").fit(X)
    back = by_file(est, tmp_path)
    assert list(back.feature_names_in_) == list(X.columns)
    pandas.testing.assert_frame_equal(back.transform(X), est.transform(X))


@pytest.mark.parametrize("kind", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_every_generator_of_numpy_goes_on_from_its_state(saved, tmp_path, kind):
    est = pickle.loads(pickle.dumps(saved[1]))
    rng = est.random_state = np.random.RandomState(getattr(np.random, kind)(0))
    rng.normal(size=3), rng.randint(5)
    back = by_file(est, tmp_path).random_state
    np.testing.assert_array_equal(back.normal(size=9), rng.normal(size=9))
    np.testing.assert_array_equal(back.randint(99, size=9), rng.randint(99, size=9))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_shape", torch.rand(2, 8, 8).shape[1:]),
        ("image_shape", [np.int64(8), 8]),
        ("n_clusters", np.int32(3)),
        ("warm_start", np.bool_(True)),
        ("device", torch.device("cpu")),
        ("learning_rate", np.float32(0.05)),
    ],
    ids=str,
)
def test_parameters_of_the_kinds_that_users_have(digits, tmp_path, name, value):
    est = DCGMMEstimator(**IMAGES | {"layers": [ConvGMM(4)], name: value}).fit(digits[0][:40])
    back = by_file(est, tmp_path)
    read = getattr(back, name)
    assert read == tuple(value) if isinstance(value, torch.Size) else str(read) == str(value)
    np.testing.assert_array_equal(back.predict(digits[0]), est.predict(digits[0]))


@pytest.mark.parametrize("y", [["b", "a"], [1.0, 2.0], [True, False], [-3, 7]], ids=str)
def test_classes_are_of_the_same_type_again(digits, tmp_path, y):
    X, y = digits[0][:40], np.resize(y, 40)
    clf = DCGMMClassifier(layers=[ConvGMM(3)], **IMAGES).fit(X, y)
    back = by_file(clf, tmp_path)
    np.testing.assert_array_equal(back.classes_, clf.classes_, strict=True)
    np.testing.assert_array_equal(back.predict(X), clf.predict(X), strict=True)


def test_the_file_is_one_of_safetensors_with_json(saved, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(saved[0])
    content, arrays = contents(path)
    means = arrays["_stack.arrays.emissions.0.means"]
    assert content["state"]["max_epochs"] == 2
    np.testing.assert_array_equal(means, saved[1]._stack.pixels.means.detach())


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


def contents_of(data, folder):
    (folder / "model").write_bytes(data)
    return contents(folder / "model")


def rewrite(path, text, arrays):
    save_file(arrays, path, {"skdcgmm": text})


def rewritten_is_refused(folder, text, arrays, match):
    """A file of a text and arrays is a clear error, for which little memory is enough."""
    rewrite(folder / "model", text, arrays)
    with little_memory():
        refused(folder / "model", (folder / "model").read_bytes(), match)


def refused(path, data, match):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"(?s)path=.*{match}.*DCGMMEstimator\.save has written"):
        DCGMMEstimator.load(path)


@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_files(saved, tmp_path_factory, share):
    data = saved[0]
    part = data[: int(share * len(data))]
    refused(tmp_path_factory.getbasetemp() / "truncated", part, "deserializing header")


@given(share=st.floats(0, 1, exclude_max=True), in_header=st.booleans(), bit=st.integers(0, 7))
def test_a_changed_bit_is_a_clear_error_or_another_number(
    saved, tmp_path_factory, share, in_header, bit
):
    data, path = bytearray(saved[0]), tmp_path_factory.getbasetemp() / "changed"
    n_header = 8 + int.from_bytes(data[:8], "little")
    data[int(share * (n_header if in_header else len(data)))] ^= 1 << bit
    path.write_bytes(data)
    try:
        with little_memory():
            est, message = DCGMMEstimator.load(path), ""
    except ValueError as error:
        message = str(error)
    if message:
        assert message.endswith("Give a file that DCGMMEstimator.save has written.")
        assert "allocate" not in message
    else:
        assert set(est.get_params(deep=False)) == set(saved[1].get_params(deep=False))


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
    data = (tmp_path / "model").read_bytes()
    refused(tmp_path / "model", data, "it is no whole file of skdcgmm")


@contextmanager
def little_memory():
    """Let what is done here take 300 megabytes more than there are, at most."""
    resource, pages = pytest.importorskip("resource"), Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("the system does not tell what memory is taken")
    taken = int(pages.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 300 * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Runs:
    """What a pickle of it runs."""

    def __reduce__(self):
        return os.mkdir, ("run",)


@pytest.mark.parametrize("cls", [DCGMMEstimator, DCGMMClassifier, DCGMMOutlierDetector])
def test_no_code_of_a_pickle_runs(tmp_path, monkeypatch, cls):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(ValueError, match=rf"{cls.__name__}\.save has written"):
        cls.load(tmp_path / "model")
    assert not (tmp_path / "run").exists()


def at(content, path):
    for key in path[:-1]:
        content = content[key]
    return content, path[-1]


STACK = ("state", "_stack", "items")
FIRST_LAYER = (*STACK, "layers", "items", 0, "items", 1)
ARRAYS = (*STACK, "arrays", "items")
DEEP = "[" * 100_000 + "]" * 100_000
GENERATOR = {"bit_generator": "MT19937", "state": {"type": "dict", "items": {}}}


def an_object(cls, **state):
    return {"type": "object", "cls": cls, "state": state}


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("format",), 1, "format is 1, and this version reads 2"),
        (("format",), 3, "format is 3, and this version reads 2"),
        # Of classes, functions and attributes that are no data.
        (("state", "tol"), an_object("Popen"), "Popen"),
        (("state", "tol"), an_object("numpy.random.RandomState"), "RandomState"),
        (("state", "tol"), an_object("ConvGMM", set_params=1), r"ConvGMM has no \['set_params'\]"),
        (("state", "tol"), an_object("GaussianMixture", fit=1), r"Mixture has no \['fit'\]"),
        (("state", "tol"), an_object("Surprise", measure=1), r"Surprise has no \['measure'\]"),
        (("state", "tol"), an_object("Standing", odd=1), "unexpected keyword argument 'odd'"),
        (("state", "tol"), {"type": "call", "name": "os.system"}, "no kind of value"),
        (
            ("state", "tol"),
            {"type": "generator", "state": {**GENERATOR, "bit_generator": "seed"}},
            "seed is no bit generator",
        ),
        (("state", "predict"), "mine", r"has \['predict'\]"),
        (("state", "__class__"), "mine", r"has \['__class__'\]"),
        (("state", "__dict__"), "mine", r"has \['__dict__'\]"),
        (("state", "_score_methods"), 5, r"has \['_score_methods'\]"),
        # Sizes that the arrays do not have.
        ((*FIRST_LAYER, "state", "n_components"), 7, "size mismatch for emissions.0.means"),
        ((*FIRST_LAYER, "state", "n_components"), 10**12, "size mismatch for emissions.0.means"),
        ((*FIRST_LAYER, "state", "n_components"), 10**18, "Storage size"),
        ((*FIRST_LAYER, "state", "kernel_size"), 3, "windows that do not tile"),
        ((*FIRST_LAYER, "state", "shared"), True, "size mismatch for emissions.0.means"),
        ((*FIRST_LAYER, "state", "covariance_type"), "full", "must be one of"),
        ((*FIRST_LAYER, "cls"), "MaxPool", "begin and end with a ConvGMM"),
        ((*FIRST_LAYER, "state"), {}, "no attribute 'kernel_size'"),
        (FIRST_LAYER, None, "no attribute 'kernel_size'"),
        ((*STACK, "image_shape", "items"), [1, 10**9, 10**9], "must end in one position"),
        ((*STACK, "image_shape", "items"), [3, 8, 8], "size mismatch for emissions.0.min_variance"),
        ((*STACK, "n_classes"), 10**12, r"Missing key\(s\) in state_dict: \"class_logits\""),
        ((*STACK, "joint"), False, r"Missing key\(s\)"),
        # Names that lead nowhere.
        ((*ARRAYS, "logits"), {"type": "array", "name": "odd"}, "KeyError: 'odd'"),
        (("state", "_stack"), None, "'NoneType' object is not subscriptable"),
        (("state",), {}, "it lacks"),
    ],
)
def test_hostile_files(saved, tmp_path, path, value, match):
    content, arrays = contents_of(saved[0], tmp_path)
    inside, key = at(content, path)
    inside[key] = value
    rewritten_is_refused(tmp_path, json.dumps(content), arrays, match)


@pytest.mark.parametrize("name", ["tol", "layers", "_stack", "_progress"])
def test_a_file_that_lacks_a_part(saved, tmp_path, name):
    content, arrays = contents_of(saved[0], tmp_path)
    del content["state"][name]
    rewritten_is_refused(tmp_path, json.dumps(content), arrays, f"'{name}'")


def test_a_file_that_lacks_an_array(saved, tmp_path):
    content, arrays = contents_of(saved[0], tmp_path)
    del at(content, (*ARRAYS, ""))[0]["logits"]
    match = r"Missing key\(s\) in state_dict: \"logits\""
    rewritten_is_refused(tmp_path, json.dumps(content), arrays, match)


def test_a_file_that_has_an_array_too_many(saved, tmp_path):
    content, arrays = contents_of(saved[0], tmp_path)
    arrays["odd"] = np.zeros(3, dtype=np.float32)
    at(content, (*ARRAYS, ""))[0]["odd"] = {"type": "array", "name": "odd"}
    match = r"Unexpected key\(s\) in state_dict: \"odd\""
    rewritten_is_refused(tmp_path, json.dumps(content), arrays, match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (DEEP, "RecursionError"),
        ("[]", "list indices"),
        ("{", "JSONDecodeError"),
        ("null", "NoneType"),
        ('{"format": 2}', "KeyError: 'kind'"),
    ],
    ids=["deep", "list", "cut", "null", "no kind"],
)
def test_hostile_headers(tmp_path, text, match):
    # Some versions of safetensors refuse such metadata themselves.
    rewritten_is_refused(tmp_path, text, {}, f"({match}|InvalidHeader)")


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("emissions.0.means", lambda a: a[:, 1:], "size mismatch for emissions.0.means"),
        ("emissions.0.means", lambda a: a[..., None], "size mismatch for emissions.0.means"),
        (
            "emissions.0.shift",
            lambda a: np.zeros(64, a.dtype),
            "size mismatch for emissions.0.shift",
        ),
        (
            "emissions.0.scale",
            lambda a: np.ones((1, 8, 8), a.dtype),
            "size mismatch for emissions.0.scale",
        ),
        (
            "emissions.0.min_variance",
            lambda a: np.ones((10**6, 1, 1), a.dtype),
            "size mismatch for emissions.0.min_variance",
        ),
        ("emissions.1.logits", lambda a: a.swapaxes(0, 1), "size mismatch for emissions.1.logits"),
        ("logits", lambda a: a[1:], "size mismatch for logits"),
        ("logits", lambda a: a.astype(int), "types that no stack has"),
        ("logits", np.float64, "types that no stack has"),
        ("emissions.0.scale", lambda _: np.ones((), "f2"), "types that no stack has"),
    ],
)
def test_hostile_arrays(saved, tmp_path, name, change, match):
    content, arrays = contents_of(saved[0], tmp_path)
    name = f"_stack.arrays.{name}"
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    rewritten_is_refused(tmp_path, json.dumps(content), arrays, match)


def test_an_array_that_is_named_many_times_takes_its_memory_once(saved, tmp_path):
    content, arrays = contents_of(saved[0], tmp_path)
    arrays["odd"] = np.zeros(2**19, dtype=np.float32)  # 2 megabytes
    named = {f"odd{i}": {"type": "array", "name": "odd"} for i in range(2000)}
    at(content, (*ARRAYS, ""))[0].update(named)
    rewritten_is_refused(tmp_path, json.dumps(content), arrays, "odd")


def test_an_optimizer_of_another_stack_does_not_read_past_its_ends(saved, digits, tmp_path):
    content, arrays = contents_of(saved[0], tmp_path)
    arrays["_progress.optimizer.0.exp_avg"] = np.ones(1, "f")
    rewrite(tmp_path / "model", json.dumps(content), arrays)
    est = DCGMMEstimator.load(tmp_path / "model")
    with pytest.raises(ValueError, match="optimizer's state is that of another stack"):
        est.partial_fit(digits[0][:100])


@pytest.mark.parametrize("position", [-1, 625, 10**8])
@pytest.mark.parametrize(("kind", "name"), [("MT19937", "pos"), ("Philox", "buffer_pos")])
def test_a_generator_that_points_elsewhere(saved, tmp_path, kind, name, position):
    est = pickle.loads(pickle.dumps(saved[1]))
    est.random_state = np.random.RandomState(getattr(np.random, kind)(0))
    est.save(tmp_path / "model")
    content, arrays = contents(tmp_path / "model")
    state = content["state"]["random_state"]["state"]
    inside = state["state"]["items"] if name == "pos" else state
    assert name in inside
    inside[name] = position
    rewritten_is_refused(tmp_path, json.dumps(content), arrays, "out of range")


def test_a_huge_image_in_a_small_file_takes_no_memory(digits, tmp_path):
    layers = [ConvGMM(2, 1, 8), ConvGMM(2)]
    est = DCGMMEstimator(objective="layerwise", layers=layers, **IMAGES).fit(digits[0][:20])
    est.save(tmp_path / "model")
    content, arrays = contents(tmp_path / "model")
    stack = content["state"]["_stack"]["items"]
    stack["image_shape"]["items"] = [1, 10**6, 10**6]
    stack["layers"]["items"][0]["items"][1]["state"]["stride"]["items"] = [10**6, 10**6]
    rewrite(tmp_path / "model", json.dumps(content), arrays)
    with little_memory():
        back = DCGMMEstimator.load(tmp_path / "model")
        with pytest.raises(ValueError, match=r"image_shape=\(1000000, 1000000, 1\)"):
            back.predict(digits[0])


@pytest.mark.filterwarnings("ignore:Only 1 of n_clusters=3 clusters have images")
def test_a_small_file_of_many_components_takes_no_memory(digits, tmp_path, monkeypatch):
    """Their distances on the grid are for training only."""
    est = DCGMMEstimator(3, objective="layerwise", **IMAGES).fit(digits[0][:50])
    est.save(tmp_path / "model")
    monkeypatch.setattr(layerwise, "grid_distances", None)
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


def test_a_file_that_cannot_be_written_leaves_the_old_one(saved, tmp_path, monkeypatch):
    def full(_):
        raise OSError("no space left")

    path = tmp_path / "model"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        saved[1].save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["", "nowhere/model"])
def test_no_place_for_a_file(saved, tmp_path, place):
    with pytest.raises(FileNotFoundError, match="path must be a file in a folder"):
        saved[1].save(tmp_path / place)

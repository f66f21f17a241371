"""Whatever modes and settings of torch the caller is in, answers are the same and they stay."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import numpy as np
import pytest
import torch

from skdcgmm import (
    ConvGMM,
    DCGMMClassifier,
    DCGMMEstimator,
    DCGMMImputer,
    DCGMMOutlierDetector,
)
from skdcgmm.data import Batch
from skdcgmm.model import computing
from skdcgmm.model.specs import lay_out, name_layers
from skdcgmm.model.stack import Stack
from skdcgmm.model.tables import Generation
from skdcgmm.published.stack import LayerwiseStack
from skdcgmm.training.joint import log_prob

STACK = [ConvGMM(5, 4), ConvGMM(3)]
IMAGES = {"layers": STACK, "image_shape": (8, 8), "max_epochs": 2, "random_state": 0}
ESTIMATORS = {
    "joint": lambda: DCGMMEstimator(validation_fraction=0.2, transform_layers=[0, 1], **IMAGES),
    "merged": lambda: DCGMMEstimator(2, image_shape=(8, 8), max_epochs=1, random_state=0),
    "layerwise": lambda: DCGMMEstimator(objective="layerwise", score_method="layer", **IMAGES),
    "detector": lambda: DCGMMOutlierDetector(**IMAGES),
    "classifier": lambda: DCGMMClassifier(**IMAGES),
    "imputer": lambda: DCGMMImputer(method="sample", **IMAGES),
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="X")
def some_digits(digits):
    return digits[0][:60]


@pytest.fixture(scope="module")
def y(digits):
    return np.where(np.arange(60) < 40, digits[1][:60], -1)


def fitted(name, X, y):
    return ESTIMATORS[name]().fit(X, y)


def answers(est, X):
    """What all methods answer."""
    holes = X.copy()
    holes[:, 20:30] = np.nan
    found = [est.score_samples(holes), est.summary(), *est.covariances_.values()]
    found += [*est.weights_.values(), *est.means_.values()]
    if hasattr(est, "clusters_"):
        found += [est.clusters_, est.cluster_centers_, est.component_means_, est.children_]
    for name in ("predict", "transform", "predict_proba"):
        if hasattr(est, name):
            found.append(getattr(est, name)(holes))
    if hasattr(est, "classes_"):
        found += [est.score_samples(X, 1), est.impute(holes, y=1), est.sample_like(X[:3], y=1)]
    if hasattr(est, "sample"):
        found += est.sample(4)
    if hasattr(est, "impute"):
        found.append(est.sample_like(X[:3]))
        found += [est.impute(holes), est.impute(holes, method="sample")]
        found += [*est.sharpen(X[:3], n_steps=2, return_values=True)]
    if hasattr(est, "calibrate"):
        found.append(copy.deepcopy(est).calibrate(X).offset_)
    return found


def learnt(est, X, y):
    """What it has learnt once it has been taken from a file, changed, and gone on."""
    est = pickle.loads(pickle.dumps(est))
    est.means_ = est.means_
    est.covariances_ = est.covariances_
    est.weights_ = {list(est.weights_)[-1]: list(est.weights_.values())[-1]}
    if hasattr(est, "partial_fit"):
        est.reset_annealing(0.5).partial_fit(X)
    return est.set_params(warm_start=True).fit(X, y)


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: default_device("meta"),
    "default dtype": default_double,
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_modes_of_torch_change_nothing(X, y, name):
    est = fitted(name, X, y)
    expected = answers(est, X)
    after = answers(learnt(est, X, y), X)
    for mode in MODES.values():
        with mode():
            assert_equal(answers(est, X), expected)
            inside = fitted(name, X, y)
            assert_equal(answers(inside, X), expected)
            assert_equal(answers(learnt(inside, X, y), X), after)
        # What was made inside can be learnt from outside.
        assert_equal(answers(learnt(inside, X, y), X), after)


@pytest.fixture
def precisions():
    """Reads the settings of products; afterwards they are what they were."""
    backends = torch.backends
    owners = {
        "": backends,
        "cudnn": backends.cudnn,
        "cuda.matmul": backends.cuda.matmul,
        "cudnn.conv": backends.cudnn.conv,
        "mkldnn.matmul": backends.mkldnn.matmul,
        "mkldnn.conv": backends.mkldnn.conv,
    }

    def read():
        return {name: owner.fp32_precision for name, owner in owners.items()}

    before = read()
    yield owners, read
    for name, value in before.items():
        owners[name].fp32_precision = value


@pytest.mark.parametrize("name", ["", "cudnn", "cuda.matmul", "cudnn.conv", "mkldnn.matmul"])
def test_settings_of_precision_are_kept_and_given_back(X, y, precisions, name):
    owners, read = precisions
    expected = answers(fitted("joint", X, y), X)
    before = read()
    owners[name].fp32_precision = "tf32"
    changed = read()
    assert_equal(answers(fitted("joint", X, y), X), expected)
    assert read() == changed
    with computing(CPU):
        assert "tf32" not in read().values()
    # What follows from a general setting is not pinned to what it was.
    owners[name].fp32_precision = before[name]
    assert read() == before


def test_precision_is_given_back_by_the_last_thread():
    before = torch.get_float32_matmul_precision()
    turn = Barrier(2, timeout=10)
    try:
        torch.set_float32_matmul_precision("high")
        matmul = torch.backends.cuda.matmul

        def exact():
            return matmul.fp32_precision == "ieee"

        def first():
            with computing(CPU):
                turn.wait()
                turn.wait()
            turn.wait()

        def second():
            turn.wait()
            with computing(CPU):
                turn.wait()
                turn.wait()  # the first is out
                return exact()

        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(call) for call in (first, second)]
            assert [call.result() for call in calls] == [None, True]
        assert not exact()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


GENERATION = Generation(temperature=1.0, top_s=2, generator=None)
# What a tree computes of images of which some pixels are missing; and of whole ones.
OF_ANY = {
    "variants": lambda tree, x: tree.variants(x, tree.names[0], GENERATION),
    "variants of the top": lambda tree, x: tree.variants(x, tree.names[-1], GENERATION),
    "impute_sample": lambda tree, x: tree.impute_sample(x, GENERATION),
    "impute_mean": lambda tree, x: tree.impute_mean(x),
    "layer_log_prob": lambda tree, x: tree.layer_log_prob(x, tree.names[-1]),
    "log_prob": lambda tree, x: tree.stack_log_prob(x),
}
OF_WHOLE = {
    "scores": lambda tree, x: tree.scores(x, True),
    "posterior": lambda tree, x: tree.posterior(x, True),
    "responsibilities": lambda tree, x: torch.cat(
        [r.flatten() for r in tree.responsibilities(x, tree.names, True)]
    ),
    "sample": lambda tree, x: tree.sample(torch.zeros_like(x[:, 0, 0, 0]).long(), GENERATION),
}
OF_DENSITIES = {
    "statistics": lambda tree, x: tree.statistics(x, True),
    "shortfalls": lambda tree, x: tree.shortfalls(x, True)[0],
    "classes": lambda tree, x: tree.class_probabilities(x, True),
    "a class": lambda tree, x: tree.given_class(1).log_prob(x, True),
    "component_means": lambda tree, _: tree.component_means(),
    "a step": lambda tree, x: log_prob(tree, Batch(x, torch.ones_like(x[:, 0, 0, 0]), None)),
    "labels": lambda tree, x: log_prob(tree, Batch(x, y=torch.zeros_like(x[:, 0, 0, 0]).long())),
}


@pytest.mark.parametrize("kind", ["tiles", "spherical", "pyramid", "atoms", "layerwise"])
def test_all_is_computed_where_the_stack_is(kind, monkeypatch):
    """On a device without numbers, what is made elsewhere is an error, as it would be on a GPU."""
    # Whatever depends on numbers is taken to be so: pixels are missing, densities finite.
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda _: True)
    spec = ConvGMM(3, 2, covariance_type="spherical" if kind == "spherical" else "diag")
    layers = lay_out(name_layers([spec, ConvGMM(4)]), (2, 4, 4), tiling=True)
    make = LayerwiseStack if kind == "layerwise" else Stack
    pixels = kind if kind in ("pyramid", "atoms") else "tiles"
    stack = make(layers, None if kind == "layerwise" else 2, pixels=pixels)
    stack.float().to("meta")
    x = torch.empty(5, 2, 4, 4, device="meta")
    calls = {**OF_WHOLE, **({} if kind == "layerwise" else OF_DENSITIES)}
    if kind == "pyramid":  # which looks at what is missing on its way
        del calls["a step"], calls["labels"]
    else:
        calls |= OF_ANY
    if kind == "layerwise":  # generators have a device that computes
        del calls["impute_mean"]
    for name, call in calls.items():
        assert call(stack(), x).device == x.device, name

"""Data frames and tensors in, the same out."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch

from skdcgmm import DCGMMClassifier, DCGMMEstimator, DCGMMOutlierDetector

IMAGES = {"image_shape": (8, 8), "max_epochs": 2, "random_state": 0}
NAMES = [f"pixel{i}" for i in range(64)]
FRAMES = {
    "pandas": lambda X: pd.DataFrame(X, columns=NAMES),
    "polars": lambda X: pl.DataFrame(X, schema=NAMES),
}


@pytest.fixture(scope="module", name="X")
def some_digits(digits):
    return digits[0][:200]


@pytest.fixture(scope="module")
def plain(X):
    return DCGMMEstimator(4, **IMAGES).fit(X)


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize(
    "cls", [DCGMMEstimator, DCGMMClassifier, DCGMMOutlierDetector], ids=lambda cls: cls.__name__
)
def test_frames_are_arrays_with_names(X, digits, kind, cls):
    y = digits[1][:200]
    frame = FRAMES[kind](X)
    est, named = cls(**IMAGES).fit(X, y), cls(**IMAGES).fit(frame, y)
    assert list(named.feature_names_in_) == NAMES
    np.testing.assert_array_equal(named.score_samples(frame), est.score_samples(X))
    np.testing.assert_array_equal(named.predict(frame), est.predict(X))
    with pytest.raises(ValueError, match="feature names"):
        named.predict(frame[NAMES[::-1]])
    with pytest.warns(UserWarning, match="feature names"):
        named.predict(X)


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("output", ["default", *FRAMES])
def test_set_output(X, plain, kind, output):
    frame = FRAMES[kind](X)
    est = DCGMMEstimator(4, **IMAGES).set_output(transform=output)
    out = est.fit(frame).transform(frame)
    expected = {"default": np.ndarray, "pandas": pd.DataFrame, "polars": pl.DataFrame}
    assert isinstance(out, expected[output])
    np.testing.assert_array_equal(np.asarray(out), plain.predict_proba(X))
    if output != "default":
        assert list(out.columns) == list(est.get_feature_names_out())


@pytest.mark.parametrize("kind", FRAMES)
def test_missing_values_of_frames(X, plain, kind):
    missing = X.copy()
    missing[:, 10] = np.nan
    frame = FRAMES[kind](missing)
    if kind == "polars":
        frame = frame.with_columns(pl.col("pixel10").fill_nan(None))
    est = DCGMMEstimator(4, **IMAGES).fit(FRAMES[kind](X))
    np.testing.assert_array_equal(est.score_samples(frame), plain.score_samples(missing))
    filled = est.impute(frame)
    np.testing.assert_array_equal(filled, plain.impute(missing))


@pytest.mark.parametrize(
    "method",
    ["predict", "predict_proba", "transform", "score_samples", "impute", "sharpen", "sample_like"],
)
def test_tensors_come_back_as_tensors(X, plain, method):
    parameters = {"sharpen": {"n_steps": 2}, "sample_like": {"random_state": 0}}.get(method, {})
    ours = getattr(plain, method)(torch.from_numpy(X), **parameters)
    assert isinstance(ours, torch.Tensor)
    np.testing.assert_array_equal(ours.numpy(), getattr(plain, method)(X, **parameters))


@pytest.mark.parametrize(
    "convert",
    [
        torch._neg_view,
        lambda X: X.requires_grad_(),
        lambda X: torch.repeat_interleave(X, 2, dim=1)[:, ::2],
        lambda X: X.to(torch.bfloat16).double(),
    ],
    ids=["negative", "with gradients", "strided", "double"],
)
def test_views_of_tensors_are_tensors(X, convert):
    tensor = convert(torch.from_numpy(X[:60].copy()))
    values = tensor.detach().resolve_neg().numpy()
    ours, theirs = (DCGMMEstimator(3, **IMAGES).fit(images) for images in (tensor, values))
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_array_equal(ours.transform(tensor).numpy(), theirs.transform(values))
    assert torch.equal(DCGMMEstimator(3, **IMAGES).fit_predict(tensor), ours.predict(tensor))


@pytest.mark.parametrize("cls", [DCGMMEstimator, DCGMMClassifier, DCGMMOutlierDetector])
def test_dispatch_to_other_arrays_changes_nothing(X, digits, cls, monkeypatch):
    pytest.importorskip("sklearn", "1.7")
    pytest.importorskip("scipy", "1.14")
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    y = digits[1][:200]
    expected = cls(**IMAGES).fit(X, y)
    with sklearn.config_context(array_api_dispatch=True):
        est = cls(**IMAGES).fit(torch.from_numpy(X), torch.from_numpy(y))
        scores, labels = (
            method(torch.from_numpy(X)) for method in (est.score_samples, est.predict)
        )
    np.testing.assert_array_equal(scores.numpy(), expected.score_samples(X))
    np.testing.assert_array_equal(labels.numpy(), expected.predict(X))


@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        lambda X: np.repeat(X, 2, axis=1)[:, ::2],
        lambda X: X.astype(">f4"),
        memoryview,
        list,
    ],
    ids=["Fortran", "strided", "big endian", "memoryview", "list"],
)
def test_anything_that_numpy_takes(X, plain, convert):
    np.testing.assert_allclose(plain.score_samples(convert(X)), plain.score_samples(X), rtol=1e-5)


def test_a_list_of_tensors(X, plain):
    rows = list(torch.from_numpy(X.copy()).requires_grad_())
    np.testing.assert_array_equal(plain.predict(rows), plain.predict(X))


def test_whole_numbers_in_half_precision_are_looked_at(X):
    with pytest.warns(UserWarning, match="taken for plain features"):
        DCGMMEstimator(2, max_epochs=1).fit((16 * X).astype(np.float16))


@pytest.mark.parametrize("shape", [(-1, 64), (-1, 8, 8), (-1, 8, 8, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_what_is_masked_is_missing(X, shape, dtype):
    images = (16 * X).astype(dtype).reshape(shape)
    mask = np.zeros(images.shape, dtype=bool)
    mask[:, 2:5] = True
    masked, holes = np.ma.array(images, mask=mask), np.where(mask, np.nan, images)
    holes = holes.astype(np.float32)
    est, expected = (DCGMMEstimator(4, **IMAGES).fit(given) for given in (masked, holes))
    np.testing.assert_array_equal(est.score_samples(masked), expected.score_samples(holes))
    np.testing.assert_array_equal(est.impute(masked), expected.impute(holes))

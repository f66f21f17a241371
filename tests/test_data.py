"""Images from files, datasets and loaders, learnt from a batch at a time."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator, DCGMMOutlierDetector
from skdcgmm.data.images import Images, Moments, release
from skdcgmm.data.stream import Stream, _keep
from skdcgmm.model.pixels.gaussian import Gaussian
from skdcgmm.model.windows import Windows

DEEP = [ConvGMM(10, 4, shared=False), ConvGMM(20)]


def estimator(**parameters):
    return DCGMMEstimator(
        **{"layers": DEEP, "image_shape": (8, 8), "max_epochs": 20, "batch_size": 50}
        | {"random_state": 0, **parameters}
    )


class Batches:
    """Arrays, anew in every pass."""

    def __init__(self, X, size=50):
        self.X, self.size = X, size
        self.n_passes = 0

    def __iter__(self):
        self.n_passes += 1
        return (self.X[start : start + self.size] for start in range(0, len(self.X), self.size))


class Items(Dataset):
    """Pictures with their channel first, and labels."""

    def __init__(self, X, y):
        self.X, self.y = X.reshape(-1, 1, 8, 8), y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        return torch.from_numpy(self.X[index]), int(self.y[index])


class Flow(IterableDataset):
    """Images one after the other."""

    def __init__(self, X):
        self.X = X

    def __iter__(self):
        return iter(torch.from_numpy(self.X))


@pytest.fixture(params=["uint8", "float32", ">f4", ">f8"])
def mapped(request, digits, tmp_path):
    """The images, in memory and mapped from a file."""
    X = (digits[0] * 16).astype(request.param)
    np.save(tmp_path / "X.npy", X)
    return X, np.load(tmp_path / "X.npy", mmap_mode="r")


def resident(array):
    """Kilobytes of the file of a mapped array in the memory of this process."""
    maps = Path("/proc/self/smaps")
    if not maps.exists():
        pytest.skip("the system does not tell what memory holds")
    text = maps.read_text().split(str(array.filename))
    return sum(int(part.split("Rss:")[1].split()[0]) for part in text[1:])


def test_a_mapped_file_is_learnt_from_as_an_array(mapped):
    X, file = mapped
    fits = [estimator(max_epochs=2).fit(images) for images in (X, file, file.reshape(-1, 8, 8))]
    for est in fits[1:]:
        np.testing.assert_array_equal(est.labels_, fits[0].labels_)
        np.testing.assert_array_equal(est.score_samples(file), fits[0].score_samples(X))


def test_the_pages_of_a_mapped_file_do_not_stay_in_memory(mapped):
    _, file = mapped
    est = estimator(max_epochs=1)
    for use in (est.fit, est.predict, est.score_samples, est.transform):
        assert file.sum() > 0
        assert resident(file) > 50
        use(file)
        assert resident(file) == 0


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2"])
def test_any_order_of_bytes_keeps_its_precision(digits, dtype):
    X = (digits[0][:100] * 16).astype(dtype)
    there = X.astype(X.dtype.newbyteorder("="))
    fits = [estimator(max_epochs=1).fit(images) for images in (X, there, Batches(X))]
    for est in fits:
        assert est.means_["convgmm1"].dtype == fits[1].means_["convgmm1"].dtype
        assert est.score_samples(X).dtype == (np.float64 if dtype == ">f8" else np.float32)
        np.testing.assert_array_equal(est.transform(X), est.transform(there))
        holes = np.where(np.eye(100, 64, dtype=bool), np.nan, X.astype(np.result_type(X, "f4")))
        np.testing.assert_array_equal(
            est.impute(holes.astype(holes.dtype.newbyteorder())), est.impute(holes)
        )
    np.testing.assert_array_equal(fits[0].labels_, fits[1].labels_)


def test_changes_of_a_private_map_are_kept(tmp_path):
    np.save(tmp_path / "X.npy", np.zeros((100, 64)))
    X = np.load(tmp_path / "X.npy", mmap_mode="c")
    X[:] = 1
    release(np.asarray(X).reshape(-1, 8, 8))
    assert (X == 1).all()
    with (tmp_path / "X.npy").open("rb") as file:
        private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        X = np.ndarray((100,), buffer=private, offset=128)
        X[:] = 1
        release(X)
        assert (X == 1).all()


def test_batches_of_a_dataset_are_of_equal_size(digits):
    X = digits[0][:501]
    stream = Stream(
        Items(X, np.zeros(501)),
        lambda batch, _: Images(batch.reshape(-1, 64), (1, 8, 8), (64,)),
        250,
        np.random.RandomState(0),
    )
    epochs = stream.epochs(np.random.RandomState(0), 250, torch.zeros(()))
    assert [len(batch.x) for batch in epochs.batches()] == [167, 167, 167]
    assert epochs.n_batches == 3


def test_infinity_anywhere_in_a_large_array_is_found():
    X = np.zeros((2500, 3), dtype=np.float32)
    X[2400, 1] = np.inf
    with pytest.raises(ValueError, match="Input X contains infinity, first in row 2400, feature 1"):
        DCGMMEstimator(2).fit(X)


@pytest.mark.parametrize(
    "source",
    [
        Batches,
        lambda X: Batches(X.reshape(-1, 8, 8)),
        lambda X: DataLoader(Items(X, np.zeros(len(X))), 50, shuffle=True),
        lambda X: Items(X, np.zeros(len(X))),
        lambda X: TensorDataset(torch.from_numpy(X)),
        Flow,
    ],
    ids=["arrays", "pictures", "loader", "dataset", "tensors", "flow"],
)
def test_batches_are_learnt_from_as_well_as_an_array(digits, source):
    X = digits[0][:600]
    of_array, of_batches = (estimator(max_epochs=15).fit(images) for images in (X, source(X)))
    assert not hasattr(of_batches, "labels_")
    assert of_batches.n_features_in_ == 64
    # Another start and another order: another model, but as good a one.
    assert of_batches.score(X) == pytest.approx(of_array.score(X), abs=2)
    assert len(np.unique(of_batches.predict(X))) > 10
    units = of_batches._stack.pixels, of_array._stack.pixels
    torch.testing.assert_close(units[0].scale, units[1].scale)
    torch.testing.assert_close(units[0].shift, units[1].shift)


def test_a_pass_for_the_moments_and_one_an_epoch(digits):
    batches = Batches(digits[0])
    est = estimator(max_epochs=3).fit(batches)
    assert batches.n_passes == 1 + 3
    assert est.n_iter_ == 3


def test_a_dataset_comes_in_the_same_random_order_again(digits):
    torch_state = torch.get_rng_state()
    first, second = (estimator(max_epochs=2).fit(Items(*digits)) for _ in range(2))
    assert first.history_ == second.history_
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_plain_features_and_missing_values_in_batches(digits):
    X = digits[0].astype(np.float64)
    X[::3, 10:20] = np.nan
    X = X[:, X[1] > 0]
    est = DCGMMEstimator(4, max_epochs=5, random_state=0).fit(Batches(X))
    of_array = DCGMMEstimator(4, max_epochs=5, random_state=0).fit(X)
    scales = est._stack.pixels.scale, of_array._stack.pixels.scale
    np.testing.assert_allclose(*scales, rtol=1e-9)
    assert est.score_samples(X).dtype == np.float64


def test_a_detector_learns_from_batches(digits):
    X = digits[0][digits[1] != 0]
    det = DCGMMOutlierDetector(
        layers=DEEP, image_shape=(8, 8), max_epochs=5, random_state=0, contamination=0.1
    ).fit(Batches(X))
    assert np.mean(det.predict(X) == -1) == pytest.approx(0.1, abs=0.01)
    zeros, others = digits[0][digits[1] == 0], X
    assert det.score_samples(zeros).mean() < det.score_samples(others).mean()


@pytest.mark.parametrize(
    ("source", "parameters", "message"),
    [
        (lambda X: Exhausted(X), {}, "as many batches in every epoch as .* 36; got 0"),
        (lambda X: (X for _ in range(3)), {}, "X must start anew whenever it is iterated over"),
        (lambda X: Batches(X[:0]), {}, "X must have batches of images"),
        (lambda X: Batches(X[:, :5]), {}, r"image_shape=\(8, 8, 1\) asks for 64 features"),
        (Batches, {"validation_fraction": 0.1}, "validation_fraction needs images in an array"),
        (lambda X: Mixed(X), {}, "X must have batches of one type"),
    ],
)
def test_batches_that_cannot_be_learnt_from(digits, source, parameters, message):
    est = estimator(max_epochs=2).fit(digits[0])
    before = est.labels_
    with pytest.raises(ValueError, match=message):
        est.set_params(**parameters).fit(source(digits[0]))
    np.testing.assert_array_equal(est.labels_, before)


class Several(Dataset):
    """Whatever images it is given, and their numbers."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index


def resized(X):
    return [np.zeros((8 + i % 3, 8), dtype=np.float32) for i in range(len(X))]


def pictures(X):
    return [Image.fromarray(image) for image in (16 * X).astype(np.uint8).reshape(-1, 8, 8)]


class Endless(Dataset):
    """Without a length."""

    def __getitem__(self, index):
        return np.zeros((8, 8))


@pytest.mark.parametrize("est", [estimator(), DCGMMOutlierDetector(image_shape=(8, 8))])
@pytest.mark.parametrize("as_loader", [False, True])
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (resized, ValueError, "X must .*of one size.*Resize"),
        (pictures, TypeError, "X must .*arrays or tensors.*torchvision.transforms"),
        (lambda X: [{"image": image} for image in X], TypeError, "X must .*arrays or tensors"),
        (lambda _: ["image"] * 3, TypeError, "X must .*arrays or tensors"),
    ],
)
def test_items_that_are_no_images_of_one_size(digits, est, as_loader, images, error, message):
    source = Several(images(digits[0][:20]))
    with pytest.raises(error, match=message):
        est.fit(DataLoader(source, 10) if as_loader else source)
    assert not hasattr(est, "means_")


def test_a_dataset_without_a_length(digits):
    with pytest.raises(TypeError, match="X must have a length, or be an IterableDataset"):
        estimator().fit(Endless())
    with pytest.raises(ValueError, match="X must have batches of images; got none"):
        estimator().fit(Several([]))


@pytest.mark.parametrize("make", [torch.from_numpy, np.asarray, list])
def test_datasets_do_not_depend_on_the_default_device(digits, make):
    source = Several(make(digits[0][:100]))
    expected = estimator(max_epochs=1).fit(source).means_
    with torch.device("meta"):
        found = estimator(max_epochs=1).fit(source).means_
    for name, means in found.items():
        np.testing.assert_array_equal(means, expected[name])


class Mixed:
    """A batch of single, and one of double precision."""

    def __init__(self, X):
        self.X = X

    def __iter__(self):
        return iter([self.X[:50], self.X[:50].astype(np.float64)])


def test_what_batches_do_not_go_with(digits):
    X, y = digits
    with pytest.raises(ValueError, match="sample_weight must be None for X that comes in batches"):
        estimator().fit(Batches(X), sample_weight=np.ones(len(X)))
    with pytest.raises(TypeError, match="X must have batches that are arrays or tensors"):
        estimator().fit(Strings())
    with pytest.raises(TypeError, match="X must be an array here; got DataLoader"):
        DCGMMClassifier(image_shape=(8, 8)).fit(DataLoader(Items(X, y), 50), y)
    with pytest.raises((TypeError, ValueError), match="X must be a dense array"):
        DCGMMClassifier(image_shape=(8, 8)).fit(Batches(X), y)


class Exhausted:
    """One iterator for all passes."""

    def __init__(self, X):
        self.batches = iter(Batches(X))

    def __iter__(self):
        return self.batches


class Strings:
    """No images at all."""

    def __iter__(self):
        return iter(["one", "two"])


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=6),
    st.integers(0, 2**31 - 1),
    st.sampled_from([1.0, 1e-6, 1e6]),
)
def test_moments_of_parts_are_those_of_the_whole(sizes, seed, scale):
    rng = np.random.default_rng(seed)
    X = rng.normal(100, scale, (sum(sizes), 3))
    X[rng.random(X.shape) < 0.3] = np.nan
    parts = np.split(X, np.cumsum(sizes)[:-1])
    total = Moments.of(X[:0])
    for part in parts:
        total = total.add(Moments.of(part))
    for i, values in enumerate(X.T):
        values = values[~np.isnan(values)]
        assert total.n_values[i] == len(values)
        if len(values):
            assert total.mean[i] == pytest.approx(values.mean(), rel=1e-12)
            assert total.variance[i] == pytest.approx(values.var(), rel=1e-6, abs=1e-18)
    # All pixels of an image share one unit, that of their values about their means.
    values = X - np.where(total.n_values > 0, total.mean, 0)
    values = values[~np.isnan(values)]
    if len(values) > 1:
        pixels = Gaussian(Windows((1, 1, 3), (1, 3), (1, 3)), 2, (1, 1)).double()
        count, mean, variance = (
            torch.from_numpy(of_feature.reshape(1, 1, 3))
            for of_feature in (total.n_values, total.mean, total.variance)
        )
        pixels.set_units(count, mean, variance, mean[None], None)
        np.testing.assert_allclose(pixels.shift.flatten(), total.mean, rtol=1e-12)
        variance = np.square(values).mean() or 1.0
        assert pixels.scale.item() == pytest.approx(np.sqrt(variance / 0.1), rel=1e-6, abs=1e-18)
        np.testing.assert_allclose(pixels.min_variance, 0.07)  # 0.7 of the variance


def test_what_is_kept_is_an_even_sample():
    rng = np.random.RandomState(0)
    n_kept, counts = 10, np.zeros(50)
    for _ in range(2000):
        kept = np.empty((n_kept, 1), dtype=int)
        for start in range(0, 50, 7):
            rows = np.arange(start, min(50, start + 7))[:, None]
            _keep(kept, rows, start, rng)
        assert len(np.unique(kept)) == n_kept
        counts[kept[:, 0]] += 1
    # Each is kept with probability 1/5: five standard errors.
    assert np.abs(counts / 2000 - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 2000)


def test_images_of_a_sample_keep_their_weights_and_classes():
    rows = np.arange(12.0).reshape(6, 2)
    images = Images(rows, (2, 1, 1), (2,), weight=np.arange(6.0), y=np.arange(6))
    some = images.sample(3, np.random.RandomState(0), weighted=True)
    assert len(some) == 3
    assert 0 not in some.y
    np.testing.assert_array_equal(some.rows[:, 0], 2 * some.y)
    np.testing.assert_array_equal(some.weight, some.y)


def test_what_only_fit_takes(digits):
    X, loader = digits[0], DataLoader(Items(*digits), 50)
    est = estimator(max_epochs=1).fit(loader)
    for use in (est.predict, est.score, est.partial_fit):
        with pytest.raises(TypeError, match="Only fit, without classes, takes data loaders"):
            use(loader)
    with pytest.raises(TypeError, match="fit_predict needs an array; got DataLoader"):
        est.fit_predict(loader)
    assert not hasattr(est, "labels_")
    unfitted = estimator(), DCGMMOutlierDetector(image_shape=(8, 8))
    for use in (unfitted[0].fit_transform, unfitted[1].fit_predict):
        with pytest.raises(TypeError, match=f"{use.__name__} needs an array; got DataLoader"):
            use(loader)
    assert not any(hasattr(each, "history_") for each in unfitted)
    with pytest.raises(ValueError, match="looks like channels first"):
        DCGMMEstimator(5).fit(X.reshape(-1, 1, 8, 8))
    with pytest.raises(ValueError, match="If channels come first, move them last"):
        est.predict(X.reshape(-1, 1, 8, 8))


class Fetched(Several):
    """Items that are fetched many at a time."""

    def __getitems__(self, places):
        return [self.images[place] for place in places]

    def __getitem__(self, place):
        raise AssertionError("one by one")


def test_datasets_that_fetch_many_items_at_once(digits):
    X = digits[0][:100]
    means = [estimator(max_epochs=1).fit(kind(X)).means_["convgmm1"] for kind in (Several, Fetched)]
    np.testing.assert_array_equal(*means)

import gzip

import numpy as np
import pytest

from skdcgmm import datasets
from skdcgmm.datasets import load_images


@pytest.fixture
def arrays(rng):
    return {
        "X_train": rng.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "y_train": rng.integers(0, 10, 20, dtype=np.uint8),
        "X_test": rng.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        "y_test": rng.integers(0, 10, 10, dtype=np.uint8),
    }


def write_idx(path, array, compress):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = head + array.tobytes()
    path.write_bytes(gzip.compress(data) if compress else data)


def check(data, arrays):
    assert data.image_shape == (28, 28)
    for part in ("train", "test"):
        X, y = data[f"X_{part}"], data[f"y_{part}"]
        assert X.dtype == np.float32
        np.testing.assert_allclose(X * 255, arrays[f"X_{part}"].reshape(len(X), -1), rtol=1e-6)
        np.testing.assert_array_equal(y, arrays[f"y_{part}"])


def test_digits_are_always_there():
    data = load_images()
    assert data.X_train.shape == (1437, 64)
    assert data.X_test.shape == (360, 64)
    assert data.X_train.max() == 1
    assert data.image_shape == (8, 8)


def test_npz_from_argument_or_environment(arrays, tmp_path, monkeypatch):
    np.savez(tmp_path / "mnist.npz", **arrays)
    check(load_images("mnist", data_home=tmp_path), arrays)
    monkeypatch.setenv("SKDCGMM_DATA", str(tmp_path))
    check(load_images("mnist"), arrays)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("folder", [".", "fashion_mnist"])
def test_idx_files(arrays, tmp_path, compress, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    ending = ".gz" if compress else ""
    for key, name in (
        ("X_train", "train-images-idx3-ubyte"),
        ("y_train", "train-labels-idx1-ubyte"),
        ("X_test", "t10k-images-idx3-ubyte"),
        ("y_test", "t10k-labels-idx1-ubyte"),
    ):
        write_idx(tmp_path / folder / f"{name}{ending}", arrays[key], compress)
    check(load_images("fashion_mnist", data_home=tmp_path), arrays)


def test_a_file_that_is_no_idx_file(tmp_path):
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="no idx file"):
        load_images("mnist", data_home=tmp_path)


def test_openml_is_the_last_resort(arrays, tmp_path, monkeypatch):
    asked = []

    def fetch(name, **options):
        asked.append(name)
        X = np.concatenate([arrays["X_train"], arrays["X_test"]]).reshape(30, -1)
        return X, np.concatenate([arrays["y_train"], arrays["y_test"]]).astype(str)

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    monkeypatch.setattr(datasets, "_N_TEST", 10)
    check(load_images("mnist", data_home=tmp_path), arrays)
    check(load_images("fashion_mnist", data_home=tmp_path), arrays)
    assert asked == ["mnist_784", "Fashion-MNIST"]


def test_clear_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="name must be one of"):
        load_images("cifar")

    def fetch(name, **options):
        raise OSError("no network")

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    with pytest.raises(FileNotFoundError, match=r"(?s)mnist\.npz.*no network.*SKDCGMM_DATA"):
        load_images("mnist", data_home=tmp_path)

"""Seeds, data and skips in one place."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from sklearn.datasets import load_digits

settings.register_profile("default", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("default")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def digits():
    """Images of 8 x 8 pixels in 0-1, as float32 rows, and their labels."""
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


@pytest.fixture(scope="session")
def data_home():
    """The folder of the real data sets; tests that need it skip without it."""
    home = os.environ.get("SKDCGMM_DATA")
    if not home or not (Path(home) / "mnist.npz").is_file():
        pytest.skip("SKDCGMM_DATA names no folder with mnist.npz")
    return home

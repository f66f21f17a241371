"""Several processes train the model that one would train on the images of all."""

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator, DCGMMOutlierDetector

DEEP = [ConvGMM(5, 4, shared=False), ConvGMM(6)]
# So uneven that the second process has no image of some batches.
SHARES = (110, 10)
# Rounding of sums in another order, after a few steps of Adam.
TOLERANCES = {"float64": 1e-8, "float32": 1e-3}
CASES = {
    "joint": DCGMMEstimator(layers=DEEP, image_shape=(8, 8), max_epochs=4, batch_size=16),
    "held out": DCGMMEstimator(
        3, layers="auto", image_shape=(8, 8), max_epochs=4, batch_size=16, validation_fraction=0.2
    ),
    "layerwise": DCGMMEstimator(
        layers=DEEP, image_shape=(8, 8), objective="layerwise", max_epochs=4, batch_size=16
    ),
    "classifier": DCGMMClassifier(layers=DEEP, image_shape=(8, 8), max_epochs=4, batch_size=16),
    "linear": DCGMMClassifier(
        layers=DEEP, image_shape=(8, 8), max_epochs=4, batch_size=16, readout="linear"
    ),
    "detector": DCGMMOutlierDetector(layers=DEEP, image_shape=(8, 8), max_epochs=4, batch_size=16),
}  # fmt: skip


def labels(y):
    """Those of a half of the images, by odd and even numbers."""
    return np.where(np.arange(len(y)) % 2, y, -1)


def fitted(name, X, y, weight):
    est = CASES[name].set_params(random_state=3)
    if name in ("classifier", "linear"):
        return est.fit(X, y, sample_weight=weight)
    return est.fit(X) if name == "detector" else est.fit(X, sample_weight=weight)


def figures(est):
    """What is the same in all processes."""
    found = {name: p.detach() for name, p in est._network.named_parameters()}
    found["loss"] = torch.tensor([row["loss"] for row in est.history_])
    if hasattr(est, "offset_"):
        found["offset"] = torch.tensor(est.offset_)
    if hasattr(est, "readout_"):
        found["readout"] = torch.as_tensor(est.readout_.coef_)
    return found


def work(rank, folder, X, y, weight):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    own = slice(0, SHARES[0]) if rank == 0 else slice(SHARES[0], None)
    found = {
        (name, dtype): figures(fitted(name, X[own].astype(dtype), y[own], weight[own]))
        for name in CASES
        for dtype in TOLERANCES
    }
    with pytest.raises(ValueError) as error:
        DCGMMEstimator(2).fit(X[:, : 10 + rank])
    found["error"] = str(error.value)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def together(digits, tmp_path_factory):
    """Images, labels, weights, and what two processes have learnt of them."""
    folder = tmp_path_factory.mktemp("processes")
    X, y = digits[0][: sum(SHARES)].astype(np.float64), digits[1][: sum(SHARES)]
    X[SHARES[0] :, :20] = np.nan  # in one process only
    data = X, labels(y), np.random.RandomState(0).rand(sum(SHARES))
    multiprocessing.start_processes(work, (folder, *data), nprocs=2, start_method="spawn")
    return *data, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES.items())
@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_in_the_model_of_one(together, name, dtype, tolerance):
    X, y, weight, (first, second) = together
    alone = figures(fitted(name, X.astype(dtype), y, weight))
    for key, value in alone.items():
        found, other = first[name, dtype][key], second[name, dtype][key]
        assert torch.equal(found, other), key
        assert torch.allclose(found, value, rtol=tolerance, atol=tolerance), key


def test_processes_must_agree_on_their_images(together):
    assert all("shape and type" in found["error"] for found in together[-1])

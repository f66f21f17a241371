"""The benchmarks: sets are read in one way, clusters are judged, a GPU is compared with the CPU."""

import json

import numpy as np
import pytest
import torch

from benchmarks import clustering, gpu, models, report, sets, steps


def test_a_set_without_test_images_is_both(tmp_path):
    X, y = np.arange(48, dtype=np.uint8).reshape(3, 4, 4), np.array([0, 1, 1], np.uint8)
    np.savez(tmp_path / "few.npz", X=X, y=y)
    data = sets.read("few", tmp_path)
    assert data.image_shape == (4, 4)
    for part in ("train", "test"):
        np.testing.assert_array_equal(data[f"X_{part}"], X.reshape(3, 16) / np.float32(255))
        np.testing.assert_array_equal(data[f"y_{part}"], y)


def test_clusters_may_be_numbered_in_any_order():
    y = np.repeat([0, 1, 2], 10)
    found = clustering.judged(np.array([7, 3, 5])[y], y)
    assert found == {"nmi": 1, "ari": 1, "accuracy": 1, "purity": 1, "used": 3}


def test_imputation_by_principal_components_is_the_conditional_mean():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 8)) + 0.1 * rng.normal(size=(500, 8))
    imputer = models.PCAImputer(0, n_components=3).fit(X)
    covariance, mean = imputer._pca.get_covariance(), imputer._pca.mean_
    seen = np.arange(8) < 5
    weights = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[np.ix_(seen, ~seen)])
    expected = mean[~seen] + (X - mean)[:, seen] @ weights
    filled = imputer.impute(np.where(seen, X, np.nan))
    np.testing.assert_allclose(filled[:, ~seen], expected, rtol=1e-6)
    np.testing.assert_array_equal(filled[:, seen], X[:, seen])


def test_best_lines_of_a_group_come_first():
    table = report.Table("what", ["model", "k"], ["nmi"], "nmi", group="k", costs=())
    found = [("x", 2, 0.5), ("y", 1, 0.2), ("z", 1, 0.3), ("y", 2, 0.7)]
    rows = [{"data": "a", "seed": 0, "model": m, "k": k, "nmi": nmi} for m, k, nmi in found]
    lines = report.csv(rows, "a", table).splitlines()
    assert lines[0] == ".. csv-table:: a: what; seeds 0"
    assert [line.split('"')[1] for line in lines[4:8]] == ["z", "y", "y", "x"]


@pytest.mark.slow
def test_the_script_for_a_gpu_tries_on_the_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, "SECONDS", 0.0)
    path = tmp_path / "gpu.jsonl"
    stacks = ["flat 49", "auto, atoms", "auto, pyramid"]
    arguments = ["--data", "digits", "--device", "cpu", "--output", str(path)]
    gpu.main([*arguments, "--stacks", *stacks])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == len(stacks) * len(gpu.BATCH_SIZES)
    assert all(row["difference"] <= gpu.TOLERANCE for row in rows)
    assert all(row["step_images_s_device"] > 0 for row in rows)
    monkeypatch.setattr(gpu, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="differ by"):
        gpu.main([*arguments, "--stacks", "flat 49"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    with pytest.raises(SystemExit, match="no GPU"):
        gpu.main(["--output", str(tmp_path / "gpu.jsonl")])

"""Time and memory by the number of images, in a file of bytes that is mapped into memory.

    python -m benchmarks.large --data-home FOLDER

MNIST images, moved at random by up to three pixels, are written to a file. For each number of
images, one process fits a stack to them in one epoch, and scores all of them. JSON lines: seconds
an epoch, with the clusters of all images, and to score; and the peak of the resident memory, with
imports. `--scratch` is a folder for the file.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.datasets import load_images

LAYERS = [ConvGMM(25, 4, shared=False), ConvGMM(100)]
N_CHUNK = 10_000


def write(path, n_images, data_home):
    """A file of `n_images` images, written a chunk at a time."""
    rng = np.random.default_rng(0)
    images = np.uint8(load_images("mnist", data_home=data_home).X_train.reshape(-1, 28, 28) * 255)
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (n_images, 28, 28))
    for start in range(0, n_images, N_CHUNK):
        chunk = images[rng.integers(len(images), size=min(N_CHUNK, n_images - start))]
        rows, columns = rng.integers(-3, 4, 2)
        file[start : start + len(chunk)] = np.roll(chunk, (rows, columns), (1, 2))
    file.flush()


def measure(path):
    X = np.load(path, mmap_mode="r")
    row = {"n_images": len(X), "file_gib": round(X.nbytes / 2**30, 2)}
    est = DCGMMEstimator(layers=LAYERS, max_epochs=1, batch_size=500, random_state=0)
    start = time.perf_counter()
    est.fit(X)
    row["fit_s"] = round(time.perf_counter() - start, 1)
    start = time.perf_counter()
    row["mean_score"] = round(float(est.score_samples(X).mean()), 1)
    row["score_s"] = round(time.perf_counter() - start, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {**row, "peak_gib": round(peak, 2)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-home")
    parser.add_argument("--n-images", nargs="+", type=int, default=[500_000, 2_000_000])
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        for n_images in options.n_images:
            path = Path(folder) / "images.npy"
            spawn = multiprocessing.get_context("spawn")
            for task in ((write, path, n_images, options.data_home), (measure, path)):
                with ProcessPoolExecutor(1, spawn) as pool:
                    row = pool.submit(*task).result()
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

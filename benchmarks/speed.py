"""Where the time of a fit and of a score goes, and how it grows.

- `step`: a training step and a score of 250 images, beside the bare matrix products that they must
  do, and an iteration of scikit-learn's expectation maximisation over as many;
- `fit`: a fit at its defaults, by its parts;
- `pace`: from nothing to the held-out density that `GaussianMixture` ends with;
- `growth`: a step and a score by the side of images and the number of components;
- `files`: one epoch over images in a file that is mapped into memory;
- `processes`: two epochs in one process and in two;
- `compiled`: the same gradients and scores by `torch.compile`.
"""

import cProfile
import pstats
import resource
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import zoom
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import distributed, multiprocessing

from benchmarks import models, steps
from benchmarks.clock import timed
from skdcgmm import ConvGMM, DCGMMEstimator

DATA = ["mnist"]
MODELS = {"DCGMM": None}
N_SEEDS = 1
SMALL = [ConvGMM(25, 4, shared=False), ConvGMM(100)]


def tasks(data, quick):
    return [{"part": part} for part in (["step"] if quick else PARTS)]


def measure(data, model, seed, fit_parameters, part):
    n_threads = torch.get_num_threads()
    for row in PARTS[part](data, seed):
        rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
        yield {**rounded, "threads": n_threads}


def of_steps(data, seed):
    for name in steps.STACKS:
        stack, x = steps.started(steps.estimator(name, data.image_shape, seed), data.X_train)
        times = steps.medians(
            {
                "step": steps.step(stack, x),
                "step_products": steps.products(stack, x, gradients=True),
                "score": steps.score(stack, x),
                "score_products": steps.products(stack, x, gradients=False),
            },
            x.device,
        )
        yield {"stack": name, **{f"{route}_ms": value for route, value in times.items()}}
    yield from of_mixtures(data, seed)


def of_mixtures(data, seed, n_images=5000, n_iterations=10):
    """An iteration of expectation maximisation, by 250 images, without its start."""
    X = data.X_train[:n_images]
    share = steps.BATCH_SIZE / n_images
    for covariance_type, n_components in (("diag", 49), ("diag", 400)):
        times = {}
        for n in (1, 1 + n_iterations):
            mixture = GaussianMixture(
                n_components, covariance_type=covariance_type, reg_covar=models.REG_COVAR, tol=0,
                max_iter=n, init_params="random_from_data", random_state=seed,
            )  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                _, times[n] = timed(mixture.fit, X)
        _, score_s = timed(mixture.score_samples, X)
        yield {
            "stack": f"GaussianMixture {covariance_type} {n_components}",
            "step_ms": (times[1 + n_iterations] - times[1]) / n_iterations * share * 1e3,
            "score_ms": score_s * share * 1e3,
        }


# Parts of `fit` by the functions that they are in.
OF_FIT = {
    "choose the kind of pixels": "choose_pixels",
    "start": "_start",
    "train": "train",
    "merge clusters": "_finish",
    "label all images": "_set_labels",
}


def of_fit(data, seed):
    for n_clusters in (10, None):
        est = DCGMMEstimator(n_clusters, image_shape=data.image_shape, random_state=seed)
        profile = cProfile.Profile()
        _, fit_s = timed(lambda est=est, profile=profile: profile.runcall(est.fit, data.X_train))
        spent = {}
        for (file, _, name), (*_, cumulative, _) in pstats.Stats(profile).stats.items():
            if "skdcgmm" in file and name in OF_FIT.values():
                spent[name] = max(cumulative, spent.get(name, 0))
        found = {part: spent.get(name, 0.0) for part, name in OF_FIT.items()}
        found["start"] -= found["choose the kind of pixels"]  # which is a part of it
        found["all else"] = fit_s - sum(found.values())
        for part, seconds in found.items():
            yield {"n_clusters": n_clusters, "pixels": est._stack.kind, "of_fit": part,
                   "fit_s": seconds, "share": seconds / fit_s}  # fmt: skip


def of_pace(data, seed, n_chunk=2500):
    """Ours trains on chunks as they come; its density is looked at between them."""
    mixture = models.diagonal(49, data.image_shape, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        _, whole = timed(mixture.fit, data.X_train)
    target = float(mixture.score(data.X_test))
    yield {"stack": "GaussianMixture diag 49", "fit_s": whole, "nats": target}
    order = np.random.RandomState(seed).permutation(len(data.X_train))
    for name, layers in {"flat 49": [ConvGMM(49)], "auto, tiles": "auto"}.items():
        est = DCGMMEstimator(
            layers=layers, image_shape=data.image_shape, reg_covar=models.REG_COVAR,
            random_state=seed,
        )  # fmt: skip
        spent, nats = 0.0, -np.inf
        for start in range(0, len(order), n_chunk):
            _, seconds = timed(est.partial_fit, data.X_train[order[start : start + n_chunk]])
            spent, nats = spent + seconds, float(est.score(data.X_test))
            if nats >= target:
                break
        yield {"stack": name, "fit_s": spent, "nats": nats, "share": spent / whole}


def of_growth(data, seed):
    images = data.X_train[: steps.N_START].reshape(-1, *data.image_shape)
    for factor in (0.5, 1, 2, 4):
        larger = zoom(images, (1, factor, factor), order=1)
        row = {"side": larger.shape[1], "components": "as planned"}
        yield row | grown(larger, steps.planned("tiles", larger.shape[1:]), seed)
    for factor in (0.25, 0.5, 2):
        layers = [(n, spec.set_params(n_components=int(factor * spec.n_components)))
                  for n, spec in steps.planned("tiles", data.image_shape)]  # fmt: skip
        row = {"side": images.shape[1], "components": f"{factor:g} times as many"}
        yield row | grown(images, layers, seed)


def grown(images, layers, seed):
    est = DCGMMEstimator(
        layers=layers, pixels="tiles", image_shape=images.shape[1:], random_state=seed
    )
    stack, x = steps.started(est, images.reshape(len(images), -1))
    times = steps.medians({"step": steps.step(stack, x), "score": steps.score(stack, x)}, x.device)
    return {"parameters": est.n_parameters_, **{f"{k}_ms": v for k, v in times.items()}}


def of_files(data, seed):
    """Images moved at random, in a file; the peak of memory is that of a process of its own."""
    for n_images in (100_000, 400_000):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.npy"
            write(path, n_images, np.uint8(data.X_train.reshape(-1, *data.image_shape) * 255), seed)
            spawn = multiprocessing.get_context("spawn")
            with spawn.Pool(1) as pool:
                yield pool.apply(one_epoch, (path, seed))


def write(path, n_images, images, seed, n_chunk=10_000):
    rng = np.random.RandomState(seed)
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (n_images, *images.shape[1:]))
    for start in range(0, n_images, n_chunk):
        chunk = images[rng.randint(len(images), size=min(n_chunk, n_images - start))]
        file[start : start + len(chunk)] = np.roll(chunk, rng.randint(-3, 4, size=2), (1, 2))
    file.flush()


def one_epoch(path, seed):
    X = np.load(path, mmap_mode="r")
    est = DCGMMEstimator(layers=SMALL, max_epochs=1, batch_size=500, random_state=seed)
    _, fit_s = timed(est.fit, X)
    _, score_s = timed(est.score_samples, X)
    return {"n_images": len(X), "file_gib": X.nbytes / 2**30, "fit_s": fit_s, "score_s": score_s,
            "memory_gib": peak_mib() / 2**10}  # fmt: skip


def of_processes(data, seed):
    """Two epochs of the same images, shared out among processes."""
    for n_processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            images = (data.X_train, data.X_test, data.image_shape)
            arguments = (n_processes, folder, *images, seed)
            multiprocessing.spawn(one_of_several, arguments, nprocs=n_processes)
            fit_s, nats = np.load(Path(folder) / "found.npy")
        yield {"processes": n_processes, "fit_s": float(fit_s), "nats": float(nats)}


def one_of_several(rank, n_processes, folder, X, X_test, image_shape, seed):
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", store, rank=rank, world_size=n_processes)
    est = DCGMMEstimator(
        10, image_shape=image_shape, pixels="tiles", max_epochs=2, distributed=True,
        random_state=seed,
    )  # fmt: skip
    shard = np.array_split(X, n_processes)[rank]
    distributed.barrier()
    _, fit_s = timed(est.fit, shard)
    if rank == 0:
        np.save(Path(folder) / "found.npy", [fit_s, est.score(X_test)])
    distributed.barrier()
    distributed.destroy_process_group()


def of_compiled(data, seed):
    """Seconds of the first call, which compiles, and milliseconds of the later ones."""
    for name in ("flat 49", "auto, tiles"):
        stack, x = steps.started(steps.estimator(name, data.image_shape, seed), data.X_train)
        for what, route in {"gradients": steps.gradients, "score": steps.score}.items():
            yield {"stack": name, "what": what, **compiled(route(stack, x), x)}


def compiled(route, x):
    torch.compiler.reset()
    # What earlier runs have compiled does not count.
    torch.compiler.config.force_disable_caches = True
    fast = torch.compile(route)
    try:
        _, first_s = timed(fast)
    except Exception as error:  # noqa: BLE001 - what the compiler cannot do is a result
        return {"error": type(error).__name__}
    times = steps.medians({"plain": route, "compiled": fast}, x.device)
    saved = times["plain"] - times["compiled"]
    return {
        "compile_s": first_s,
        **{f"{k}_ms": v for k, v in times.items()},
        # Calls after which compiling has paid.
        "calls_to_pay": round(first_s * 1e3 / saved) if saved > 0 else None,
    }


def peak_mib():
    """The largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


PARTS = {
    "step": of_steps,
    "fit": of_fit,
    "pace": of_pace,
    "growth": of_growth,
    "files": of_files,
    "processes": of_processes,
    "compiled": of_compiled,
}

"""How near samples are to images: Fréchet distance, precision, recall, and what they teach."""

import time

import numpy as np
from sklearn.pipeline import Pipeline

from benchmarks import models
from benchmarks.features import Classifier, frechet_distance, precision_recall
from skdcgmm import DCGMMEstimator

IMAGES = "test images"
MODELS = {IMAGES: None, **models.GENERATIVE}
N_SAMPLES = 10_000
# More than the entries of any table.
ALL = 10**6


def tasks(data, quick):
    return [{"by_class": False}] if quick else [{"by_class": False}, {"by_class": True}]


def measure(data, model, seed, fit_parameters, by_class):
    if by_class:
        yield from taught_by_samples(data, model, seed, fit_parameters)
        return
    classifier = Classifier().fit(data.X_train, data.y_train)
    real = classifier.features(data.X_train)
    if model == IMAGES:
        row = distances(classifier.features(data.X_test), real)
        accuracy = classifier.accuracy(data.X_test, data.y_test)
        yield {"how": "held out", **row, "accuracy": round(accuracy, 4)}
        return
    start = time.perf_counter()
    est = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
    est.fit(data.X_train)
    fit_s = time.perf_counter() - start
    for how in ways(est):
        start = time.perf_counter()
        samples = draw(est, N_SAMPLES, how, seed)
        sample_s = time.perf_counter() - start
        row = distances(classifier.features(samples), real)
        yield {"how": how, **row, "fit_s": round(fit_s, 2), "score_s": round(sample_s, 2)}


def distances(features, real):
    precision, recall = precision_recall(features, real)
    return {
        "frechet": round(frechet_distance(features, real), 3),
        "precision": round(precision, 3),
        "recall": round(recall, 3),
    }


def taught_by_samples(data, model, seed, fit_parameters):
    """Accuracy on test images of a classifier that has only seen samples of each class."""
    if model == IMAGES:
        classifier = Classifier().fit(data.X_train, data.y_train)
        accuracy = classifier.accuracy(data.X_test, data.y_test)
        yield {"how": "training images", "accuracy": round(accuracy, 4)}
        return
    by_way = {}
    for label in range(10):
        est = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
        est.fit(data.X_train[data.y_train == label])
        for how in ways(est):
            by_way.setdefault(how, []).append(draw(est, N_SAMPLES // 10, how, seed))
    y = np.repeat(np.arange(10), N_SAMPLES // 10)
    for how, samples in by_way.items():
        classifier = Classifier().fit(np.concatenate(samples), y)
        yield {"how": how, "accuracy": round(classifier.accuracy(data.X_test, data.y_test), 4)}


def ways(est):
    """The ways to draw from a model: pixel noise, or means; all paths, or the likeliest."""
    if isinstance(est, DCGMMEstimator) and est.objective == "joint":
        return ["draws", "means, all paths", "means"]
    return ["draws"] if isinstance(est, Pipeline) else ["draws", "means"]


def draw(est, n_samples, how, seed):
    temperature = 0 if how.startswith("means") else None
    if isinstance(est, DCGMMEstimator):
        return est.sample(
            n_samples,
            temperature=temperature,
            top_s=ALL if "all paths" in how else None,
            random_state=seed,
        )[0]
    mixture = est[-1] if isinstance(est, Pipeline) else est
    # One stream of random numbers, or samples would repeat those the mixture started from.
    mixture.set_params(random_state=np.random.RandomState(seed))
    drawn, labels = mixture.sample(n_samples)
    if temperature == 0:
        return mixture.means_[labels]
    return est[0].inverse_transform(drawn) if isinstance(est, Pipeline) else drawn

"""Classes from few labels and from all: accuracy on test images, and samples of each class."""

import time

import numpy as np
from sklearn.semi_supervised import SelfTrainingClassifier

from benchmarks import models
from benchmarks.features import Classifier
from skdcgmm import DCGMMClassifier

MODELS = models.CLASSIFICATION
N_SAMPLES = 1000


def tasks(data, quick):
    return [{"labels": n} for n in ("10 a class", "all")]


def measure(data, model, seed, fit_parameters, labels):
    if labels == "all" and model == "SelfTrainingClassifier":
        return  # that is the logistic regression
    y = data.y_train if labels == "all" else few_labels(data.y_train, int(labels.split()[0]), seed)
    clf = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
    known = np.flatnonzero(y >= 0)
    start = time.perf_counter()
    if isinstance(clf, DCGMMClassifier | SelfTrainingClassifier):
        clf.fit(data.X_train, y)
    else:
        clf.fit(data.X_train[known], y[known])
    fit_s = time.perf_counter() - start
    start = time.perf_counter()
    accuracy = clf.score(data.X_test, data.y_test)
    row = {"accuracy": round(float(accuracy), 4)}
    times = {"fit_s": round(fit_s, 2), "score_s": round(time.perf_counter() - start, 2)}
    if model == "DCGMM":
        row |= recognised(clf, data, seed)
    yield row | times


def few_labels(y, n_each, seed):
    """Some labels of each class, -1 elsewhere."""
    rng = np.random.RandomState(seed)
    few = np.full(len(y), -1)
    for label in np.unique(y):
        chosen = rng.choice(np.flatnonzero(y == label), n_each, replace=False)
        few[chosen] = label
    return few


def recognised(clf, data, seed):
    """Mean and least share, over the classes, of samples that another classifier takes for them.

    At temperatures 0 and 1.
    """
    judge = Classifier().fit(data.X_train, data.y_train)
    row = {}
    for temperature in (0, 1):
        shares = []
        for label in clf.classes_:
            images, _ = clf.sample(N_SAMPLES, y=label, temperature=temperature, random_state=seed)
            shares.append(judge.accuracy(images.astype(np.float32), np.full(N_SAMPLES, label)))
        row[f"least_{temperature}"] = round(float(min(shares)), 3)
        row[f"mean_{temperature}"] = round(float(np.mean(shares)), 3)
    return row

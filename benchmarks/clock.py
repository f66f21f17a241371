"""Seconds that a call takes."""

import time


def timed(function, *arguments):
    """What a function returns, and seconds."""
    start = time.perf_counter()
    return function(*arguments), time.perf_counter() - start

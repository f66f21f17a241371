"""Files that are whole or not there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place once it is whole.

    Whoever reads `path` meanwhile sees the old file or the new one. A link stays one: the file that
    it leads to is replaced.
    """
    path = target(path)
    # Its length does not depend on that of the name, which may be the longest possible.
    beside = path.with_name(f"skdcgmm-{uuid.uuid4().hex}")
    try:
        yield beside
        with beside.open("r+b") as file:  # some systems sync only what may be written
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def target(path: str | os.PathLike[str]) -> Path:
    """The file that a path leads to, through links if there are some."""
    return Path(os.path.realpath(path))

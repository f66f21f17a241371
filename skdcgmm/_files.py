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

    Whoever reads `path` meanwhile sees the old file or the new one.
    """
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        yield beside
        with beside.open("r+b") as file:  # some systems sync only what may be written
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)

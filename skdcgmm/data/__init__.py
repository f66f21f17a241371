"""Images, from rows in memory, in files or in streams to batches of tensors."""

from skdcgmm.data.images import (
    Batch,
    Epochs,
    FloatArray,
    HeldOut,
    Images,
    IntArray,
    as_array,
    make_generator,
    sample_size,
)  # fmt: skip
from skdcgmm.data.stream import Stream, is_stream

Data = Images | Stream

__all__ = [
    "Batch", "Data", "Epochs", "FloatArray", "HeldOut", "Images", "IntArray", "Stream", "as_array",
    "is_stream", "make_generator", "sample_size",
]  # fmt: skip

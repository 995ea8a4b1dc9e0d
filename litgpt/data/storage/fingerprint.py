"""What a resumed run compares to know its data again: a hash of the content, cheap for data of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litgpt.data.storage.token_cache import content_hash

if TYPE_CHECKING:
    import numpy as np

WHOLE = 1 << 26
"""Bytes of an array up to which all of it is hashed."""
PIECES = 1 << 10
"""Pieces of a larger one that are, at equal distances."""
SAMPLES = 64
"""Samples of a data set of the user's own that are read."""


def data_fingerprint(dataset: Any) -> str | None:
    """A hash of what is in a data set; None where that can't be told, as samples change from one reading to another."""
    own = getattr(dataset, "fingerprint", None)
    if own is not None or hasattr(dataset, "epoch"):
        return own
    count = len(dataset)
    places = sorted({place * (count - 1) // (SAMPLES - 1) for place in range(SAMPLES)}) if count else []
    first, again = (content_hash(*(_sample(dataset[place]) for place in places)) for _ in range(2))
    return first if first == again else None


def _sample(sample: Any) -> bytes:
    return repr([sample[key].tolist() for key in ("input_ids", "labels")]).encode()


def array_hash(array: np.ndarray) -> bytes:
    """A hash of an array; of a very large one, of its size and of pieces all through it."""
    import numpy as np

    flat = array.reshape(-1)
    size = flat.itemsize * len(flat)
    if size <= WHOLE:
        return content_hash(np.ascontiguousarray(flat).tobytes()).encode()
    length = WHOLE // flat.itemsize // PIECES
    starts = np.linspace(0, len(flat) - length, PIECES, dtype=np.int64)
    return content_hash(str(size).encode(), *(flat[at : at + length].tobytes() for at in starts)).encode()

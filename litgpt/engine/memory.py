"""Whether the KV cache fits into the memory that is free, and how much of that may be spent on speed."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable

import torch

from litgpt.checkpoint.atomic import gigabytes
from litgpt.errors import LitGPTError
from litgpt.runtime import free_memory


def headroom_bytes(device: torch.device) -> int:
    """Bytes on `device` that may be spent on speed: a quarter of those free, none where the system doesn't tell."""
    return (free_memory(device) or 0) // 4


def check_cache_fits(needed: int, slots: int, length: int, devices: Iterable[torch.device]) -> None:
    """Raises a LitGPTError when a KV cache of `slots` sequences of `length` tokens, which takes `needed` bytes, is more
    than what is free on `devices` together."""
    places = set(devices)
    free = _free_on(places)
    if free is not None and needed > free:
        raise LitGPTError(
            f"The KV cache for {slots} x {length} tokens takes {gigabytes(needed)} and {gigabytes(max(free, 0))} are"
            f" free on {', '.join(sorted(map(str, places)))}; ask for fewer tokens or fewer requests at a time."
        )


def longest_fit(nbytes: Callable[[int], int], longest: int, slots: int, devices: Iterable[torch.device]) -> int:
    """The tokens a sequence can have, up to `longest`, if `slots` take half of the free memory.

    Args:
        nbytes: What the caches take if a sequence has so many tokens.
        longest: The model's context.
        slots: Sequences.
        devices: Where the caches are.

    Raises:
        LitGPTError: Not even one token a slot fits.
    """
    places = set(devices)
    free = _free_on(places)
    if free is None:
        return longest
    length = max(1, bisect(range(1, longest + 1), free // 2, key=nbytes))
    check_cache_fits(nbytes(length), slots, length, places)
    return length


def _free_on(devices: Iterable[torch.device]) -> int | None:
    free = [free_memory(device) for device in devices]
    return None if None in free else sum(n for n in free if n is not None)

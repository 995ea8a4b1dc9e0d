"""Where a model's working memory goes, and whether it fits there."""

from __future__ import annotations

import os
from bisect import bisect
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from litgpt.checkpoint.atomic import gigabytes
from litgpt.errors import LitGPTError

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on `device`; None where the system doesn't tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    known = [found for found in (_available_memory(), _left_in_group()) if found is not None]
    return min(known, default=None)


def headroom_bytes(device: torch.device) -> int:
    """Bytes on `device` that may be spent on speed: a quarter of those free, none where the system doesn't tell."""
    return (free_bytes(device) or 0) // 4


def _available_memory() -> int | None:
    if MEMINFO.is_file():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _left_in_group() -> int | None:
    """What a container's limit leaves; pages of files can be dropped, so they don't count as used."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        pages = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + int(pages.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


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


def longest_fit(
    nbytes: Callable[[int], int], longest: int, slots: int, devices: Iterable[torch.device], share: float = 0.5
) -> int:
    """The tokens a sequence can have, up to `longest`, if `slots` take a `share` of the free memory.

    Args:
        nbytes: What the caches take if a sequence has so many tokens.
        longest: The model's context.
        slots: Sequences.
        devices: Where the caches are.
        share: Of the free memory.

    Raises:
        LitGPTError: Not even one token a slot fits.
    """
    places = set(devices)
    free = _free_on(places)
    if free is None:
        return longest
    length = max(1, bisect(range(1, longest + 1), free * share, key=nbytes))
    check_cache_fits(nbytes(length), slots, length, places)
    return length


def _free_on(devices: Iterable[torch.device]) -> int | None:
    free = [free_bytes(device) for device in devices]
    return None if None in free else sum(n for n in free if n is not None)

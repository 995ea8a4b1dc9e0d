"""Where a model's working memory goes, and whether it fits there."""

from __future__ import annotations

import os
from bisect import bisect
from pathlib import Path

import torch

from litgpt.cache import KVCache
from litgpt.checkpoint.atomic import gigabytes
from litgpt.config import Config
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


def spare_bytes(device: torch.device) -> int:
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


def check_cache_fits(
    config: Config,
    slots: int,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
    at_once: int | None = None,
) -> None:
    """Raises a LitGPTError when there is no room for a KV cache of `slots` sequences of `length` tokens."""
    needed, free = KVCache.nbytes(config, slots, length, dtype, at_once=at_once), free_bytes(device)
    if free is not None and needed > free:
        raise LitGPTError(
            f"The KV cache for {slots} x {length} tokens takes {gigabytes(needed)} and {gigabytes(max(free, 0))}"
            f" are free on {device}; ask for fewer tokens or fewer requests at a time."
        )


def longest_fit(
    config: Config,
    slots: int,
    dtype: torch.dtype,
    device: torch.device,
    at_once: int | None = None,
    share: float = 0.5,
) -> int:
    """The tokens a sequence can have, up to the model's context, if `slots` take a `share` of the free memory.

    Raises:
        LitGPTError: Not even one token a slot fits.
    """
    free = free_bytes(device)
    if free is None:
        return config.block_size
    length = bisect(
        range(1, config.block_size + 1),
        free * share,
        key=lambda length: KVCache.nbytes(config, slots, length, dtype, at_once=at_once),
    )
    check_cache_fits(config, slots, max(1, length), dtype, device, at_once)
    return max(1, length)

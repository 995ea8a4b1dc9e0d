"""Speakers whose model is on several devices or has a smaller one beside it, and whose processes speak as one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from litgpt.errors import LitGPTError
from litgpt.generate.engine import Engine
from litgpt.generate.sequential import spread_layers
from litgpt.generate.speaker import CHUNK, Speaker
from litgpt.generate.speculative import SpeculativeEngine
from litgpt.generate.tensor_parallel import split_over_ranks
from litgpt.model import GPT
from litgpt.runtime import default_precision, join_processes, pick_device


def spread_speaker(
    checkpoint_dir: str | Path, precision: str | None = None, quantize: str | None = None, compile: bool = False
) -> Speaker:
    """A speaker whose layers are spread over all GPUs that there are.

    Raises:
        LitGPTError: As `Speaker.load`; or `compile` with several devices.
    """
    place = pick_device()
    devices = [torch.device(place.type, number) for number in range(_count(place))] if place.type == "cuda" else [place]
    if len(devices) == 1:
        return Speaker.load(checkpoint_dir, precision=precision, quantize=quantize, compile=compile)
    _refuse_compilation(compile)
    loaded_on = "cuda" if quantize is not None else "cpu"  # weights are quantized where they are used
    speaker = Speaker.load(
        checkpoint_dir, loaded_on, precision or default_precision(training=False, device=place), quantize
    )
    spread_layers(speaker.model, devices[: speaker.model.config.n_layer])
    return speaker


def shared_speaker(
    checkpoint_dir: str | Path, precision: str | None = None, quantize: str | None = None, compile: bool = False
) -> Speaker:
    """A speaker whose every layer is split over all processes.

    Raises:
        LitGPTError: As `Speaker.load`; the processes can't share this model, or what is asked for is for one alone.
    """
    place, mesh = join_processes()
    if mesh is None:
        return Speaker.load(checkpoint_dir, precision=precision, quantize=quantize, compile=compile)
    _refuse_compilation(compile)
    if quantize is not None:
        raise LitGPTError(
            f"--quantize {quantize} is for one device, and here are {mesh.size()}; leave it out, or use"
            " generate_sequentially."
        )
    speaker = Speaker.load(checkpoint_dir, "cpu", precision or default_precision(training=False, device=place))
    split_over_ranks(speaker.model, mesh)
    return replace(speaker, model=speaker.model.to(place))


@dataclass
class DraftedSpeaker(Speaker):
    """A speaker that a smaller model drafts for."""

    draft: GPT | None = None
    k: int = 3
    """Tokens that are drafted at a time."""
    engines: list[SpeculativeEngine] = field(default_factory=list)
    """Those that it made."""

    @classmethod
    def of(cls, speaker: Speaker, draft: Speaker, k: int) -> DraftedSpeaker:
        """What `speaker` says, drafted by `draft`."""
        own = {name.name: getattr(speaker, name.name) for name in fields(Speaker)}
        return cls(**own, draft=draft.model, k=k)

    def new_engine(self, slots: int, length: int) -> Engine:
        """As of any speaker."""
        assert self.draft is not None
        self.engines.append(SpeculativeEngine(self.model, self.draft, self.k, slots, length, self.dtype, CHUNK))
        return self.engines[-1]

    @property
    def acceptance(self) -> str:
        """How good the drafts were."""
        drafted = sum(engine.n_drafted for engine in self.engines)
        accepted = sum(engine.n_accepted for engine in self.engines)
        return f"Acceptance rate: {accepted / max(1, drafted):.0%} of {drafted} drafted tokens"


@contextmanager
def first_rank_speaks() -> Iterator[None]:
    """While inside, what the other processes print goes nowhere; they say what the first one says."""
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
    with open(os.devnull, "w") as nowhere:
        kept = sys.stdout, sys.stderr
        if rank:
            sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = kept
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _count(place: torch.device) -> int:
    return torch.cuda.device_count() if place.type == "cuda" else 1


def _refuse_compilation(compile: bool) -> None:
    if compile:
        raise LitGPTError("--compile true is for one device; leave it out.")

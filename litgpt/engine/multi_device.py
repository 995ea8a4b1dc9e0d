"""Speakers whose model is on several devices or has a smaller one beside it, and whose processes speak as one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import torch

from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import CHUNK, InferenceModel
from litgpt.engine.speculative import SpeculativeEngine
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.runtime import default_precision, join_processes, leave_processes, local_devices, pick_device

Strategy = Literal["sequential", "tensor_parallel"]


@dataclass(frozen=True)
class Placement:
    """Where a model goes: to one device, its layers to several, or each layer to several processes."""

    devices: list[torch.device]
    """Of this process."""
    processes: int = 1
    """That share every layer."""

    @classmethod
    def of(cls, place: torch.device, devices: int | Literal["auto"], strategy: Strategy | None) -> Placement:
        """What a user asks for.

        Args:
            place: The kind of device.
            devices: How many, at most one a layer; `auto`: all that there are, or one without a strategy.
            strategy: How several share a model.

        Raises:
            LitGPTError: There are not so many devices, or several and no strategy.
        """
        if strategy == "tensor_parallel":
            own, processes = join_processes(place, devices)
            return cls([own], processes)
        if strategy == "sequential":
            return cls(local_devices(place, devices))
        if strategy is not None:
            raise LitGPTError(f"generate_strategy is {strategy!r}; it must be 'sequential' or 'tensor_parallel'.")
        if devices not in (1, "auto"):
            raise LitGPTError(
                f"{devices} devices need a generate_strategy: 'sequential' or 'tensor_parallel'; or leave out devices."
            )
        return cls([place])

    @property
    def alone(self) -> bool:
        """Whether it is one device of one process."""
        return len(self.devices) == 1 and self.processes == 1

    def loads_on(self, quantize: str | None) -> torch.device:
        """Where the weights are read to, before `apply`: they are quantized where they are used."""
        if self.processes > 1 and quantize is not None:
            raise LitGPTError(
                f"quantize is {quantize}, which {self.processes} processes can't share; leave it out, or spread the"
                " layers over devices (generate_sequentially)."
            )
        return self.devices[0] if self.alone or quantize is not None else torch.device("cpu")

    def apply(self, model: GPT) -> GPT:
        """Brings a model there; gives it back.

        Raises:
            LitGPTError: It can't be shared by so many.
        """
        if self.processes > 1:
            from litgpt.engine.tensor_parallel import split_over_ranks

            split_over_ranks(model)
            return model.to(self.devices[0])
        if len(self.devices) > 1:
            from litgpt.engine.sequential import spread_layers

            spread_layers(model, self.devices[: model.config.n_layer])
        return model


def placed_model(
    checkpoint_dir: str | Path,
    strategy: Strategy,
    precision: str | None = None,
    quantize: str | None = None,
    compile: bool = False,
) -> InferenceModel:
    """A speaker whose model is on all GPUs that there are, or shared by all processes.

    Raises:
        LitGPTError: As `InferenceModel.load`; or they can't share this model, or what is asked for is for one device.
    """
    place = pick_device()
    placement = Placement.of(place, "auto", strategy)
    if placement.alone:
        return InferenceModel.load(checkpoint_dir, precision=precision, quantize=quantize, compile=compile)
    if compile:
        raise LitGPTError("--compile true is for one device; leave it out.")
    precision = precision or default_precision(training=False, device=place)
    inference_model = InferenceModel.load(checkpoint_dir, str(placement.loads_on(quantize)), precision, quantize)
    return replace(inference_model, model=placement.apply(inference_model.model))


@dataclass
class DraftedModel(InferenceModel):
    """A speaker that a smaller model drafts for."""

    draft: GPT | None = None
    k: int = 3
    """Tokens that are drafted at a time."""
    engines: list[SpeculativeEngine] = field(default_factory=list)
    """Those that it made."""

    @classmethod
    def of(cls, inference_model: InferenceModel, draft: InferenceModel, k: int) -> DraftedModel:
        """What `inference_model` says, drafted by `draft`."""
        own = {name.name: getattr(inference_model, name.name) for name in fields(InferenceModel)}
        return cls(**own, draft=draft.model, k=k)

    def new_engine(self, slots: int, length: int) -> Engine:
        """As of any speaker."""
        assert self.draft is not None
        self.engines.append(SpeculativeEngine(self.model, self.draft, self.k, slots, length, self.dtype, CHUNK))
        return self.engines[-1]

    def cache_nbytes(self, slots: int, length: int) -> int:
        """As of any speaker, with the draft's."""
        assert self.draft is not None
        draft = InferenceModel(self.draft, self.tokenizer, self.style, self.dtype)
        return super().cache_nbytes(slots, length) + draft.cache_nbytes(slots, length)

    @property
    def acceptance(self) -> str:
        """How good the drafts were."""
        drafted = sum(engine.n_drafted for engine in self.engines)
        accepted = sum(engine.n_accepted for engine in self.engines)
        return f"Acceptance rate: {accepted / max(1, drafted):.0%} of {drafted} drafted tokens"


@contextmanager
def first_rank_answers() -> Iterator[None]:
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
            leave_processes()

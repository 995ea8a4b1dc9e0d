"""The log-probabilities that a reference model gives to answers, computed once before training and kept on disk.

A file is named by a hash of all that decides what is in it: the weights, what was learned beside them, the precision,
and the samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litgpt.checkpoint.atomic import atomic_file
from litgpt.checkpoint.reader import load_pth
from litgpt.checkpoint.writer import save_state
from litgpt.data.storage.fingerprint import data_fingerprint
from litgpt.data.storage.token_cache import content_hash
from litgpt.errors import LitGPTError
from litgpt.model.sharding import is_sharded
from litgpt.training.batching.batches import Batching
from litgpt.training.batching.packing import GIVEN
from litgpt.training.preference.losses import PreferenceLoss
from litgpt.training.preference.objective import Preferences

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from litgpt.model import GPT
    from litgpt.training.run import Samples

VERSION = b"log-probabilities 1"
"""Changes whenever the same inputs are to get other numbers."""
NAME = "log_probs"


class WithReference:
    """Samples of preferences that also hold the log-probabilities of the reference, at the end of `given`."""

    def __init__(self, dataset: Samples, log_probs: Tensor) -> None:
        self.dataset, self.log_probs = dataset, log_probs

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        given = [sample[GIVEN]] if GIVEN in sample else []
        return {**sample, GIVEN: torch.cat([*given, self.log_probs[index]])}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)


def with_reference(
    fabric: Fabric, model: GPT, dataset: Samples, batching: Batching, start: tuple[str, ...], folder: Path | None
) -> WithReference:
    """The data set with the log-probabilities that `model`, as it is now, gives to the answers.

    Args:
        fabric: All ranks call this together.
        model: On any device; moves to the fabric's.
        dataset: Of preferences.
        batching: How micro-batches are made.
        start: What tells the model as it is now from any other.
        folder: Where files are kept; None: nowhere.

    Raises:
        LitGPTError: The file that is there is damaged, or none can be written.
    """
    content = data_fingerprint(dataset)
    key = content_hash(VERSION, *(part.encode() for part in (*start, content or "")))
    file = None if folder is None or content is None else folder / NAME / f"{key}.pth"
    known = _read(file, len(dataset)) if file is not None and fabric.is_global_zero and file.is_file() else None
    known = fabric.broadcast(known)
    if known is None:
        fabric.print(f"Computing what the reference gives to the answers of {len(dataset):,} samples, once.")
        known = log_probs_of(fabric, model, dataset, batching)
        if file is not None and fabric.is_global_zero:
            with atomic_file(file) as temporary:
                save_state(temporary, {NAME: known})
    return WithReference(dataset, known)


def _read(file: Path, count: int) -> Tensor:
    found: Mapping[str, Tensor] = load_pth(file)
    log_probs = found.get(NAME)
    if log_probs is None or log_probs.shape != (count, 2) or log_probs.dtype != torch.float32:
        raise LitGPTError(f"{file} holds no log-probabilities of these samples; delete it, it is made again.")
    return log_probs.clone()


@torch.no_grad()
def log_probs_of(fabric: Fabric, model: GPT, dataset: Samples, batching: Batching) -> Tensor:
    """The sums over the answers of each sample's two sequences, `(S, 2)` float32, on the CPU; every rank computes its
    share."""
    model.to(fabric.device).eval()
    objective = Preferences(model, PreferenceLoss("dpo"))
    found = torch.zeros(len(dataset), 2, device=fabric.device)
    size = batching.micro_batch_size * fabric.world_size * 8
    for start in range(0, len(dataset), size):
        batch = batching.cut([dataset[at] for at in range(start, min(start + size, len(dataset)))], fabric.world_size)
        chosen = [of_ranks[fabric.global_rank] for of_ranks in batch.plan]
        for indices, micro_batch in zip(chosen, batch.of_rank(fabric.global_rank), strict=True):
            if not indices and not is_sharded(model):  # whose ranks go through it together
                continue
            inputs, targets = fabric.to_device((micro_batch.inputs, micro_batch.targets))
            with fabric.autocast():
                sums, _ = objective.log_probs(inputs, targets, micro_batch.lengths)
            if indices:
                found[[start + index for index in indices]] = sums.view(-1, 2).float()
    if fabric.world_size > 1:
        found = fabric.all_reduce(found, reduce_op="sum")
    return found.cpu()

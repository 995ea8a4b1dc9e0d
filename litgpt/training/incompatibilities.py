"""Options that exclude each other, each pair refused in one sentence before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from litgpt.args import TrainArgs
from litgpt.errors import LitGPTError


@dataclass(frozen=True)
class TrainingSetup:
    """What decides whether options go together."""

    train: TrainArgs
    precision: str
    device: str
    """`cpu`, `cuda`, `mps`."""
    ranks: int
    sharded: bool = False
    """Whether the model is shared out over them."""


def _in_backward(clash: Callable[[TrainingSetup], bool]) -> Callable[[TrainingSetup], bool]:
    return lambda setup: setup.train.optimizer_in_backward and clash(setup)


INCOMPATIBILITIES: dict[str, tuple[Callable[[TrainingSetup], bool], str]] = {
    "optimizer in backward, accumulation": (
        _in_backward(lambda setup: setup.train.global_batch_size > setup.train.micro_batch_size),
        "train.optimizer_in_backward steps in the backward pass of one micro-batch, so a step can't have several: set "
        "train.micro_batch_size to train.global_batch_size, or leave it out.",
    ),
    "optimizer in backward, clipping": (
        _in_backward(lambda setup: bool(setup.train.max_norm)),
        "train.optimizer_in_backward frees gradients before their norm is known, by which train.max_norm scales them: "
        "set train.max_norm to 0, or leave it out.",
    ),
    "optimizer in backward, guard": (
        _in_backward(lambda setup: setup.train.guard is not None),
        "train.optimizer_in_backward has stepped before train.guard could look at the gradients: leave one of them "
        "out.",
    ),
    "optimizer in backward, 16-mixed": (
        _in_backward(lambda setup: setup.precision == "16-mixed"),
        "train.optimizer_in_backward steps before 16-mixed knows whether the scaled gradients overflowed: use "
        "bf16-mixed, or leave it out.",
    ),
    "optimizer in backward, ranks": (
        _in_backward(lambda setup: setup.ranks > 1),
        "train.optimizer_in_backward steps before gradients are averaged over devices: use one device, or leave it "
        "out.",
    ),
    "guard, 16-mixed": (
        lambda setup: setup.train.guard is not None and setup.precision == "16-mixed",
        "16-mixed skips steps with infinite gradients by itself, to find its scale: leave train.guard out, or use "
        "bf16-mixed.",
    ),
    "activation offload, no GPU": (
        lambda setup: setup.train.activation_offload and setup.device == "cpu",
        "train.activation_offload keeps activations in the host's memory, and this run is on the CPU, where they are "
        "anyway: leave it out, or use train.activation_checkpointing.",
    ),
    "activation offload, FSDP": (
        lambda setup: setup.train.activation_offload and setup.sharded and setup.device != "cpu",
        "train.activation_offload can't tell activations from gathered weights: leave it out with --strategy fsdp, or "
        "use train.activation_checkpointing.",
    ),
    "document masks, padding": (
        lambda setup: setup.train.document_masks and not setup.train.packing,
        "train.document_masks is a property of packed batches: leave out train.packing false, or the masks.",
    ),
}
"""Name of a pair → whether a setup has it, and the sentence of the error."""


def check_incompatibilities(setup: TrainingSetup) -> None:
    """Raises a LitGPTError for the first pair of options that exclude each other."""
    for clashes, sentence in INCOMPATIBILITIES.values():
        if clashes(setup):
            raise LitGPTError(sentence)


def check_finetuning(train: TrainArgs) -> None:
    """Raises a LitGPTError for an option that is pretraining's alone."""
    if train.document_masks:
        raise LitGPTError(
            "train.document_masks is for pretraining: in finetuning attention stays inside each sample anyway; leave "
            "it out."
        )
    if train.tie_embeddings is not None:
        raise LitGPTError("train.tie_embeddings is for pretraining: a finished model is tied or not; leave it out.")

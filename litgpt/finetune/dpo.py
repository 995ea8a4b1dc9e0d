"""`litgpt finetune_dpo`: trains a model to prefer some answers to others, by any method."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from litgpt.args import EvalArgs, TrainArgs, inherits
from litgpt.finetune.lora import setup as lora

OPTIMIZER: dict[str, Any] = {"lr": 1e-5}
"""Of AdamW: rates that suit cross-entropy take a model too far from its reference."""


@inherits(lora)
def setup(
    checkpoint_dir: Path,
    method: Literal["lora", "full", "adapter", "adapter_v2"] = "lora",
    loss: Literal["dpo", "ipo", "simpo", "orpo", "kto"] = "dpo",
    beta: float | None = None,
    label_smoothing: float = 0.0,
    length_normalization: bool | None = None,
    simpo_gamma: float | None = None,
    desirable_weight: float | None = None,
    undesirable_weight: float | None = None,
    sft_weight: float | None = None,
    reference: Literal["auto", "adapter_off", "precomputed"] = "auto",
    out_dir: Path = Path("out/finetune/dpo"),
    lora_dropout: float = 0.0,
    train: TrainArgs = TrainArgs(
        save_interval=1000,
        log_interval=1,
        global_batch_size=16,
        micro_batch_size=1,
        lr_warmup_steps=10,
        epochs=1,
        min_lr=0.0,
    ),
    eval: EvalArgs = EvalArgs(interval=100, max_new_tokens=100, max_iters=100, initial_validation=True),
    optimizer: str | dict[str, Any] = OPTIMIZER,
    **inherited: Any,
) -> None:
    """Train a model on preferences: pairs of a chosen and a rejected answer, or single answers with a label.

    Args:
        method: How the model is trained; the lora_* flags are LoRA's.
        loss: What is minimised: DPO's, IPO's, SimPO's or ORPO's loss of pairs, or KTO's of single answers, which takes
            pairs as well. SimPO and ORPO need no reference.
        beta: How strongly the model is held to the reference, or, without one, how much a difference counts. Unset:
            0.1, and 2 for simpo.
        label_smoothing: Share of the pairs, 0 up to 0.5, that are taken to be the wrong way round (dpo, simpo).
        length_normalization: Compare the mean log-probability of an answer's tokens, not their sum. Unset: as the
            loss is defined, true for ipo, simpo and orpo.
        simpo_gamma: By how much simpo wants rewards to differ. Unset: 0.5.
        desirable_weight: Weight of kto's wanted answers. Unset: 1.
        undesirable_weight: Weight of kto's unwanted ones. Unset: 1.
        sft_weight: Add so many times the cross-entropy of the chosen answers. Unset: 0, and 1 for orpo.
        reference: The reference is the model without what LoRA adds (adapter_off), or its log-probabilities are
            computed once before training and kept on disk (precomputed); auto: the first where it is exact.
        data: What to learn from: Preferences.
        optimizer: A class of torch.optim by name, or class_path and init_args. Its arguments are flags too:
            --optimizer.lr (AdamW's default here: 1e-5), --optimizer.weight_decay, --optimizer.betas and so on.
        lora_dropout: Share of an update's input that is dropped in training; it makes log-probabilities noisy.

    Example:
        litgpt finetune_dpo HuggingFaceTB/SmolLM2-135M-Instruct --data Preferences --data.path my_pairs.jsonl
    """
    given = dict(locals())
    from litgpt.finetune.methods import finetune_by_method
    from litgpt.finetune.preferences import PreferenceArguments
    from litgpt.training.preference.losses import preference_loss

    finetune_by_method(setup, given, PreferenceArguments, preference=preference_loss)

"""`litgpt finetune_grpo`: trains a model by rewards of its own answers, by any method."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from litgpt.args import EvalArgs, TrainArgs, inherits
from litgpt.finetune.lora import setup as lora

OPTIMIZER: dict[str, Any] = {"lr": 1e-5}


@inherits(lora)
def setup(
    checkpoint_dir: Path,
    reward: list[str] | str | None = None,
    reward_weights: list[float] | None = None,
    method: Literal["lora", "full", "adapter", "adapter_v2"] = "lora",
    loss: Literal["grpo", "dr_grpo", "dapo", "rloo"] = "grpo",
    group_size: int = 8,
    updates: int = 1,
    clip: float | None = None,
    clip_high: float | None = None,
    beta: float = 0.0,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    mask_truncated: bool = False,
    environment: str | None = None,
    max_turns: int = 1,
    slots: int = 16,
    deterministic: bool = False,
    out_dir: Path = Path("out/finetune/grpo"),
    lora_dropout: float = 0.0,
    train: TrainArgs = TrainArgs(
        save_interval=100,
        log_interval=1,
        global_batch_size=8,
        micro_batch_size=1,
        lr_warmup_steps=0,
        epochs=1,
        min_lr=0.0,
    ),
    eval: EvalArgs = EvalArgs(interval=50, max_new_tokens=None, max_iters=64, initial_validation=True),
    optimizer: str | dict[str, Any] = OPTIMIZER,
    **inherited: Any,
) -> None:
    """Reinforcement learning: train a model by the rewards of its own answers (GRPO, Dr. GRPO, DAPO, RLOO).

    Samples are prompts: in a step, train.global_batch_size of them get group_size answers each, which the engine draws
    from the very weights that train; train.micro_batch_size is of answers.

    Args:
        checkpoint_dir: Folder of the model to start from, LitGPT's or Hugging Face's.
        reward: What answers are worth, one or several: FILE.py:FUNCTION, called with prompts, completions and the
            columns of the data, as lists, by name; or exact_match, regex:PATTERN, json_schema:FILE, code, or
            reward_model:FOLDER, a Hugging Face model that scores texts.
        reward_weights: What each of several rewards counts. Unset: 1.
        method: How the model is trained; the lora_* flags are LoRA's.
        loss: How advantages are made and summed up.
        group_size: Answers to a prompt, which are compared with each other.
        updates: Optimizer steps that learn from the same answers.
        clip: By how much an answer may become less likely than it was before it no longer counts. Unset: 0.2.
        clip_high: By how much it may become more likely. Unset: as clip; 0.28 for dapo.
        beta: How strongly the model is held to the one that training starts from; 0 leaves it free.
        max_new_tokens: Of an answer, or of each of several in a talk.
        temperature: Answers are drawn at.
        mask_truncated: Learn nothing from answers that were cut off.
        environment: FILE.py:NAME, a function or a class with __call__: gets prompt, completion and the columns of the
            row, and returns what the model is to read next (a tool's output, say), or None at the end.
        max_turns: Answers in one talk with the environment, at most.
        slots: Answers that are drawn at the same time.
        deterministic: Draw an answer as if it were alone, to the bit; slower.
        data: What to ask: Prompts.
        optimizer: A class of torch.optim by name, or class_path and init_args. Its arguments are flags too:
            --optimizer.lr (AdamW's default here: 1e-5), --optimizer.weight_decay, --optimizer.betas and so on.
        lora_dropout: Share of an update's input that is dropped in training; it makes ratios noisy.

    Example:
        litgpt finetune_grpo HuggingFaceTB/SmolLM2-135M-Instruct --reward exact_match --data Prompts \
--data.path my_questions.jsonl
    """
    given = dict(locals())
    from litgpt.finetune.methods import finetune_by_method
    from litgpt.finetune.policy.arguments import PolicyArguments
    from litgpt.training.policy.losses import policy_loss

    finetune_by_method(setup, given, PolicyArguments, policy=policy_loss)

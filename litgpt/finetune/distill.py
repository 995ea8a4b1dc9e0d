"""`litgpt finetune_distill`: trains a model to say what a teacher would, by any method."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from litgpt.args import EvalArgs, Quantization, TrainArgs, inherits
from litgpt.finetune.lora import setup as lora

OPTIMIZER: dict[str, Any] = {"lr": 1e-4}


@inherits(lora)
def setup(
    checkpoint_dir: Path,
    teacher: str = "",
    method: Literal["full", "lora", "adapter", "adapter_v2"] = "full",
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl",
    alpha: float = 0.5,
    temperature: float = 1.0,
    jsd_beta: float | None = None,
    on_policy: float = 0.0,
    max_new_tokens: int = 128,
    sampling_temperature: float = 1.0,
    teacher_quantize: Quantization | None = None,
    teacher_name: str | None = None,
    api_key: str | None = None,
    top_k: int = 20,
    out_dir: Path = Path("out/finetune/distill"),
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
    loss: Literal["cross_entropy"] = "cross_entropy",
    **inherited: Any,
) -> None:
    """Distill: train a student on a teacher's probabilities of all next tokens, not on the one that came next alone.

    Args:
        checkpoint_dir: Folder of the student, LitGPT's or Hugging Face's.
        teacher: A model's folder or its name on the hub; a folder of `litgpt distill prepare`; or the address of a
            server with OpenAI's completions, http://.... Of the student's vocabulary.
        method: How the student is trained; the lora_* flags are LoRA's.
        divergence: How far apart two distributions are: forward_kl (the student covers what the teacher may say),
            reverse_kl (it says only what the teacher may), or jsd, in between.
        alpha: Share of the divergence in the loss, 0 to 1; the rest is cross-entropy of the data.
        temperature: Above 1, what a teacher finds unlikely counts more; of both distributions.
        jsd_beta: The teacher's share of jsd's mixture. Unset: 0.5.
        on_policy: Share of the samples whose answers the student itself makes, and the teacher judges; 0 to 1.
        max_new_tokens: Of an answer of on_policy.
        sampling_temperature: Its answers are drawn at.
        teacher_quantize: Keep the teacher's weights in 4 or 8 bits.
        teacher_name: Of a server: which of its models. Unset: the first that it lists.
        api_key: Of a server that asks for one.
        top_k: Of a server: how many best tokens it gives, at most 20; all others count as one.
        loss: Cross-entropy is what is mixed with the divergence.
        optimizer: A class of torch.optim by name, or class_path and init_args. Its arguments are flags too:
            --optimizer.lr (AdamW's default here: 1e-4), --optimizer.weight_decay, --optimizer.betas and so on.
        lora_dropout: Share of an update's input that is dropped in training.

    Example:
        litgpt finetune_distill HuggingFaceTB/SmolLM2-135M-Instruct --teacher HuggingFaceTB/SmolLM2-1.7B-Instruct \
--data Conversations --data.path my_data.jsonl
    """
    given = dict(locals())
    from litgpt.errors import UsageError
    from litgpt.finetune.distillation.arguments import DistillArguments
    from litgpt.finetune.methods import finetune_by_method
    from litgpt.training.distill.divergences import distillation_loss

    if not teacher:
        raise UsageError(
            "Give --teacher: a model's folder, a folder of `litgpt distill prepare`, or a server's address."
        )
    if loss != "cross_entropy":
        raise UsageError("--loss is cross_entropy with finetune_distill; leave it out.")
    finetune_by_method(setup, given, DistillArguments, distillation=distillation_loss)

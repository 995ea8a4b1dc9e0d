"""`litgpt distill prepare`: writes down, once, what a teacher holds likely after every token of the data."""

from __future__ import annotations

from pathlib import Path

from litgpt.args import Quantization
from litgpt.data import DataModule


def prepare(
    checkpoint_dir: Path,
    teacher: str,
    data: DataModule | None = None,
    out_dir: Path = Path("out/distill"),
    top_k: int | None = None,
    temperature: float = 1.0,
    max_seq_length: int | None = None,
    micro_batch_size: int = 8,
    precision: str | None = None,
    quantize: Quantization | None = None,
    teacher_name: str | None = None,
    api_key: str | None = None,
    access_token: str | None = None,
) -> None:
    """Write a teacher's most likely tokens for all of the data, for `finetune_distill --teacher OUT_DIR`.

    A run that was stopped goes on where it was; the files are bound to the teacher's weights and to the samples.

    Args:
        checkpoint_dir: Folder of the student, whose tokenizer and prompt style the samples are made with.
        teacher: A model's folder or its name on the hub; or the address of a server with OpenAI's completions.
        data: What will be learned from, with the flags of the finetuning commands. Unset: Alpaca, as there.
        out_dir: Folder for the files.
        top_k: How many tokens to keep of each distribution; all others count as one. Unset: 64, and 20 of a server.
        temperature: As the training will have it.
        max_seq_length: Tokens of a sample at most, as train.max_seq_length. Unset: the student's context.
        micro_batch_size: Samples that go through the teacher together.
        precision: Arithmetic of the teacher: 32-true, bf16-true.
        quantize: Keep the teacher's weights in 4 or 8 bits.
        teacher_name: Of a server: which of its models. Unset: the first that it lists.
        api_key: Of a server that asks for one.
        access_token: For checkpoints on the hub that ask for one.

    Example:
        litgpt distill prepare HuggingFaceTB/SmolLM2-135M-Instruct HuggingFaceTB/SmolLM2-1.7B-Instruct \
--data Conversations --data.path my_data.jsonl
    """
    given = dict(locals())
    from litgpt.finetune.distillation.preparation import Preparation

    done = Preparation(**given).run()
    how = f"`litgpt finetune_distill --teacher {done.folder}` learns from them."
    print(f"{done.asked:,} samples asked of {done.teacher}; {how}")

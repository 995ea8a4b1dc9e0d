"""`litgpt distill prepare`: writes down, once, what a teacher holds likely after every token of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.args import Quantization
from litgpt.data import DataModule

if TYPE_CHECKING:
    import torch

    from litgpt.training.distill.teachers import BestTokens, Teacher


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
    from litgpt.checkpoint.hub import auto_download
    from litgpt.checkpoint.layout import find_checkpoint
    from litgpt.data import Alpaca
    from litgpt.errors import UsageError
    from litgpt.finetune.distillation.arguments import datasets_of, manifest_of
    from litgpt.finetune.distillation.teachers import is_url
    from litgpt.runtime import output_path
    from litgpt.tokenizer import Tokenizer
    from litgpt.training.distill.divergences import DistillationLoss
    from litgpt.training.distill.stored import MAX_K, write

    DistillationLoss(temperature=temperature)
    k = (20 if is_url(teacher) else 64) if top_k is None else top_k
    if not 1 <= k <= MAX_K or micro_batch_size < 1:
        raise UsageError(f"--top_k must be 1 to {MAX_K}, and --micro_batch_size 1 or more.")
    if is_url(teacher) and temperature != 1:
        raise UsageError("--temperature is 1 with a server, which gives no others' log-probabilities; leave it out.")
    checkpoint = find_checkpoint(auto_download(checkpoint_dir, access_token=access_token))
    tokenizer, data = Tokenizer(checkpoint.dir), data or Alpaca()
    block_size = checkpoint.config.block_size
    limit = min(max_seq_length or block_size, block_size)
    data.connect(tokenizer, micro_batch_size, limit)
    data.prepare_data()
    data.setup()
    k = min(k, len(tokenizer))
    place = (teacher, teacher_name, api_key) if is_url(teacher) else (teacher, quantize, precision, access_token)
    rows = checkpoint.config.padded_vocab_size or len(tokenizer)
    known, of_weights, ask = _asking(place, tokenizer, rows, k, temperature, micro_batch_size)
    folder = output_path(out_dir)
    manifest = manifest_of(data, of_weights, limit, k, temperature, len(tokenizer))
    count = write(folder, manifest, datasets_of(data), ask, _tell)
    print(f"{count:,} samples asked of {known}; `litgpt finetune_distill --teacher {folder}` learns from them.")


def _tell(name: str, done: int, count: int) -> None:
    print(f"{name}: {done:,} of {count:,} samples")


def _asking(
    place: tuple[Any, ...], tokenizer: Any, rows: int, k: int, temperature: float, micro_batch_size: int
) -> tuple[str, str, Callable[[Sequence[Mapping[str, Any]]], BestTokens]]:
    """The teacher's name, what tells it from others, and the function that asks it.

    Raises:
        LitGPTError: There is none, or it has another vocabulary.
    """
    import torch

    from litgpt.finetune.distillation.teachers import ServedTeacher, is_url, open_teacher
    from litgpt.runtime import parameter_dtype, pick_device, quantized_precision
    from litgpt.training.distill.teachers import ModelTeacher

    teacher: Teacher
    if is_url(place[0]):
        teacher = ServedTeacher(place[0], place[1], place[2], k, tokenizer)
        name = of_weights = teacher.served.name
        device = torch.device("cpu")
    else:
        device = pick_device()
        name, quantize, precision, access_token = place
        dtype = parameter_dtype(quantized_precision(quantize, precision, training=False, device=device))
        model, of_weights = open_teacher(name, tokenizer, device, dtype, quantize, access_token)
        teacher = ModelTeacher(model)

    def ask(samples: Sequence[Mapping[str, Any]]) -> BestTokens:
        return best_of(teacher, samples, k, temperature, micro_batch_size, device, rows)

    return name, of_weights, ask


def best_of(
    teacher: Teacher,
    samples: Sequence[Mapping[str, Any]],
    k: int,
    temperature: float,
    micro_batch_size: int,
    device: torch.device,
    vocabulary: int,
) -> BestTokens:
    """The best tokens of the student's `vocabulary` for all targets of some samples, in their order."""
    import torch

    from litgpt.training.batching.batches import Batching
    from litgpt.training.batching.packing import target_count
    from litgpt.training.distill.teachers import AllTokens, Asked, BestTokens
    from litgpt.training.loss import chunk_rows, slices

    batch = Batching(micro_batch_size, None, packing=True).cut(samples, 1)
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for chosen, part in zip((of_ranks[0] for of_ranks in batch.plan), batch.of_rank(0), strict=True):
        asked = Asked(part.inputs.to(device), part.targets.to(device), part.lengths, None)
        if not len(asked.rows):
            continue
        known = teacher.ask(asked)
        if isinstance(known, AllTokens):
            rows = [
                _best(known, own, k, temperature, vocabulary)
                for own in slices(asked.rows, chunk_rows(vocabulary, 16, asked.rows))
            ]
            known = BestTokens(torch.cat([ids for ids, _ in rows]), torch.cat([values for _, values in rows]))
        assert isinstance(known, BestTokens)
        counts = [target_count(samples[at]) for at in chosen]
        parts = zip(known.ids.cpu().split(counts), known.values.cpu().split(counts), strict=True)
        found.update(zip(chosen, parts, strict=True))
    ordered = [found[at] for at in range(len(samples)) if at in found]
    empty = torch.zeros(0, k)
    ids, values = (torch.cat([empty.long() if at == 0 else empty, *(pair[at] for pair in ordered)]) for at in (0, 1))
    return BestTokens(ids, values)


def _best(known: Any, own: slice, k: int, temperature: float, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    with torch.no_grad():
        logits = known.head(known.hidden[own]).float()[:, :vocabulary]
        values, ids = (logits / temperature).log_softmax(-1).topk(k)
    return ids, values

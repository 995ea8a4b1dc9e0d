"""`litgpt validate`: is a checkpoint folder complete and consistent, and what memory does its model take?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.checkpoint.atomic import gigabytes
from litgpt.checkpoint.dtypes import check_dtype, dtype_of
from litgpt.checkpoint.layout import LIT_MODEL, Checkpoint, existing_folder, find_checkpoint, gguf_files
from litgpt.errors import ChecksFailedError, LitGPTError, MissingFileError, quoted

if TYPE_CHECKING:
    import torch

    from litgpt.config import Config

GIB = 2**30
SAMPLE_TEXT = "Hello, world! Llamas eat grass."
SHOWN = 5
"""Names listed of each kind of fault before the rest is only counted."""


@dataclass
class CheckpointValidationResult:
    """How a file's tensors compare with those a model has."""

    is_valid: bool
    missing_keys: list[str]
    unexpected_keys: list[str]
    shape_mismatches: list[str]
    errors: list[str]

    def summary(self) -> str:
        """What is wrong, one line a kind."""
        if self.is_valid:
            return "Checkpoint validation passed."
        kinds = {
            "Missing keys": self.missing_keys,
            "Unexpected keys": self.unexpected_keys,
            "Shape mismatches": self.shape_mismatches,
            "Errors": self.errors,
        }
        lines = [f"  {kind} ({len(found)}): {_shortened(found)}" for kind, found in kinds.items() if found]
        return "\n".join(("Checkpoint validation failed:", *lines))


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def validate_checkpoint(
    checkpoint_path: str | Path, model: torch.nn.Module, verbose: bool = True
) -> CheckpointValidationResult:
    """Compares names and shapes in a `.pth` file with a model's, which may be on `meta`; no weights are read.

    Args:
        checkpoint_path: The file, `lit_model.pth` for instance.
        model: The model that is to load it.
        verbose: Print the result's summary.
    """
    from litgpt.checkpoint.reader import load_pth

    try:
        tensors = load_pth(checkpoint_path)
        result = _compare(model.state_dict(), {name: tensor.shape for name, tensor in tensors.items()}, _is_tied(model))
    except LitGPTError as error:
        result = CheckpointValidationResult(False, [], [], [], [str(error)])
    if verbose:
        print(result.summary())
    return result


def _is_tied(model: torch.nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "tie_embeddings", False))


def _compare(expected: dict[str, Any], found: dict[str, Any], tied: bool) -> CheckpointValidationResult:
    optional = {"lm_head.weight"} if tied else set()
    missing = [name for name in expected if name not in found and name not in optional]
    unexpected = [name for name in found if name not in expected]
    mismatches = [
        f"{name}: model={tuple(expected[name].shape)}, checkpoint={tuple(shape)}"
        for name, shape in found.items()
        if name in expected and expected[name].shape != shape
    ]
    return CheckpointValidationResult(not (missing or unexpected or mismatches), missing, unexpected, mismatches, [])


def estimate_model_memory(
    config: Config, dtype: str | torch.dtype | None = None, training: bool = False
) -> dict[str, Any]:
    """The memory a model's weights take, by counting them on `meta`; with `training`, gradients and AdamW's state too.

    Activations and the KV cache come on top.

    Args:
        config: The model.
        dtype: Type of the weights; None: float32.
        training: Count gradients and two moments of each weight, all of `dtype`.

    Returns:
        `param_count`; `active_param_count`, which is less in a mixture of experts; `param_memory_gb` and
        `estimated_total_gb` in GiB; `available_gpu_memory_gb` and `fits_in_memory`, which are None where there is no
        CUDA device.
    """
    import torch

    from litgpt.model import GPT

    if not isinstance(dtype, torch.dtype):
        dtype = dtype_of(dtype or "float32")
    model = GPT.skeleton(config)
    count = model.n_parameters()
    assert dtype is not None
    weights = count * dtype.itemsize / GIB
    total = weights * (4 if training else 1)
    free = torch.cuda.mem_get_info()[0] / GIB if torch.cuda.is_available() else None
    return {
        "param_count": count,
        "active_param_count": model.n_parameters(active=True),
        "param_memory_gb": weights,
        "estimated_total_gb": total,
        "available_gpu_memory_gb": free,
        "fits_in_memory": None if free is None else total <= free,
    }


def validate(
    checkpoint_dir: Path, model_filename: str = LIT_MODEL, dtype: str = "float32", training: bool = False
) -> dict[str, Any]:
    """Check that a checkpoint folder is complete and consistent.

    Looks at its files, configuration and tokenizer, compares the weights' names and shapes with the model's, and counts
    the memory the model takes. Reads no weights. The exit code is 1 when a check fails.

    Args:
        checkpoint_dir: The checkpoint: a LitGPT or Hugging Face folder, or a GGUF file.
        model_filename: The file with LitGPT weights.
        dtype: Type of the weights that memory is counted for: float32, float16, bfloat16 or float64.
        training: Count gradients and optimizer state as well.

    Example:
        litgpt validate HuggingFaceTB/SmolLM2-135M-Instruct
    """
    check_dtype(dtype)
    subject = _CheckpointChecks(existing_folder(checkpoint_dir), model_filename, dtype, training)
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("files", subject.files),
        ("configuration", subject.configuration),
        ("tokenizer", subject.tokenizer),
        ("weights", subject.weights),
        ("memory", subject.memory),
    )
    failed: dict[str, str] = {}
    found: dict[str, Any] = {}
    for number, (name, check) in enumerate(checks, 1):
        try:
            found[name] = {"ok": True, "found": check()}
            outcome = f"ok: {found[name]['found']}"
        except LitGPTError as error:
            found[name] = {"ok": False, "found": str(error)}
            if str(error) in failed.values():
                outcome = "not checked, see above."
            else:
                failed[name], outcome = str(error), f"FAILED: {error}"
        print(f"[{number}/{len(checks)}] {name}: {outcome}")
    result = {"checkpoint_dir": str(subject.folder), "valid": not failed, "checks": found}
    if failed:
        wrong = f"{subject.folder} is not valid: see above what is wrong with its {_enumerated(failed)}."
        raise ChecksFailedError(wrong, result)
    print(f"{subject.folder} is valid.")
    return result


def _enumerated(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


@dataclass(frozen=True)
class _CheckpointChecks:
    """The folder that is checked; each check returns what it found, or raises."""

    folder: Path
    model_filename: str
    dtype: str
    training: bool

    @cached_property
    def checkpoint(self) -> Checkpoint:
        named = self.folder / self.model_filename
        if self.model_filename == LIT_MODEL:
            return find_checkpoint(self.folder)
        if not named.is_file():
            raise MissingFileError(f"{self.folder} has no file {self.model_filename}.")
        return Checkpoint(self.folder, "litgpt", (named,))

    def files(self) -> str:
        names = ", ".join(file.name for file in self.checkpoint.files[:SHOWN])
        more = len(self.checkpoint.files) - SHOWN
        return f"{names}{f' and {more} more' if more > 0 else ''} ({gigabytes(self.checkpoint.nbytes)})."

    @property
    def is_gguf(self) -> bool:
        """Whether one file holds everything."""
        return self.folder.is_file() or (bool(gguf_files(self.folder)) and self.checkpoint.kind == "gguf")

    @cached_property
    def config(self) -> Config:
        from litgpt.config import Config

        return self.checkpoint.config if self.is_gguf else Config.from_checkpoint(self.folder)

    def configuration(self) -> str:
        config = self.config
        sizes = f"{config.n_layer} layers, width {config.n_embd}, context {config.block_size}"
        return f"{config.name or 'unnamed model'} ({config.family.name}; {sizes})."

    def tokenizer(self) -> str:
        from litgpt.tokenizer import Tokenizer

        tokenizer = Tokenizer(self.checkpoint.dir if self.is_gguf else self.folder)
        try:
            ids = tokenizer.encode_ids(SAMPLE_TEXT, bos=False)
        except LitGPTError:  # a small vocabulary, of characters for instance: take what it can say
            ids = list(range(min(len(tokenizer), 20)))
        text = tokenizer.decode(ids)
        again = tokenizer.decode(tokenizer.encode_ids(text, bos=False))
        if not text or again != text:
            raise LitGPTError(
                f"the tokenizer makes {quoted(again)} of {quoted(text)}; its files don't belong together."
            )
        return f"{tokenizer.backend}, {len(tokenizer)} tokens; a text survives the way there and back."

    def weights(self) -> str:
        from litgpt.checkpoint.reader import open_weights
        from litgpt.model import GPT

        tensors = open_weights(self.checkpoint)
        config = self.checkpoint.config
        self.config.tie_embeddings = config.tie_embeddings  # the weights tell, and memory is counted by it
        expected = GPT.skeleton(config).state_dict()
        result = _compare(expected, {name: tensor.shape for name, tensor in tensors}, bool(config.tie_embeddings))
        if not result.is_valid:
            raise LitGPTError(result.summary())
        return f"{len(tensors.names)} tensors with the names and shapes of the model."

    def memory(self) -> str:
        estimate = estimate_model_memory(self.config, self.dtype, self.training)
        what = "weights, gradients and AdamW's state" if self.training else "weights"
        total = f"{gigabytes(estimate['estimated_total_gb'] * GIB)} in {self.dtype}"
        count, active = estimate["param_count"], estimate["active_param_count"]
        mixture = f", {active:,} of them for each token" if active < count else ""
        text = f"{count:,} parameters{mixture}; {what} take {total}"
        free = estimate["available_gpu_memory_gb"]
        if free is None:
            return f"{text}."
        fits = "fits" if estimate["fits_in_memory"] else "does not fit"
        return f"{text}, which {fits} into the {gigabytes(free * GIB)} that the GPU has free."

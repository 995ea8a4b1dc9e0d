"""The steps of `litgpt quantize`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from litgpt.checkpoint.atomic import atomic_folder, gigabytes, require_space
from litgpt.checkpoint.layout import Checkpoint, find_checkpoint, other_folder
from litgpt.checkpoint.quantized.writer import LAYOUTS, plan_rounding, write_quantized
from litgpt.checkpoint.reader import EMBEDDING, load_model, open_weights
from litgpt.data.storage.data_files import DATA_SUFFIXES, format_suffix, read_text, read_texts
from litgpt.errors import LitGPTError, MissingFileError, UsageError, is_quiet, progress, quoted
from litgpt.kernels.linear import has_bfloat16
from litgpt.model import GPT
from litgpt.quantize.methods import RoundedModel, measure_importance, round_model
from litgpt.runtime import parameter_dtype, pick_device
from litgpt.tokenizer import Tokenizer

GGUF = "gguf-"
"""Begins the names of GGUF's formats."""
BATCH = 8
"""Pieces of text that go through the model together."""
FEWEST_TOKENS = 128
"""In the data."""
PLACE = Path("out/quantized")


@dataclass(frozen=True)
class Quantization:
    """One call of the command; the fields are its arguments."""

    checkpoint_dir: Path
    to: str
    data: Path | None
    out_dir: Path | None
    group_size: int | None
    samples: int
    sequence_length: int
    seed: int
    precision: str | None
    device: str

    def run(self) -> Path:
        """Writes the file or folder, and returns its path.

        Raises:
            LitGPTError: The model can't be stored that way, or an argument makes no sense.
        """
        self._check()
        folder = other_folder(self.out_dir or PLACE / f"{self.checkpoint.path.stem}-{self.to}", self.checkpoint.dir)
        path = self._write_gguf(folder) if self.to.startswith(GGUF) else self._write_folder(folder)
        nbytes = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())
        bits = 8 * nbytes / GPT.skeleton(self.checkpoint.config).n_parameters()
        was = gigabytes(self.checkpoint.nbytes)
        print(f"Wrote {path}, {gigabytes(nbytes)} (it was {was}): {bits:.1f} bits a weight, {self._how()}.")
        return path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The model."""
        return find_checkpoint(self.checkpoint_dir)

    @property
    def dtype(self) -> torch.dtype:
        """What stays in 16 bits is kept in: the model's own type, but float32 becomes bfloat16."""
        own = open_weights(self.checkpoint).fetch(EMBEDDING).dtype
        return own if own in (torch.bfloat16, torch.float16) else torch.bfloat16

    @property
    def method(self) -> str | None:
        """What data would be used for; None: nothing."""
        if self.to.startswith(GGUF):
            return None if self.to == "gguf-q8_0" else "importance"
        return LAYOUTS[self.to].method

    def _check(self) -> None:
        if self.data is not None and self.method is None:
            raise UsageError(f"--data changes nothing for {self.to}, which rounds each weight to the nearest.")
        if self.group_size is not None and (self.to.startswith(GGUF) or not LAYOUTS[self.to].grouped):
            raise UsageError(f"--group_size is for gptq, awq and w4a16; {self.to} has its own.")
        if self.data is not None and not self.data.expanduser().is_file():
            raise MissingFileError(f"There is no file {self.data} with texts for --data.")
        for name in ("samples", "sequence_length", "group_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} is {value}; it must be 1 or more.")

    def _how(self) -> str:
        if self.data is None:
            return "rounded to nearest"
        how = {"gptq": "by GPTQ", "awq": "by AWQ", "importance": "by an importance matrix"}[self.method or ""]
        return f"rounded {how} on {self.data}"

    # -- GGUF

    def _write_gguf(self, folder: Path) -> Path:
        from litgpt.checkpoint.gguf.writer import write_gguf

        kind = self.to.removeprefix(GGUF)
        importance: Mapping[str, Tensor] = {}
        if self.data is not None:
            importance = measure_importance(self._model(), self._pieces(), _tell_block)
        path = folder / f"model-{kind}.gguf"
        write_gguf(self.checkpoint, path, kind, importance)
        return path

    # -- Hugging Face

    def _write_folder(self, folder: Path) -> Path:
        plan = plan_rounding(self.checkpoint.config, LAYOUTS[self.to], self.group_size, self.dtype)
        if plan.left:
            more = f" and {len(plan.left) - 1} more" if len(plan.left) > 1 else ""
            progress(f"Not stored in few bits, because of its shape: {plan.left[0]}{more}.")
        made = RoundedModel()
        if self.data is not None and self.method is not None:
            made = round_model(self._model(), self._pieces(), self.method, plan.grids, _tell_block)
            rest = len(set(plan.grids) - set(made.rounded))
            if rest:
                progress(
                    f"{rest} weights of experts are rounded to nearest: what each expert is given is not looked at."
                )
        require_space(folder, self._estimate(plan.layout.bits), f"Writing {folder}")
        with atomic_folder(folder) as temporary:
            write_quantized(temporary, self.checkpoint, plan, made, self.dtype)
        return folder

    def _estimate(self, bits: int) -> int:
        """Bytes that the folder takes, more or less."""
        config, count = self.checkpoint.config, GPT.skeleton(self.checkpoint.config).n_parameters()
        embeddings = (1 if config.tie_embeddings else 2) * (config.padded_vocab_size or 0) * config.n_embd
        return embeddings * 2 + (count - embeddings) * bits // 8

    # -- data

    def _model(self) -> GPT:
        device = pick_device(self.device)
        dtype = self.dtype
        if self.precision is not None:
            dtype = parameter_dtype(self.precision)
        elif device.type == "cpu" and not (dtype == torch.bfloat16 and has_bfloat16()):
            dtype = torch.float32
        return load_model(self.checkpoint, device, dtype)

    def _pieces(self) -> list[Tensor]:
        """Token ids, `(BATCH, T)` each: pieces of the data, drawn at random.

        Raises:
            LitGPTError: There is too little data.
        """
        assert self.data is not None
        path = self.data.expanduser()
        texts = read_texts(path, "text") if format_suffix(path) in DATA_SUFFIXES else [read_text(path)]
        tokenizer = Tokenizer(self.checkpoint.dir)
        ids = torch.tensor([token for text in texts for token in tokenizer.encode_ids(text)], dtype=torch.long)
        if len(ids) < FEWEST_TOKENS:
            raise LitGPTError(
                f"{quoted(str(path))} has {len(ids)} tokens of text; {FEWEST_TOKENS} are needed at least."
            )
        length = min(self.sequence_length, len(ids), self.checkpoint.config.block_size)
        count = min(self.samples, len(ids) // length)
        places = torch.randperm(len(ids) // length, generator=torch.Generator().manual_seed(self.seed))[:count]
        pieces = ids[: len(ids) // length * length].view(-1, length)[places.sort().values]
        progress(f"Looking at {count} pieces of {length} tokens of {path}.")
        return list(pieces.split(BATCH))


def _tell_block(number: int, count: int) -> None:
    if sys.stderr.isatty() and not is_quiet():
        progress(f"\rBlock {number + 1}/{count} ", end="\n" if number + 1 == count else "")

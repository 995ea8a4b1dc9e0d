"""What lies in a checkpoint folder, LitGPT's or Hugging Face's, and how a user's path becomes one."""

from __future__ import annotations

import re
import shutil
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from litgpt.checkpoint.gguf import GGUF_SUFFIX
from litgpt.config import CONFIG_FILE, Config
from litgpt.errors import LitGPTError, MissingFileError, MissingFolderError, closest
from litgpt.families.quantization_config import StoredQuantization, stored_quantization
from litgpt.hub_client import CHECKPOINTS as CHECKPOINTS
from litgpt.hub_client import HF_CONFIG_FILE, relative_name
from litgpt.prompts.files import PROMPT_STYLE_FILE
from litgpt.reading import read_json

LIT_MODEL = "lit_model.pth"
NANOGPT_CHECKPOINT = "ckpt.pt"
HYPERPARAMETERS = "hyperparameters.yaml"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
CONFIG_FILES = (HF_CONFIG_FILE, "generation_config.json", CONFIG_FILE, *TOKENIZER_FILES, PROMPT_STYLE_FILE)
"""Everything but the weights that a folder needs to be used."""

WEIGHT_INDEXES = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}
"""Ending of Hugging Face's weight files → what says which tensor is in which, where there are several."""
NOT_WEIGHTS = frozenset({"training_args.bin", "optimizer.bin", "scheduler.bin", "consolidated.safetensors"})


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model in it, or a GGUF file."""

    dir: Path
    """Where its configuration and tokenizer are; of a GGUF file, a temporary folder that holds what the file says."""
    kind: Literal["litgpt", "hf", "gguf"]
    files: tuple[Path, ...]
    """The files its weights are in."""

    @cached_property
    def config(self) -> Config:
        """Its model's configuration."""
        return Config.from_checkpoint(self.dir)

    @cached_property
    def stored_quantization(self) -> StoredQuantization | None:
        """How the weights of a Hugging Face folder are kept in few bits; None: they are plain numbers.

        Raises:
            LitGPTError: In a way that is not read here.
        """
        file = self.dir / HF_CONFIG_FILE
        return stored_quantization(read_json(file)) if self.kind == "hf" and file.is_file() else None

    @property
    def path(self) -> Path:
        """What opens it again: the folder, or the GGUF file, whose `dir` is temporary."""
        return self.files[0] if self.kind == "gguf" else self.dir

    @property
    def nbytes(self) -> int:
        """Size of the weight files in bytes."""
        return sum(file.stat().st_size for file in self.files)


def existing_folder(path: str | Path) -> Path:
    """The folder (or GGUF file) `path` names: itself, else the one of that name under `checkpoints/`.

    Raises:
        LitGPTError: There is no such folder.
    """
    path = Path(path).expanduser()
    for folder in (path, CHECKPOINTS / path):
        if folder.is_dir() or (folder.is_file() and folder.suffix == GGUF_SUFFIX):
            return folder
    if path.exists():
        raise MissingFolderError(f"{path} is a file; a checkpoint is a folder.")
    near = (
        [str(folder) for folder in (*path.parent.glob("*/"), *CHECKPOINTS.glob("*/*/"))] if path.parent.is_dir() else []
    )
    raise MissingFolderError(
        f"There is no checkpoint folder {path}.{closest(str(path), near)} `litgpt download ORG/NAME` fetches one."
    )


def other_folder(path: str | Path, source: Path) -> Path:
    """The folder to write a conversion to, which is not the one to convert.

    Raises:
        LitGPTError: It is.
    """
    target = Path(path)
    if target.resolve() == source.resolve():
        raise LitGPTError(f"{target} is the folder to convert; give another one to write to.")
    return target


def find_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at `path`, or under `checkpoints/`. A LitGPT model wins over Hugging Face weights beside it.

    Raises:
        LitGPTError: No such folder, no weights in it, or nothing that says which model they are.
    """
    folder = existing_folder(path)
    if folder.is_file():
        return _gguf_checkpoint(folder)
    lit_model, files = folder / LIT_MODEL, hf_weight_files(folder)
    if not lit_model.is_file() and not files:
        gguf = gguf_files(folder)
        if gguf:
            return _gguf_checkpoint(gguf[0], folder)
        raise MissingFileError(f"{folder} has no weights ({LIT_MODEL}, *.safetensors or *.bin): {_what_to_do(folder)}.")
    if not (folder / CONFIG_FILE).is_file() and not (folder / HF_CONFIG_FILE).is_file():
        raise MissingFileError(
            f"{folder} has neither {CONFIG_FILE} nor {HF_CONFIG_FILE}, so it is not known which model its weights are."
        )
    if lit_model.is_file():
        return Checkpoint(folder, "litgpt", (lit_model,))
    return Checkpoint(folder, "hf", files)


def _what_to_do(folder: Path) -> str:
    """About a folder without weights, by what else is in it."""
    learned = next((path.name for path in sorted(folder.glob(f"{LIT_MODEL}.*"))), "")
    if learned.endswith(".lora"):
        return f"it holds {learned} only; run `litgpt merge_lora {folder}` first"
    if learned.endswith((".adapter", ".adapter_v2")):
        return f"it holds {learned} only, which `litgpt generate`, `chat` and `serve` use and nothing else does"
    if (folder / "adapter_config.json").is_file():
        return f"it holds PEFT's updates only; run `litgpt merge_lora {folder}` first"
    if (folder / NANOGPT_CHECKPOINT).is_file():
        return f"it holds nanoGPT's {NANOGPT_CHECKPOINT}; run `litgpt convert_to_litgpt {folder}` first"
    steps = [path for path in (folder / "final", *sorted(folder.glob("step-*"), reverse=True)) if _holds_weights(path)]
    if steps:
        return f"it is the folder of a run; give {steps[0]}"
    return "download the checkpoint again"


def _holds_weights(folder: Path) -> bool:
    return any(folder.glob(f"{LIT_MODEL}*")) or any(folder.glob("*.safetensors"))


def hf_weight_files(folder: Path) -> tuple[Path, ...]:
    """The Hugging Face weight files of a folder: those its index names, else all `*.safetensors`, else all `*.bin`.

    Raises:
        LitGPTError: The index names a file that is not there.
    """
    for suffix, index_name in WEIGHT_INDEXES.items():
        index = folder / index_name
        if index.is_file():
            files = tuple(folder / name for name in indexed_files(index))
            for file in files:
                if not file.is_file():
                    raise MissingFileError(
                        f"{index} names {file.name}, which is not there; download the checkpoint again."
                    )
            if files:
                return files
        found = sorted(file for file in folder.glob(f"*.{suffix}") if is_weight_file(file.name))
        if found:
            return tuple(found)
    return ()


def is_weight_file(name: str) -> bool:
    """Whether a file with the ending of Hugging Face's weight files holds a model's weights."""
    return "/" not in name and name not in NOT_WEIGHTS and "adapter" not in name


def indexed_files(index: Path) -> list[str]:
    """The names of the weight files in the index of a folder that has several.

    Raises:
        LitGPTError: It is damaged.
    """
    where = read_json(index).get("weight_map", {})
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise LitGPTError(f"{index} doesn't say which tensor is in which file; download it again.")
    return [relative_name(name, str(index)) for name in sorted(set(where.values()))]


def gguf_files(folder: Path) -> tuple[Path, ...]:
    """The GGUF model in a folder: one file, or the parts of one.

    Raises:
        LitGPTError: There are several.
    """
    found = tuple(sorted(folder.glob(f"*{GGUF_SUFFIX}")))
    if len({re.sub(r"-\d{5}-of-\d{5}$", "", file.stem) for file in found}) > 1:
        raise LitGPTError(
            f"{folder} has several GGUF files; give the path of one: {', '.join(file.name for file in found)}."
        )
    return found


def _gguf_checkpoint(file: Path, folder: Path | None = None) -> Checkpoint:
    """A GGUF file; where its folder was given, the tokenizer files beside it count more than what it says itself."""
    from litgpt.checkpoint.gguf.reader import as_folder, open_gguf  # torch, which folders don't need to be found

    names = ("generation_config.json", PROMPT_STYLE_FILE, *TOKENIZER_FILES)
    beside = [folder / name for name in names if (folder / name).is_file()] if folder else []
    opened = open_gguf(file)
    checkpoint = Checkpoint(as_folder(opened, beside), "gguf", opened.paths)
    vars(checkpoint)["config"] = deepcopy(opened.config)  # which knows of a tied head what no file in a folder says
    return checkpoint


def copy_config_files(source: Path, target: Path) -> None:
    """Copies everything but the weights: configuration, tokenizer, chat template, prompt style."""
    target.mkdir(parents=True, exist_ok=True)
    for name in CONFIG_FILES:
        if (source / name).is_file() and (source / name).resolve() != (target / name).resolve():
            shutil.copy(source / name, target / name)


def complete_folder(source: Path, target: Path) -> None:
    """As `copy_config_files`, but what `target` has of its own stays: a tokenizer of its own, say."""
    own = {name for name in CONFIG_FILES if (target / name).is_file()}
    has_tokenizer = not own.isdisjoint({"tokenizer.json", "tokenizer.model"})
    for name in CONFIG_FILES:
        if (source / name).is_file() and name not in own and not (has_tokenizer and name in TOKENIZER_FILES):
            shutil.copy(source / name, target / name)

"""nanoGPT's `ckpt.pt` as a LitGPT folder: its weights, and what sizes they have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from litgpt.checkpoint.atomic import atomic_folder
from litgpt.checkpoint.dtypes import cast
from litgpt.checkpoint.layout import LIT_MODEL, NANOGPT_CHECKPOINT
from litgpt.checkpoint.reader import check_names, check_shape, load_pickle, load_pth
from litgpt.checkpoint.writer import save_state
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.families.base import Same
from litgpt.families.gpt2 import WEIGHTS
from litgpt.model import GPT

SIZES = ("block_size", "n_layer", "n_head", "n_embd")


def model_fields(settings: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """nanoGPT's GPT-2 as fields of a `Config`: exact GELU, biases everywhere or nowhere.

    Args:
        settings: `block_size`, `n_layer`, `n_head`, `n_embd`, `bias`.
        vocabulary: Tokens.
    """
    return dict(
        name="nanogpt",
        **{name: settings[name] for name in SIZES},
        vocab_size=vocabulary,
        padded_vocab_size=vocabulary,
        learned_positions=True,
        rotary_percentage=0.0,
        parallel_residual=False,
        bias=settings["bias"],
        norm_bias=settings["bias"],
        tie_embeddings=True,
    )


def from_nanogpt(folder: Path, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Writes `lit_model.pth` and `model_config.yaml` beside the `ckpt.pt` of a folder; no code in it is ever run.

    Args:
        folder: nanoGPT's `out_dir`.
        dtype: What weights are cast to; None: as stored.

    Returns:
        The settings that it was trained with; empty where the file has none.

    Raises:
        LitGPTError: The file can't be read, or is none of nanoGPT's.
    """
    path = folder / NANOGPT_CHECKPOINT
    content = load_pickle(path, mmap=True)
    sizes = content.get("model_args") if isinstance(content, dict) else None
    if not isinstance(sizes, dict) or not {*SIZES, "bias", "vocab_size"} <= sizes.keys():
        raise LitGPTError(f"{path} is no checkpoint of nanoGPT's: it has no `model_args` with the model's sizes.")
    config = Config(**model_fields(sizes, sizes["vocab_size"]))
    expected = GPT.skeleton(config).state_dict()
    stored = {ours: tensor for name, tensor in load_pth(path).items() if (ours := _renamed(name))}
    check_names(expected, stored, tied=True)
    for name, tensor in stored.items():
        check_shape(name, tensor, expected[name].shape)
    with atomic_folder(folder) as unfinished:
        save_state(unfinished / LIT_MODEL, {name: cast(name, tensor, dtype) for name, tensor in stored.items()})
        config.save(unfinished)
    settings = content.get("config")
    return settings if isinstance(settings, dict) else {}


def _renamed(name: str) -> str | None:
    """Our name of a tensor (unlike OpenAI's and Hugging Face's, nanoGPT's matrices are not transposed); None of a mask,
    which older files have."""
    module, _, kind = name.rpartition(".")
    number = re.search(r"\.h\.(\d+)\.", module)
    known = {entry.theirs: entry.ours for entry in WEIGHTS if isinstance(entry, Same)}
    if module.endswith(".attn") and kind == "bias":
        return None
    ours = known.get(re.sub(r"\.h\.\d+\.", ".h.{i}.", module), module)
    return f"{ours.replace('{i}', number[1]) if number else ours}.{kind}"

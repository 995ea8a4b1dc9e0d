"""Hugging Face's models with a head for labels in place of the one for tokens (`…ForSequenceClassification`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from litgpt.checkpoint.layout import Checkpoint, find_checkpoint
from litgpt.checkpoint.reader import fill, read_files
from litgpt.checkpoint.weights import Tensors, WeightTable
from litgpt.config import Config
from litgpt.errors import UnsupportedError, escaped
from litgpt.hub_client import HF_CONFIG_FILE
from litgpt.model import GPT
from litgpt.reading import read_json

ENDING = "ForSequenceClassification"
SCORE = "score.weight"


@dataclass(frozen=True)
class Classifier:
    """A model whose last hidden state is scored by label."""

    checkpoint: Checkpoint
    model: GPT
    """Its head for tokens is its embedding, and of no use."""
    score: Tensor
    """`(labels, C)`."""
    padding: int | None
    """The token that doesn't count at the end of a text."""

    def last(self, tokens: list[int]) -> int:
        """The place of the token whose hidden state is scored: the last that is no padding, as transformers takes it;
        the first where all are."""
        places = (at for at in range(len(tokens) - 1, -1, -1) if tokens[at] != self.padding)
        return next(places, 0)


def open_classifier(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Classifier:
    """The model in a Hugging Face folder.

    Args:
        path: The folder.
        device: Where the weights go.
        dtype: What floating-point weights are cast to; None: as stored.

    Raises:
        LitGPTError: There is no such folder, it holds another kind of model, or one of a family that is not known here.
    """
    checkpoint = find_checkpoint(path)
    file = checkpoint.dir / HF_CONFIG_FILE
    said = read_json(file) if checkpoint.kind == "hf" and file.is_file() else {}
    kinds = said.get("architectures")
    if not isinstance(kinds, list) or not kinds or not str(kinds[0]).endswith(ENDING):
        what = f"a {escaped(str(kinds[0]))}" if isinstance(kinds, list) and kinds else "of another kind"
        raise UnsupportedError(f"{checkpoint.path} is {what}; a model that scores texts is a Hugging Face …{ENDING}.")
    trunk = {key: value for key, value in said.items() if key != "architectures"}  # read by its `model_type`
    config = Config.from_hf(trunk, name=checkpoint.dir.resolve().name)
    config = replace(config, tie_embeddings=True, lm_head_bias=False)  # there is no head for tokens
    vars(checkpoint)["config"] = config
    theirs = read_files(checkpoint.files)
    if SCORE not in theirs.names:
        raise UnsupportedError(
            f"{checkpoint.path} has no tensor {SCORE}; its head is of a kind that is not known here."
        )
    model = GPT.skeleton(config)
    names = tuple(name for name in theirs.names if name != SCORE)
    fill(model, WeightTable(config).import_from(Tensors(names, theirs.fetch), model.state_dict()), device, dtype)
    padding = said.get("pad_token_id")
    score = theirs.fetch(SCORE).to(device, dtype)
    return Classifier(checkpoint, model.eval(), score, padding if isinstance(padding, int) else None)

"""nanoGPT's checkpoints against a plain model of nanoGPT's kind."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from litgpt import LLM
from litgpt.__main__ import main
from litgpt.checkpoint.nanogpt import from_nanogpt
from litgpt.checkpoint.reader import load_model
from litgpt.errors import LitGPTError

SIZES = dict(n_layer=2, n_head=2, n_embd=16, block_size=12)
SYMBOLS = " abcdefgh"


def weights(bias: bool, vocabulary: int) -> dict[str, Tensor]:
    """Random ones under nanoGPT's names."""
    generator, width = torch.Generator().manual_seed(0), SIZES["n_embd"]
    shapes = {"transformer.wte.weight": (vocabulary, width), "transformer.wpe.weight": (SIZES["block_size"], width)}
    for number in range(SIZES["n_layer"]):
        start = f"transformer.h.{number}"
        matrices = {"attn.c_attn": (3 * width, width), "attn.c_proj": (width, width)}
        matrices |= {"mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
        matrices |= {"ln_1": (width,), "ln_2": (width,)}
        for name, shape in matrices.items():
            shapes[f"{start}.{name}.weight"] = shape
            if bias:
                shapes[f"{start}.{name}.bias"] = shape[:1]
    shapes["transformer.ln_f.weight"] = (width,)
    if bias:
        shapes["transformer.ln_f.bias"] = (width,)
    made = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return {**made, "lm_head.weight": made["transformer.wte.weight"]}


def plain(w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """What nanoGPT computes, `(T,)` → `(T, V)`."""
    width, heads = SIZES["n_embd"], SIZES["n_head"]

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][: len(tokens)]
    for number in range(SIZES["n_layer"]):
        block = f"transformer.h.{number}"
        q, k, v = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(width, 1)
        q, k, v = (part.view(len(tokens), heads, -1).transpose(0, 1) for part in (q, k, v))
        later = torch.ones(len(tokens), len(tokens)).triu(1) > 0
        scores = (q @ k.mT / math.sqrt(width // heads)).masked_fill(later, -1e9)
        x = x + linear((scores.softmax(-1) @ v).transpose(0, 1).reshape(len(tokens), width), f"{block}.attn.c_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")), f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


def checkpoint(folder: Path, bias: bool = True, prefix: str = "", **changes: Any) -> dict[str, Tensor]:
    """Writes `ckpt.pt` as train.py does; returns the weights."""
    made = weights(bias, len(SYMBOLS))
    content = {
        "model": {prefix + name: tensor for name, tensor in made.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "model_args": dict(SIZES, bias=bias, vocab_size=len(SYMBOLS), dropout=0.2),
        "iter_num": 7, "best_val_loss": torch.tensor(1.5), "config": {"dataset": "letters", "learning_rate": 1e-3},
    }  # fmt: skip
    folder.mkdir(parents=True)
    torch.save({**content, **changes}, folder / "ckpt.pt")
    return made


def meta(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    itos = dict(enumerate(SYMBOLS))
    stoi = {one: number for number, one in itos.items()}
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(SYMBOLS), "itos": itos, "stoi": stoi}))


@pytest.mark.parametrize("bias", [True, False])
def test_the_logits_are_nanogpts(bias, tmp_path):
    made = checkpoint(tmp_path / "out", bias, prefix="_orig_mod.")
    assert from_nanogpt(tmp_path / "out")["dataset"] == "letters"
    model = load_model(tmp_path / "out")
    tokens = torch.tensor([3, 1, 4, 1, 5, 0, 2, 6, 5, 3, 5, 8])
    torch.testing.assert_close(model(tokens[None])[0], plain(made, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["out", "data/letters"])
def test_a_folder_answers_once_it_is_converted(where, tmp_path, capsys):
    checkpoint(tmp_path / "out")
    assert main(["generate", str(tmp_path / "out"), "--prompt", "abc"]) == 1
    assert "run `litgpt convert_to_litgpt" in capsys.readouterr().err
    meta(tmp_path / where)
    assert main(["convert_to_litgpt", str(tmp_path / "out")]) == 0
    assert "9 characters of meta.pkl" in capsys.readouterr().out
    answer = LLM.load(str(tmp_path / "out")).generate("abc", max_new_tokens=4, temperature=0.0)
    assert len(answer) == 4 and set(answer) <= set(SYMBOLS)


def test_without_characters_gpt2s_tokenizer_is_named(tmp_path, capsys):
    checkpoint(tmp_path / "out")
    assert main(["convert_to_litgpt", str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert "openai-community/gpt2" in capsys.readouterr().out
    assert load_model(tmp_path / "out").lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_args": None}, "is no checkpoint of nanoGPT's"),
        ({"model_args": {"n_layer": 2}}, "is no checkpoint of nanoGPT's"),
        ({"model": {"transformer.wte.weight": torch.zeros(9, 16)}}, "has no tensor 'transformer.wpe.weight'"),
        ({"model_args": dict(SIZES, n_embd=32, bias=True, vocab_size=9)}, "transformer.wte.weight"),
        ({"config": print}, "holds more than tensors"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused_and_nothing_is_written(changes, sentence, tmp_path):
    checkpoint(tmp_path / "out", **changes)
    with pytest.raises(LitGPTError, match=sentence):
        from_nanogpt(tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["ckpt.pt"]

"""Every family computes what `transformers` computes, and goes back to it bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from litgpt.checkpoint.reader import load_model
from litgpt.checkpoint.weights import WeightTable, lazy
from litgpt.config import Config
from litgpt.model.cache import KVCache, Span
from tests.tiny import BY_LENGTH, CASES, WIDE, hf_model, wide_ones_slow

COMPLEX = {"deepseek_v2", "llama4_text", "ctrl", "falcon_h1", "gemma3n_text"}
"""Theirs rotate by complex numbers, whose float32 parts are rounded in other places than cosines and sines; or make
sinusoids in another order; or multiply with what is rounded to float32."""
LENGTH = 40  # longer than every sliding window of the cases


@pytest.fixture(scope="module", params=wide_ones_slow(case for case in CASES if case not in BY_LENGTH))
def pair(request, tmp_path_factory):
    """A random `transformers` model, and the folder it was saved to."""
    model = hf_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 96, (2, LENGTH), generator=torch.Generator().manual_seed(1))


class Exactly(TorchFunctionMode):
    """Lets what `transformers` always computes in float32 (norms, routers, memories) stay in float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if function is torch.Tensor.float:
                return args[0]
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        return function(*args, **kwargs)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.inference_mode()
def test_logits_at_all_positions(pair, tokens):
    model, folder = pair
    assert relative(load_model(folder)(tokens), model(tokens).logits) < 1e-5


@pytest.mark.parametrize("case", WIDE)
@torch.inference_mode()
def test_a_rarer_family_computes_the_same_and_goes_back_unchanged(case, tokens, tmp_path):
    model = hf_model(case)
    model.save_pretrained(tmp_path)
    ours, saved = load_model(tmp_path), load_file(tmp_path / "model.safetensors")
    assert relative(ours(tokens), model(tokens).logits) < 1e-5
    back = dict(WeightTable(ours.config).export_from(lazy(ours.state_dict())))
    assert back.keys() == saved.keys()
    assert all(torch.equal(back[name], saved[name]) for name in saved)
    again = Config.from_hf(ours.config.family.write_hf(ours.config))
    for name, value in ours.config.computation().items():
        assert again.computation()[name] == (pytest.approx(value) if isinstance(value, float) else value), name


@torch.inference_mode()
def test_logits_in_float64(pair, tokens):
    _, folder = pair
    if pair[0].config.model_type == "xglm":
        pytest.skip("their mask has the least float64, which is not one of float32")
    if pair[0].config.model_type in ("ernie4_5_moe", "hunyuan_v1_moe"):
        pytest.skip("their router multiplies float32 by float64")
    exact = type(pair[0]).from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")
    with Exactly():
        theirs = exact(tokens).logits
    rounded = exact.config.model_type in COMPLEX or getattr(exact.config, "alibi", False)
    bound = 1e-6 if rounded else 1e-9
    assert relative(load_model(folder, dtype=torch.float64)(tokens), theirs) < bound


@torch.inference_mode()
def test_logits_in_bfloat16_are_as_near_as_theirs(pair, tokens):
    model, folder = pair
    exact = model(tokens).logits
    theirs = relative(type(model).from_pretrained(folder, dtype=torch.bfloat16)(tokens).logits.float(), exact)
    ours = relative(load_model(folder, dtype=torch.bfloat16)(tokens).float(), exact)
    assert ours < max(3 * theirs, 0.02)


@torch.inference_mode()
def test_the_cache_changes_nothing(pair, tokens):
    model, folder = pair
    ours = load_model(folder)
    cache = KVCache(ours.config, slots=3, length=LENGTH)
    hidden, start = [], 0
    for n_tokens in (11, 9, *[1] * (LENGTH - 20)):  # two chunks of the prompt, then token by token
        piece = tokens[:, start : start + n_tokens]
        hidden.append(ours.hidden(piece, span=Span(cache, slice(1, 3), [start, start])))
        start += n_tokens
    assert relative(ours.head(torch.cat(hidden, dim=1)), model(tokens).logits) < 1e-5


@torch.inference_mode()
def test_rows_at_different_positions_share_a_batch(pair, tokens):
    model, folder = pair
    ours = load_model(folder)
    cache = KVCache(ours.config, slots=2, length=LENGTH)
    for row, length in enumerate((23, 6)):
        ours.hidden(tokens[row : row + 1, :length], span=Span(cache, slice(row, row + 1), [0]))
    together = torch.stack([tokens[0, 23:24], tokens[1, 6:7]])
    logits = ours.head(ours.hidden(together, span=Span(cache, slice(0, 2), [23, 6])))[:, 0]
    theirs = torch.stack([model(tokens[:1, :24]).logits[0, -1], model(tokens[1:, :7]).logits[0, -1]])
    assert relative(logits, theirs) < 1e-5


@torch.inference_mode()
def test_packed_documents_do_not_see_each_other(pair, tokens):
    model, folder = pair
    ours = load_model(folder)
    packed = torch.cat([tokens[0, :13], tokens[1, :27]])[None]
    logits = ours.head(ours.hidden(packed, lengths=[13, 27]))[0]
    theirs = torch.cat([model(tokens[:1, :13]).logits[0], model(tokens[1:, :27]).logits[0]])
    assert relative(logits, theirs) < 1e-5


def test_tensors_and_config_go_back_unchanged(pair, tokens, tmp_path):
    model, folder = pair
    if model.config.model_type == "flex_olmo":
        pytest.skip("their padding token, where none is said, is beyond so small a vocabulary")
    ours = load_model(folder)
    back = dict(WeightTable(ours.config).export_from(lazy(ours.state_dict())))
    saved = load_file(folder / "model.safetensors")
    assert back.keys() == saved.keys()
    assert all(torch.equal(back[name], saved[name]) for name in saved)

    save_file(
        {name: tensor.contiguous() for name, tensor in back.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    (tmp_path / "config.json").write_text(json.dumps(ours.config.family.write_hf(ours.config)))
    again = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


@torch.inference_mode()
def test_a_real_model_gives_the_reference_logits(stories260k: Path):
    golden = json.loads((stories260k.parents[1] / "golden" / "stories260k.json").read_text())
    model = load_model(stories260k)
    for case in golden["cases"]:
        values, ids = model(torch.tensor([case["input_ids"]]))[0, -1].topk(5)
        assert ids.tolist() == case["last_top5_ids"]
        torch.testing.assert_close(values, torch.tensor(case["last_top5_logits"]), atol=2e-4, rtol=0)

"""What LitGPT 0.5.13 gets wrong in converting and caching, ours gets right: equal to `transformers`."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from litgpt.checkpoint.convert import to_hf, to_litgpt
from litgpt.checkpoint.reader import load_model
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.model.cache import KVCache, Span
from tests.parity.test_families import relative
from tests.tiny import hf_model

LENGTH = 40
PROMPT = 25  # longer than the windows of the cases, which are 7


@pytest.fixture
def tokens():
    return torch.randint(0, 96, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def saved(case, folder):
    """A random `transformers` model, and the folder it was saved to."""
    model = hf_model(case)
    model.save_pretrained(folder)
    return model, folder


@torch.inference_mode()
@pytest.mark.parametrize("case", ["gemma2", "gemma3"])
def test_a_prompt_longer_than_the_window_fills_the_cache_causally(case, tokens, tmp_path):
    """With a cache, LitGPT's Gemma 2 lets a prompt see what comes after it, and its Gemma 3 refuses such prompts."""
    theirs, folder = saved(case, tmp_path)
    model = load_model(folder)
    cache = KVCache(model.config, slots=2, length=LENGTH)
    rows = slice(0, 2)
    hidden = [model.hidden(tokens[:, :PROMPT], span=Span(cache, rows, [0, 0]))]
    for position in range(PROMPT, LENGTH):
        hidden.append(model.hidden(tokens[:, position : position + 1], span=Span(cache, rows, [position] * 2)))
    assert relative(model.head(torch.cat(hidden, dim=1)), theirs(tokens).logits) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("case", ["gemma2", "gemma3"])
def test_the_same_through_litgpts_own_interface(case, tokens, tmp_path):
    theirs, folder = saved(case, tmp_path)
    model = load_model(folder)
    model.set_kv_cache(batch_size=2, max_seq_length=LENGTH)
    logits = [model(tokens[:, :PROMPT], input_pos=torch.arange(PROMPT))]
    for position in range(PROMPT, LENGTH):
        logits.append(model(tokens[:, position : position + 1], input_pos=torch.tensor([position])))
    assert relative(torch.cat(logits, dim=1), theirs(tokens).logits) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("case", ["llama-yarn", "llama-yarn-mscale", "llama-yarn-untruncated"])
def test_yarn_stretches_what_turns_slowly(case, tokens, tmp_path):
    """LitGPT stretches what turns fast, and forgets that attention is to be sharpened."""
    theirs, folder = saved(case, tmp_path)
    assert relative(load_model(folder)(tokens), theirs(tokens).logits) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("case", ["olmo2", "gemma", "deepseek-v3", "llama4", "ministral3"])
def test_a_litgpt_folder_goes_back_to_hugging_face(case, tokens, tmp_path):
    """LitGPT stops with a KeyError at OLMo 2 and cannot convert DeepSeek, Llama 4 and Ministral 3."""
    import transformers

    theirs, folder = saved(case, tmp_path / "hf")
    first = load_file(folder / "model.safetensors")
    (to_litgpt(folder) / "model.safetensors").unlink()
    to_hf(folder, tmp_path / "back")
    last = load_file(tmp_path / "back" / "model.safetensors")
    assert first.keys() == last.keys() and all(torch.equal(first[name], last[name]) for name in first)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    assert torch.equal(again(tokens).logits, theirs(tokens).logits)


def test_gemma_2b_is_no_gemma_2():
    """LitGPT takes names that begin with `gemma-2` for Gemma 2, and converts `gemma-2b` with the wrong table."""
    config = Config.from_name("google/gemma-2b")
    assert config.family.architectures == ("GemmaForCausalLM",)
    assert Config.from_name("google/gemma-2-2b").family.architectures == ("Gemma2ForCausalLM",)
    names = GPT.skeleton(config).state_dict().keys()
    assert not any("post_attention_norm" in name or "post_mlp_norm" in name for name in names)


@torch.inference_mode()
def test_a_folder_called_gemma_2b_is_read_as_what_it_is(tokens, tmp_path):
    theirs, folder = saved("gemma", tmp_path / "gemma-2b")
    assert relative(load_model(folder)(tokens), theirs(tokens).logits) < 1e-5

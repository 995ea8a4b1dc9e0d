"""Small models that GGUF files can hold, with a tokenizer of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from litgpt.tokenizer import save_tokenizer
from tests.tiny import CASES

VOCABULARY = 320
TEXTS = ["Hello world, it's 12345!", "  two  spaces\n\n\tand a tab", "日本語 🙂 naïve", "<s>marked up</s>", "", " "]

AS_THEY_ARE = """
    llama llama-tied llama-biased llama-all-biases llama-multi-query llama-wide-heads llama-3-rope llama-linear-rope
    mistral mistral-window neox gpt2 gpt2-untied qwen2 qwen3 olmo olmo-clipped olmo2 gemma smollm3 mixtral qwen3-moe
    stablelm phi phi3 phi3-window phi4-mini-like glm4 falcon-7b-like falcon-40b-like falcon-11b-like granite llama-yarn
    gpt-oss olmo3 olmo3-yarn ministral3 deepseek-v3 deepseek-v3-yarn
"""
FAMILY_CASES: dict[str, dict[str, Any]] = {
    **{case: {} for case in AS_THEY_ARE.split()},
    "neox-one-after-the-other": {"hidden_act": "gelu"},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16},
    "deepseek-v2-lite-like": {"num_hidden_layers": 27},
    **{case: {} for case in "seed-oss ernie hunyuan hunyuan-moe arcee nemotron cohere".split()},
    "starcoder2": {"sliding_window": None},
    "granite-moe": {},
    "olmoe": {"clip_qkv": None, "num_key_value_heads": 4},  # as published; llama.cpp knows no other
    "exaone4-without-windows": {},
    "minimax-m2": {},
    "glm4-moe": {},
    "llama4": {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1},
}
"""Case of `tests.tiny` → what is changed so that llama.cpp has a name for it."""


def bpe_folder(folder: Path) -> Path:
    """A byte-level tokenizer of less than `VOCABULARY` tokens, special ones at both ends."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=296, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the world is all that is the case and it is 12345 times hello explaining"], trainer)
    tokenizer.add_tokens(
        [AddedToken("<|a|>", special=True), AddedToken("plain", special=False), AddedToken("</s>", special=True)]
    )
    template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    save_tokenizer(tokenizer, folder, bos_token="<s>", eos_token="</s>", chat_template=template)
    return folder


def hf_folder(case: str, folder: Path, tokenizer: Path, **changes: Any) -> Path:
    """A random `transformers` model with that tokenizer, as a Hugging Face folder."""
    import transformers

    name, settings = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**settings, "vocab_size": VOCABULARY, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder

"""Every family is whole: it has named sizes, a way its models are talked to, and is shared out or says why not."""

from __future__ import annotations

import pytest

from litgpt.config import Config
from litgpt.engine.tensor_parallel import check_divides
from litgpt.errors import LitGPTError
from litgpt.families import BY_NAME, FAMILIES
from litgpt.families.base import expand
from litgpt.model import GPT

PUBLISHED = [(family.name, expand(pattern)[0]) for family in FAMILIES for pattern in family.published]
UNSURE = "some of its settings stand in no class's defaults and in no table here"
UNNAMED = {
    "ministral": "its models are published as Mistral's",
    "llama4": "its RoPE and its tuning of queries differ from its class's defaults",
    "minicpm3": "it has a factor for each pair of dimensions",
    "phimoe": "it has a factor for each pair of dimensions",
    "laguna": "it says its layers one by one",
    "mellum": "it says its layers one by one",
    "minimax_m3": "it says its layers one by one",
    **dict.fromkeys(
        """
        hunyuan_v1_dense arcee jais2 youtu granite_swa hyperclovax granitemoeshared afmoe gemma4 gemma4_unified
        granitemoehybrid bamba glm_moe_dsa hunyuan_v1_moe granitemoe_swa cohere2_moe falcon_h1 kimi_linear mimo_v2_flash
        muse_glimmer
        """.split(),
        UNSURE,
    ),
}
"""Families without named sizes, and why."""

BILLIONS = {
    "Qwen3.5-0.8B": 0.75,
    "Qwen3.5-2B": 1.88,
    "Qwen3.5-4B": 4.21,
    "Qwen3.5-9B": 8.95,
    "Qwen3.5-27B": 26.9,
    "Qwen3.5-35B-A3B": 34.7,
    "Qwen3.5-122B-A10B": 122.1,
    "Qwen3.5-397B-A17B": 396.3,
    "LFM3-1.7B": 1.73,
    "LFM2-350M": 0.354,
    "LFM2-700M": 0.742,
    "LFM2-1.2B": 1.17,
    "LFM2-8B-A1B": 8.34,
    "nanochat-d32": 1.88,
    "bitnet-b1.58-2B-4T": 2.41,
    "FlexOlmo-7x7B-1T": 33.3,
    "Mistral-Small-4-119B-2603": 119,
    "Hy3-preview": 295,
    "DeepSeek-V3.2": 671.9,
    "Solar-Open-100B": 102.6,
    "gemma-3n-E4B": 6.84,
    "Mamba-Codestral-7B-v0.1": 7.29,
    "dots.llm1.base": 142.8,
    "K-EXAONE-236B-A23B": 236.6,
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31.6,
}
"""Parameters of the language model."""
CONTINUES = set(
    """
    gpt2 gpt_bigcode gptj codegen gpt_neo opt biogpt xglm bloom mpt helium vaultgemma persimmon openai-gpt ctrl mamba2
    starcoder2
    """.split()
)
"""Models that go on with a text; none of them was made to answer, or its template says how."""


def test_every_family_has_a_named_size_or_a_reason():
    named = {family.name for family in FAMILIES if family.named_sizes()}
    assert set(BY_NAME) - named == set(UNNAMED)


def test_no_name_is_two_sizes():
    names = [name for family in FAMILIES for name in family.named_sizes()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("family", "hub"), PUBLISHED)
def test_a_published_size_is_as_large_as_its_makers_say(family, hub):
    config = Config.from_name(hub)
    assert config.family_name == family and config == Config.from_name(hub.split("/")[1])
    assert GPT.skeleton(config).n_parameters() / 1e9 == pytest.approx(BILLIONS[hub.split("/")[1]], rel=0.01)


@pytest.mark.parametrize("name", sorted({family for family, _ in PUBLISHED}))
def test_a_published_size_goes_to_config_json_and_back(name):
    family = BY_NAME[name]
    for pattern in family.published:
        config = Config.from_name(expand(pattern)[0])
        again = Config.from_hf(family.write_hf(config))
        for field, value in config.computation().items():
            found = again.computation()[field]
            assert found == (pytest.approx(value) if isinstance(value, float) else value), field


def test_every_family_says_how_its_models_are_talked_to():
    """By a prompt style, or by the template that its models' tokenizers bring; else by LitGPT's default."""
    by_style = {family.name for family in FAMILIES if family.prompt_styles}
    assert not by_style & CONTINUES
    assert {style for name in by_style for _, style in BY_NAME[name].prompt_styles} <= set(styles())


def styles() -> list[str]:
    from litgpt.prompts import prompt_styles

    return list(prompt_styles)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES if family.named_sizes()])
def test_its_largest_size_is_shared_out_or_it_says_why_not(family):
    name = next(iter(BY_NAME[family].named_sizes()))
    config = Config.from_name(name)
    if not config.shared_kv_layers:
        config = Config.from_name(name, n_layer=min(6, config.n_layer))
    shares = [ranks for ranks in (2, 4, 8) if divides(GPT.skeleton(config), ranks)]
    kinds = config.recurrent or config.mixer_layers or config.streams or config.state_beside_attention
    assert shares or kinds or config.n_query_groups == 1 or config.n_head % 2 or (config.n_query_groups or 0) % 2, name


def divides(model: GPT, ranks: int) -> bool:
    try:
        check_divides(model, ranks)
    except LitGPTError as error:
        assert "one" in str(error) or "number that divides" in str(error)
        return False
    return True

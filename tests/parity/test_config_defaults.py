"""A key that `config.json` leaves out means what `transformers` takes it to mean, in every family."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litgpt.checkpoint.reader import load_model
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.families import FAMILIES
from tests.parity.test_families import relative
from tests.tiny import CASES, WIDE, hf_model, wide_ones_slow

BY_CLASS = {kind: case for case, (kind, _) in reversed(CASES.items())}
WIDE_KINDS = {kind for kind, _ in WIDE.values()}
KINDS = wide_ones_slow(BY_CLASS, WIDE_KINDS)
UNTURNED = """
GPT2Config GPTBigCodeConfig GPTNeoConfig OPTConfig BioGptConfig XGLMConfig BloomConfig MptConfig OpenAIGPTConfig
CTRLConfig GPTJConfig CodeGenConfig
""".split()
"""Those without rotary positions, or which say in another way how much rotates."""
SIZES = frozenset(
    "hidden_size intermediate_size num_attention_heads num_hidden_layers vocab_size n_embd n_layer n_head n_positions "
    "num_experts_per_tok linear_num_key_heads linear_num_value_heads num_layers num_heads n_inner d_model n_layers "
    "n_heads attention_heads ffn_dim dff".split()
)
"""Keys that every file has; without them a sentence says what is missing."""

APART = """
Gemma4TextConfig Gemma4UnifiedTextConfig SolarOpenConfig Glm4MoeLiteConfig Lfm3Config LagunaConfig MellumConfig
MiMoV2FlashConfig
""".split()
"""Each kind of layer has RoPE settings of its own; or theirs makes half a table and rotates whole heads by it."""


def as_theirs(kind: str, hf_config: dict[str, Any]) -> dict[str, Any] | None:
    """What `transformers` makes of a `config.json`; None: it refuses it."""
    import transformers

    try:
        return {**getattr(transformers, kind)(**hf_config).to_dict(), "architectures": hf_config["architectures"]}
    except Exception:  # whatever its validation raises
        return None


def read(hf_config: dict[str, Any]) -> Config | None:
    """Our configuration; None: it is refused, as a model of heads that don't divide is."""
    try:
        return Config.from_hf(hf_config)
    except LitGPTError:
        return None


@cache
def whole(kind: str) -> dict[str, Any]:
    import transformers

    config = getattr(transformers, kind)(**CASES[BY_CLASS[kind]][1])
    architecture = next(family.architectures[0] for family in FAMILIES if family.model_type == config.model_type)
    return {**config.to_dict(), "architectures": [architecture]}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_left_out_or_null_is_what_their_class_says(kind, data):
    full = whole(kind)
    keys = sorted(full.keys() - SIZES - {"architectures", "model_type"})
    nulls = data.draw(st.sets(st.sampled_from(keys), max_size=1))
    left_out = data.draw(st.one_of(st.sets(st.sampled_from(keys), max_size=2), st.sets(st.sampled_from(keys))))
    said = {key: None if key in nulls else value for key, value in full.items() if key not in left_out}
    theirs = as_theirs(kind, said)
    expected = theirs and read(theirs)
    if expected:
        assert Config.from_hf(said) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", BY_CLASS)
def test_every_single_key_left_out_or_null_is_what_their_class_says(kind):
    full = whole(kind)
    for key in full.keys() - SIZES - {"architectures", "model_type"}:
        for said in ({name: value for name, value in full.items() if name != key}, {**full, key: None}):
            theirs = as_theirs(kind, said)
            expected = theirs and read(theirs)
            if expected:
                assert read(said) == expected, key


@pytest.mark.parametrize(
    "kind", wide_ones_slow([kind for kind in BY_CLASS if kind not in (*UNTURNED, *APART)], WIDE_KINDS)
)
def test_a_share_of_heads_is_heeded_where_their_class_heeds_it(kind, tmp_path):
    _, said = CASES[BY_CLASS[kind]]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    if "rope_parameters" in said:
        rope = {**said["rope_parameters"], "partial_rotary_factor": 0.5}
    CASES["rotates half a head"] = kind, {**said, "rope_parameters": rope}
    try:
        model = hf_model("rotates half a head")
    finally:
        del CASES["rotates half a head"]
    model.save_pretrained(tmp_path)
    tokens = torch.randint(0, 96, (1, 20))
    with torch.inference_mode():
        if rope["rope_type"] != "default":  # theirs rotates a part with the table of the whole, and fails
            with pytest.raises(LitGPTError, match="partial_rotary_factor"):
                load_model(tmp_path)
        else:
            assert relative(load_model(tmp_path)(tokens), model(tokens).logits) < 1e-5

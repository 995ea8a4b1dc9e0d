"""An architecture that no family reads is refused in one short sentence that says why, where that is known."""

from __future__ import annotations

import pytest

from litgpt.config import Config
from litgpt.errors import UnsupportedError
from litgpt.families import BY_ARCHITECTURE
from litgpt.families.missing import missing


@pytest.mark.parametrize(
    ("hf_config", "said"),
    [
        ({"architectures": ["JetMoeForCausalLM"]}, "needs experts in the place of attention heads, which no"),
        ({"architectures": ["LlamaForMaskedLM"]}, "needs a head for another task"),
        ({"architectures": ["Unheard0fForCausalLM"]}, "^No model family here reads Unheard0fForCausalLM"),
        ({"model_type": "unheard-of"}, "No model family here reads model_type 'unheard-of'"),
        (
            {"architectures": ["LlavaForConditionalGeneration"], "text_config": {"model_type": "recurrent_gemma"}},
            "around a recurrent_gemma",
        ),
    ],
)
def test_the_sentence_says_what_is_missing(hf_config, said):
    with pytest.raises(UnsupportedError, match=said) as raised:
        Config.from_hf(hf_config)
    assert len(str(raised.value)) < 250


def test_nothing_that_is_read_is_said_to_be_missing():
    assert [name for name in BY_ARCHITECTURE if missing(name)] == []

"""What a checkpoint folder tells about talking to its model."""

from __future__ import annotations

import pytest
import torch

from litgpt.engine.inference_model import Speaker
from litgpt.errors import LitGPTError
from litgpt.prompts import Alpaca, PromptStyle
from tests.generate.folder import END, make_folder


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return Speaker.load(make_folder(tmp_path_factory.mktemp("speaker") / "tiny"), precision="32-true")


class Shout(PromptStyle):
    """A style written for LitGPT: a function of one prompt, and stop tokens of its own."""

    def apply(self, prompt, *, sys_prompt=None, **kwargs):
        return f"{prompt.upper()}!"

    def stop_tokens(self, tokenizer):
        return ([tokenizer.eos_id], [tokenizer.token_to_id("!"), tokenizer.token_to_id("!")], [None])


def test_the_chat_template_writes_prompts_and_conversations(speaker):
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert speaker.encode("Hi") == speaker.tokenizer.encode_ids(text, bos=False)
    messages = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")]
    decoded = speaker.tokenizer.decode(speaker.encode_messages(messages), skip_special_tokens=False)
    assert (
        decoded
        == "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"
    )
    assert speaker.multi_turn


def test_parts_of_text_are_one_text(speaker):
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    for style in (speaker.style, Shout()):
        same = Speaker(speaker.model, speaker.tokenizer, style)
        ids = [same.encode_messages([{"role": "user", "content": content}]) for content in (parts, "Hello")]
        assert ids[0] == ids[1]


def test_content_that_is_no_text_is_told(speaker):
    with pytest.raises(LitGPTError, match="A user message holds something other than text: 5"):
        Speaker(speaker.model, speaker.tokenizer, Shout()).encode_messages([{"role": "user", "content": 5}])


def test_answers_end_at_the_tokenizers_and_the_styles_stops(speaker):
    assert END in speaker.stops
    exclamation = speaker.tokenizer.token_to_id("!")
    shouting = Speaker(speaker.model, speaker.tokenizer, Shout())
    assert [END] in shouting.stops and [exclamation] * 2 in shouting.stops and [None] not in shouting.stops
    assert not shouting.multi_turn
    assert Speaker(speaker.model, speaker.tokenizer, Alpaca()).multi_turn


def test_a_system_prompt_that_the_style_has_no_place_for_is_told(speaker):
    with pytest.raises(LitGPTError, match="Shout has no place for a system prompt"):
        Speaker(speaker.model, speaker.tokenizer, Shout()).encode("Hi", sys_prompt="Be brief.")


@pytest.mark.parametrize(
    ("precision", "weights", "computed"),
    [
        ("32-true", torch.float32, torch.float32),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("bf16-mixed", torch.float32, torch.bfloat16),
        (None, torch.bfloat16, torch.bfloat16),
    ],
)
def test_precision_decides_weights_and_cache(tmp_path, precision, weights, computed):
    speaker = Speaker.load(make_folder(tmp_path / "tiny"), "cpu", precision)
    engine = speaker.engine()
    assert speaker.model.lm_head.weight.dtype == weights
    assert engine.cache.keys[0].dtype == computed
    assert len("".join(speaker.reply(engine, speaker.encode("Hi"), _greedy(), 5))) > 0


def test_an_engine_has_room_for_the_models_context(speaker):
    assert speaker.engine(2).length == 128
    assert speaker.engine(1, 40).length == 40
    assert speaker.engine(1, 4000).length == 128


def test_a_bad_stop_string_leaves_no_request_behind(speaker):
    engine = speaker.engine()
    with pytest.raises(LitGPTError, match="stop string"):
        speaker.reply(engine, [1], _greedy(), stop=[""])
    assert not engine.busy


def _greedy():
    from litgpt.engine.sampling import Sampling

    return Sampling(temperature=0)

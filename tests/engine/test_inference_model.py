"""What a checkpoint folder tells about talking to its model."""

from __future__ import annotations

import pytest
import torch

from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError, warn_once
from litgpt.prompts import Alpaca, PromptStyle
from tests.generate.folder import END, make_folder


@pytest.fixture(scope="module")
def inference_model(tmp_path_factory: pytest.TempPathFactory) -> InferenceModel:
    return InferenceModel.load(make_folder(tmp_path_factory.mktemp("speaker") / "tiny"), precision="32-true")


class Shout(PromptStyle):
    """A style written for LitGPT: a function of one prompt, and stop tokens of its own."""

    def apply(self, prompt, *, sys_prompt=None, **kwargs):
        return f"{prompt.upper()}!"

    def stop_tokens(self, tokenizer):
        return ([tokenizer.eos_id], [tokenizer.token_to_id("!"), tokenizer.token_to_id("!")], [None])


def test_the_chat_template_writes_prompts_and_conversations(inference_model):
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert inference_model.encode("Hi") == inference_model.tokenizer.encode_ids(text, bos=False)
    messages = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")]
    decoded = inference_model.tokenizer.decode(inference_model.encode_messages(messages), skip_special_tokens=False)
    assert (
        decoded
        == "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"
    )
    assert inference_model.multi_turn


def test_parts_of_text_are_one_text(inference_model):
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    for style in (inference_model.style, Shout()):
        same = InferenceModel(inference_model.model, inference_model.tokenizer, style)
        ids = [same.encode_messages([{"role": "user", "content": content}]) for content in (parts, "Hello")]
        assert ids[0] == ids[1]


def test_content_that_is_no_text_is_told(inference_model):
    with pytest.raises(LitGPTError, match="A user message holds something other than text: 5"):
        InferenceModel(inference_model.model, inference_model.tokenizer, Shout()).encode_messages(
            [{"role": "user", "content": 5}]
        )


def test_answers_end_at_the_tokenizers_and_the_styles_stops(inference_model):
    assert END in inference_model.stops
    exclamation = inference_model.tokenizer.token_to_id("!")
    shouting = InferenceModel(inference_model.model, inference_model.tokenizer, Shout())
    assert [END] in shouting.stops and [exclamation] * 2 in shouting.stops and [None] not in shouting.stops
    assert not shouting.multi_turn
    assert InferenceModel(inference_model.model, inference_model.tokenizer, Alpaca()).multi_turn


def test_a_system_prompt_that_the_style_has_no_place_for_is_left_out_with_one_warning(inference_model, capsys):
    warn_once.cache_clear()
    shouting = InferenceModel(inference_model.model, inference_model.tokenizer, Shout())
    for _ in range(2):
        assert shouting.encode("Hi", sys_prompt="Be brief.") == shouting.encode("Hi")
    assert capsys.readouterr().err.count("Shout has no place for a system prompt: it is left out.") == 1


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
    inference_model = InferenceModel.load(make_folder(tmp_path / "tiny"), "cpu", precision)
    engine = inference_model.engine()
    assert inference_model.model.lm_head.weight.dtype == weights
    assert engine.cache.keys[0].dtype == computed
    assert len("".join(inference_model.reply(engine, inference_model.encode("Hi"), _greedy(), 5))) > 0


def test_an_engine_has_room_for_the_models_context(inference_model):
    assert inference_model.engine(2).length == 128
    assert inference_model.engine(1, 40).length == 40
    assert inference_model.engine(1, 4000).length == 128


def test_a_bad_stop_string_leaves_no_request_behind(inference_model):
    engine = inference_model.engine()
    with pytest.raises(LitGPTError, match="stop string"):
        inference_model.reply(engine, [1], _greedy(), stop=[""])
    assert not engine.busy


def _greedy():
    from litgpt.engine.sampling import Sampling

    return Sampling(temperature=0)

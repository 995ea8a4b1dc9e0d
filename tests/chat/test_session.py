"""Turns, and what happens when they outgrow the context."""

from __future__ import annotations

import pytest

from litgpt.chat.session import ChatSession
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from tests.engine.test_inference_model import Shout
from tests.generate.folder import make_folder


@pytest.fixture(scope="module")
def inference_model(tmp_path_factory):
    return InferenceModel.load(make_folder(tmp_path_factory.mktemp("chat") / "tiny"), "cpu", "32-true")


def converse(inference_model, max_new_tokens=8, **settings):
    return ChatSession(inference_model, inference_model.engine(), Sampling(temperature=0), max_new_tokens, **settings)


def shown(session, reply):
    """What the model saw."""
    return session.inference_model.tokenizer.decode(reply.request.prompt, skip_special_tokens=False)


def take_turn(session, text):
    reply, n_dropped = session.ask(text)
    session.add_answer("".join(reply) or "x")
    return reply, n_dropped


def test_the_model_sees_the_earlier_turns(inference_model):
    session = converse(inference_model, system="Be kind.")
    take_turn(session, "One")
    session.messages[-1] = {"role": "assistant", "content": "Uno"}
    reply, _ = session.ask("Two")
    turns = [("system", "Be kind."), ("user", "One"), ("assistant", "Uno"), ("user", "Two")]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert shown(session, reply) == text + "<|im_start|>assistant\n"


def test_earlier_turns_are_not_computed_again(inference_model):
    session = converse(inference_model)
    first, _ = take_turn(session, "One")
    second, _ = take_turn(session, "Two")
    assert second.request.n_shared >= len(first.request.prompt)


def test_the_oldest_turns_go_when_the_context_is_full(inference_model):
    session = converse(inference_model, system="Be kind.")
    dropped = [take_turn(session, f"Question number {n}")[1] for n in range(6)]
    assert dropped[0] == 0 and set(dropped) == {0, 2}
    reply, _ = session.ask("Last")
    text = shown(session, reply)
    assert "Be kind." in text and "Last" in text and "number 0" not in text
    assert len(reply.request.prompt) + session.max_new_tokens <= session.engine.length + 1


def test_a_prompt_that_cannot_fit_leaves_the_conversation_as_it_was(inference_model):
    session = converse(inference_model)
    take_turn(session, "One")
    before = list(session.messages)
    with pytest.raises(LitGPTError, match="shorten the prompt"):
        session.ask("hay " * 200)
    assert session.messages == before


def test_an_empty_answer_takes_its_question_back(inference_model):
    session = converse(inference_model)
    session.ask("One")
    session.add_answer("")
    assert session.messages == []


def test_each_turn_draws_anew_and_the_whole_comes_again(inference_model):
    def said() -> list[str]:
        session = ChatSession(inference_model, inference_model.engine(), Sampling(seed=1), 20)
        answers = []
        for _ in range(2):
            answers.append("".join(session.ask("Hi")[0]))
            session.reset()
        return answers

    assert said() == said()
    assert len(set(said())) == 2


def test_a_style_of_single_prompts_gets_single_prompts(inference_model):
    session = converse(InferenceModel(inference_model.model, inference_model.tokenizer, Shout()))
    take_turn(session, "one")
    reply, n_dropped = session.ask("two")
    assert shown(session, reply) == "TWO!"
    assert n_dropped == 0

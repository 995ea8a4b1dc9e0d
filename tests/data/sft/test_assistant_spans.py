"""The seventy real chat templates: each tells what the assistant said, or is an error that names it.

The oracle is the words: what each speaker says occurs nowhere else, so an answer must be learned wherever the template
wrote it, and nothing of anybody else's ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from litgpt.data.sft.assistant_spans import AssistantSpans
from litgpt.data.sft.encoding import Encoder
from litgpt.data.sft.formats import parse_conversation
from litgpt.data.sft.rendering import GENERATION_MARK, Renderer
from litgpt.errors import LitGPTError
from litgpt.prompts import ChatTemplate
from litgpt.tokenizer import Tokenizer
from tests.paths import ROOT


def user(said: str) -> dict[str, Any]:
    return {"role": "user", "content": said}


def assistant(said: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": said, **more}


ASKED = ("uone Wq", "utwo Wk", "uthree Wj", "system Vv", "result Gg")
SAID = ("aone Zx", "atwo Zy", "athree Zz", "rone Hh", "rtwo Hj", "Ulmcity")
SYSTEM = {"role": "system", "content": ASKED[3]}
CITY = {"type": "string", "description": "a city"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells it.",
            "parameters": {"type": "object", "properties": {"city": CITY}, "required": ["city"]},
        },
    }
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": SAID[5]}}}
RESULT = {"role": "tool", "content": ASKED[4], "name": "get_weather", "tool_call_id": "abcdefghi"}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "turns": [user(ASKED[0]), assistant(SAID[0]), user(ASKED[1]), assistant(SAID[1])],
    "six": [
        *(user(ASKED[0]), assistant(SAID[0]), user(ASKED[1])),
        *(assistant(SAID[1]), user(ASKED[2]), assistant(SAID[2])),
    ],
    "system": [SYSTEM, user(ASKED[0]), assistant(SAID[0]), user(ASKED[1]), assistant(SAID[1])],
    "reasoning": [
        *(user(ASKED[0]), assistant(SAID[0], reasoning_content=SAID[3])),
        *(user(ASKED[1]), assistant(SAID[1], reasoning_content=SAID[4])),
    ],
    "thoughts in the text": [
        *(user(ASKED[0]), assistant(f"<think>\n{SAID[3]}\n</think>\n\n{SAID[0]}")),
        *(user(ASKED[1]), assistant(f"<think>\n{SAID[4]}\n</think>\n\n{SAID[1]}")),
    ],
    "calls": [user(ASKED[0]), assistant("", tool_calls=[CALL]), RESULT, assistant(SAID[0])],
    "calls among turns": [
        *(SYSTEM, user(ASKED[0]), assistant("", reasoning_content=SAID[3], tool_calls=[CALL])),
        *(RESULT, assistant(SAID[0]), user(ASKED[1]), assistant(SAID[1])),
    ],
    "assistant first": [assistant(SAID[0]), user(ASKED[1]), assistant(SAID[1])],
    "user last": [user(ASKED[0]), assistant(SAID[0]), user(ASKED[1])],
    "white space": [user(f"{ASKED[0]}\n"), assistant(f"\n {SAID[0]}\n"), user(ASKED[1]), assistant(f" {SAID[1]} \n")],
    "an empty answer": [user(ASKED[0]), assistant(""), user(ASKED[1]), assistant(SAID[1])],
}
CALLS = ("calls", "calls among turns")
WITHOUT_TOOLS = tuple(name for name in CONVERSATIONS if name not in CALLS)
REFUSED: dict[str, tuple[str, ...]] = {
    "CohereForAI-c4ai-command-r-plus-tool_use": WITHOUT_TOOLS,
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": WITHOUT_TOOLS,
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": WITHOUT_TOOLS,
    "Apertus-8B-Instruct": CALLS,  # goes on after a call as if nothing came in between
    "HuggingFaceTB-SmolLM3-3B": CALLS,
    "Kimi-K2-Instruct": CALLS,
    "Kimi-K2-Thinking": CALLS,
    "LFM2-8B-A1B": CALLS,
    "LFM2.5-Instruct": CALLS,
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": CALLS,
    "ibm-granite-granite-3.3-2B-Instruct": CALLS,
    "llama-cpp-deepseek-r1": CALLS,  # fails for transformers, too
    "llama-cpp-rwkv-world": CALLS,
    "microsoft-Phi-3.5-mini-instruct": CALLS,
    "google-gemma-2-2b-it": (*CALLS, "system", "assistant first"),
    "Mistral-Small-3.2-24B-Instruct-2506": ("assistant first",),
    # writes the system's words only where the user spoke last
    "mistralai-Mistral-Nemo-Instruct-2407": ("assistant first", "system", "calls among turns"),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("assistant first", "an empty answer"),
    "Qwen3.5-4B": ("assistant first",),
}
"""What templates can't write, or don't tell the answers of; all else is to be learned."""


def row_of(conversation: str) -> dict[str, Any]:
    tools = {"tools": TOOLS} if conversation.startswith("calls") else {}
    # What one of the templates reads instead of tools.
    functions = {"chat_template_kwargs": {"functions": "[]", "datetime": "Monday"}}
    return {"messages": CONVERSATIONS[conversation], **tools, **functions}


def faults(text: str, learned: Sequence[str], conversation: str) -> list[str]:
    """What is wrong with what is learned of a text."""
    said = repr([message for message in CONVERSATIONS[conversation] if message["role"] == "assistant"])
    found = [f"{words!r} is learned" for words in ASKED if any(words in span for span in learned)]
    for words in (words for words in SAID if words in said):
        wrote, learned_of_it = text.count(words), sum(span.count(words) for span in learned)
        if wrote != learned_of_it:
            found.append(f"{words!r} stands there {wrote} times, and is learned {learned_of_it} times")
        if not wrote and words in ("aone Zx", "atwo Zy", "athree Zz", "Ulmcity"):
            found.append(f"{words!r} is not there")
    return found


@pytest.mark.parametrize("number", range(70))
def test_every_answer_is_learned_and_nothing_else_or_it_is_an_error(shared_assets: Path, number: int) -> None:
    file = sorted((shared_assets / "chat_templates").glob("*.jinja"))[number]
    source = file.read_text(encoding="utf-8")
    for conversation in CONVERSATIONS:
        renderer = Renderer(ChatTemplate.from_source(source, bos_token="<s>", eos_token="</s>"))
        try:
            (part,) = renderer.render(parse_conversation(row_of(conversation))).parts
        except LitGPTError as error:
            assert conversation in REFUSED.get(file.stem, ()), (conversation, error)
            assert str(error).startswith("The chat template")
            continue
        assert conversation not in REFUSED.get(file.stem, ()), conversation
        assert not isinstance(part.target, bool)
        learned = [part.text[start:end] for start, end in part.target]
        assert not faults(part.text, learned, conversation), (conversation, learned)


ICONS = "\ue000\uf8ff\U000f0000\U000f0001\U000f0004\U000f1af0\U00100000\U0010fffd"
"""Private-use characters, such as fonts of icons have."""


@pytest.mark.parametrize("number", range(70))
def test_icons_change_nothing(shared_assets: Path, number: int) -> None:
    """Whatever characters the texts have, the same words are learned as with letters in their place."""
    file = sorted((shared_assets / "chat_templates").glob("*.jinja"))[number]
    renderer = Renderer(ChatTemplate.from_source(file.read_text(encoding="utf-8"), bos_token="<s>", eos_token="</s>"))
    letters = str.maketrans(ICONS, "ÀÈÌÒÙÂÊÎ")

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return value.translate(letters)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    for conversation in ("turns", "six", "calls among turns"):
        row = row_of(conversation)
        row["messages"] = [{**m, "content": f"{m['content']} {ICONS} x"} for m in row["messages"]]
        found: list[Any] = []
        for given in (row, plain(row)):
            try:
                found.append(renderer.render(parse_conversation(given)).parts[0])
            except LitGPTError:
                found.append(None)
        one, other = found
        assert (one is None) == (other is None), conversation
        assert one is None or (one.text.translate(letters), one.target) == (other.text, other.target)


@pytest.mark.parametrize("number", range(70))
def test_alike_turns_are_found_alike(shared_assets: Path, number: int) -> None:
    """In a long conversation answers are told by what surrounds them; here each is looked for by itself."""
    file = sorted((shared_assets / "chat_templates").glob("*.jinja"))[number]
    style = ChatTemplate.from_source(file.read_text(encoding="utf-8"), bos_token="<s>", eos_token="</s>")
    messages = [message for turn in range(6) for message in (user(f"u{turn}"), assistant(f"a{turn}" * (turn % 3 + 1)))]
    template = style.template("default")

    def write(said: Sequence[Any], prompted: bool) -> str:
        return template.render(said, add_generation_prompt=prompted, functions="[]", datetime="Monday")

    try:
        together = AssistantSpans(messages, write)
    except LitGPTError:
        assert REFUSED[file.stem] == WITHOUT_TOOLS
        return
    for place in range(1, len(messages), 2):
        alone = AssistantSpans(messages, write)
        expected = alone.search(place)
        assert expected is not None
        assert together.span(place) == expected


def test_templates_with_marks_have_the_mask_of_transformers(shared_assets: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    assets = ROOT / "litgpt" / "assets" / "austen-2m"
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(assets / "tokenizer.json"))
    tokenizer, compared = Tokenizer(assets), 0
    for file in sorted((shared_assets / "chat_templates").glob("*.jinja")):
        source = file.read_text(encoding="utf-8")
        if not GENERATION_MARK.search(source):
            continue
        renderer = Renderer(ChatTemplate.from_source(source))
        for conversation in CONVERSATIONS:
            row = row_of(conversation)
            ((ids, spans),) = Encoder(renderer.style, tokenizer).encode([renderer.render(parse_conversation(row))])
            expected = theirs.apply_chat_template(
                row["messages"],
                tools=row.get("tools"),
                chat_template=source,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            assert ids == expected["input_ids"]
            mask = [int(any(start <= place < end for start, end in spans)) for place in range(len(ids))]
            assert mask == expected["assistant_masks"]
            compared += 1
    assert compared >= 40

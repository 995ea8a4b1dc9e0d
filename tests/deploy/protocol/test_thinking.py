"""Thoughts at the beginning of answers, told from what follows them."""

from __future__ import annotations

import pytest

from litgpt.deploy.protocol.notations import FORMATS
from litgpt.deploy.protocol.thinking import TAGS, ContentParser, ThoughtParser, tags_of
from litgpt.deploy.protocol.tool_calls import DeltaMessage, ToolCallParser

CALL = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
CASES = [
    ("{open}\nHm.\n{close}\n\nHay.", False, "Hm.", "Hay."),
    (" \n{open}Hm.\n So.{close}Hay. ", False, "Hm.\n So.", "Hay. "),
    ("Hm.\n{close}\n\nHay.", True, "Hm.", "Hay."),
    ("\n Hm. \n", True, "Hm.", ""),
    ("{open}{close}Hay.", False, "", "Hay."),
    ("{open}", False, "", ""),
    ("Hay.", False, "", "Hay."),
    (" Hay.", False, "", " Hay."),
    (" ", False, "", " "),
    ("", False, "", ""),
    ("Hay. {open}Hm.{close}", False, "", "Hay. {open}Hm.{close}"),
    ("{open}Hm. " + CALL + "{close}" + CALL, False, "Hm. " + CALL, ""),
]


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize(("text", "inside", "thought", "said"), CASES)
def test_a_thought_is_parted_from_what_is_said_however_it_comes(tags, text, inside, thought, said):
    text, thought, said = (
        part.replace("{open}", tags[0]).replace("{close}", tags[1]) for part in (text, thought, said)
    )
    notation = next(known for known in FORMATS if "<tool_call>" in known.starts)
    for size in range(1, 10):
        rest = ToolCallParser(notation, {"weather"}) if CALL in text else ContentParser()
        parser, message = ThoughtParser(tags, inside, rest), DeltaMessage()
        for at in range(0, len(text), size):
            message += parser.push(text[at : at + size])
        message += parser.close()
        assert (message.reasoning, message.content) == (thought, said), size
        assert [call.name for call in message.calls] == ["weather"] * (CALL in text)


def test_the_tags_of_templates_are_found(shared_assets):
    folder = shared_assets / "chat_templates"
    found = {path.stem: tags_of(path.read_text(encoding="utf-8")) for path in folder.glob("*.jinja")}
    assert sum(tags is not None for tags in found.values()) >= 35
    expected = {"Qwen-Qwen3-0.6B": 0, "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": 0, "ByteDance-Seed-OSS": 2}
    expected |= {"mistralai-Ministral-3-14B-Reasoning-2512": 1, "MiniMax-M3": 3}
    assert {name: found[name] for name in expected} == {name: TAGS[at] for name, at in expected.items()}
    assert found["meta-llama-Llama-3.1-8B-Instruct"] is None is found["Qwen-Qwen2.5-7B-Instruct"]

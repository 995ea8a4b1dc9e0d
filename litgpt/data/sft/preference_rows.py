"""How a row of a data file becomes answers of which one is preferred, or single ones that are wanted or not.

| format | keys |
|---|---|
| TRL | `chosen`, `rejected`, with `prompt` or without: texts or messages |
| ShareGPT | `conversations`, and `chosen` and `rejected`, a turn each |
| Alpaca | `instruction`, perhaps `input`, and `chosen` and `rejected` |
| Anthropic | `chosen` and `rejected`, each a whole talk, its turns after `Human:` and `Assistant:` |
| KTO | `label`, with a prompt and its completion, or a conversation whose last answer it is of |

Without a prompt, it is what chosen and rejected begin with alike. Keys and roles are spelled as `formats` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from litgpt.data.sft.encoding import BrokenRow
from litgpt.data.sft.formats import (
    CONVERSATION_KEYS,
    PROMPT_KEYS,
    Conversation,
    Row,
    RowKeys,
    conversation_of,
    messages_at,
    messages_of,
    parse_conversation,
    question_at,
)
from litgpt.errors import LitGPTError, quoted
from litgpt.prompts.base import Message

CHOSEN, REJECTED, WANTED, UNWANTED = 1, 2, 3, 4
"""What an answer is: of a pair, or a single one."""
CHOSEN_KEYS, REJECTED_KEYS = ("chosen", "chosen_response"), ("rejected", "rejected_response")
LABEL_KEYS = ("label", "kto_tag")
LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}

Answers = Sequence[tuple[int, Conversation]]


def parse_preference(row: Row) -> Answers:
    """The pair, or the single answer, in a row of any known format: what each is, and the conversation that ends with
    it, in which nothing else of the assistant's is a target.

    Raises:
        BrokenRow: There is nothing to prefer: equal or empty answers, or different prompts.
        LitGPTError: The keys are of no format, or a value is not of the type that belongs there.
    """
    keys = RowKeys(row)
    for has in (keys.filled, keys.present):  # what is empty is a cell of another format, if one is filled
        if has(*CHOSEN_KEYS) or has(*REJECTED_KEYS):
            return _pair(keys)
        if has(*LABEL_KEYS):
            return _single(keys)
    raise LitGPTError(
        f"no preference (its keys: {keys.shown}); a pair has `chosen` and `rejected`, a single answer has a `label`, "
        "and data.columns renames keys."
    )


def _single(keys: RowKeys) -> Answers:
    label = keys.take(*LABEL_KEYS)
    wanted = LABELS.get(str(keys.row[str(label)]).strip().casefold())
    if wanted is None:
        raise LitGPTError(f"{quoted(label)} is true or false, not {quoted(keys.row[str(label)])}.")
    row = {key: value for key, value in keys.row.items() if key != label}
    prompt = RowKeys(row).take(*PROMPT_KEYS)
    if prompt is not None and isinstance(row[prompt], str) and (talk := transcript(row[prompt])):
        row[prompt] = _without_opening(talk)
    found = parse_conversation(row)
    if found.text is not None:
        raise LitGPTError("a `label` is of an answer, and this row is plain text; give `prompt` and `completion`.")
    asked = [at for at, message in enumerate(found.messages) if message["role"] in ("user", "system")]
    conversation = _answer_from(found, asked[-1] + 1 if asked else 0, "the answer")
    return [(WANTED if wanted else UNWANTED, conversation)]


def _pair(keys: RowKeys) -> Answers:
    names = keys.take(*CHOSEN_KEYS), keys.take(*REJECTED_KEYS)
    for name, wanted in zip(names, ("chosen", "rejected"), strict=True):
        if name is None:
            raise LitGPTError(f"the pair has no key {quoted(wanted)} (its keys: {keys.shown}).")
    sides = [_messages(keys, str(name), "assistant") for name in names]
    whole = [not _is_answer(keys, side) for side in sides]
    if any(whole) and not all(whole):
        raise LitGPTError(
            "`chosen` and `rejected` are both whole conversations, or both answers; this row has one each."
        )
    prompt, context = _prompt(keys, whole[0])
    if prompt is None and not whole[0]:
        prompt, *sides = _split_texts(*sides)
    if any(isinstance(value, str) and transcript(value) for value in keys.row.values()):
        sides = [[_stripped(message) for message in side] for side in sides]
    conversations = [conversation_of(keys, [*(prompt or ()), *side], context) for side in sides]
    conversations = [replace(each, unread=keys.unread) for each in conversations]
    chosen, rejected = conversations
    start = len(chosen.messages) - len(sides[0]) if not whole[0] else _common(chosen.messages, rejected.messages)
    if _said(chosen.messages) == _said(rejected.messages):
        raise BrokenRow("`chosen` and `rejected` are the same")
    if whole[0]:
        _check_prompt(keys, chosen.messages[:start])
    return [
        (kind, _answer_from(each, start, f"the `{name}` answer"))
        for kind, each, name in zip((CHOSEN, REJECTED), conversations, ("chosen", "rejected"), strict=True)
    ]


def _prompt(keys: RowKeys, whole: bool) -> tuple[list[Any] | None, tuple[str, str] | None]:
    """The messages that both answers follow, and what the last is about; None: they are in the answers themselves."""
    if whole:
        return None, None
    if keys.present(*CONVERSATION_KEYS):
        return messages_of(keys), None
    for names in (("instruction",), PROMPT_KEYS):
        prompt = keys.take(*names)
        if prompt is not None:
            asked, context = question_at(keys, prompt, names)
            value = keys.row[prompt]
            talk = transcript(value) if isinstance(value, str) and names == PROMPT_KEYS else None
            return (_without_opening(talk) if talk else asked), context
    return None, None


def _messages(keys: RowKeys, name: str, role: str) -> list[Any]:
    value = keys.row[name]
    return (transcript(value) if isinstance(value, str) else None) or messages_at(keys.row, name, role)


def _is_answer(keys: RowKeys, messages: Sequence[Any]) -> bool:
    """Whether messages begin with what the assistant says."""
    if not messages:
        raise BrokenRow("an answer is empty")
    return bool(conversation_of(RowKeys({}), messages[:1]).messages[0]["role"] == "assistant")


def _split_texts(chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Two texts that begin alike: the prompt, up to a space, and what follows it."""
    texts = [conversation_of(RowKeys({}), side).messages[0]["content"] for side in (chosen, rejected)]
    if texts[0] == texts[1]:
        raise BrokenRow("`chosen` and `rejected` are the same")
    alike = texts[0][: _common(*texts)]
    if not all(len(text) == len(alike) or text[len(alike)].isspace() for text in texts):  # not within a word
        alike = re.sub(r"\S+\Z", "", alike)
    if not alike.strip():
        raise LitGPTError("`chosen` and `rejected` answer `prompt` or `conversations`, of which there is none.")
    one, other = ([{"role": "assistant", "content": text[len(alike) :].strip()}] for text in texts)
    return [{"role": "user", "content": alike.strip()}], one, other


def _common(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """How many messages, or characters, both begin with alike."""
    alike = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        alike += 1
    return alike


def _check_prompt(keys: RowKeys, shared: Sequence[Message]) -> None:
    """Raises a BrokenRow where a prompt beside whole conversations is not one of what they share."""
    name = keys.take(*PROMPT_KEYS)
    if name is None:
        return
    given = _without_opening(_messages(keys, name, "user"))
    asked = conversation_of(RowKeys({}), given).messages if given else ()
    contents = [str(message.get("content")).strip() for message in shared]
    if any(str(message.get("content")).strip() not in contents for message in asked):
        raise BrokenRow(f"{quoted(name)} and what `chosen` and `rejected` answer are different prompts")


def _answer_from(conversation: Conversation, start: int, what: str) -> Conversation:
    """A conversation whose targets are the assistant's messages from `start` on."""
    messages = conversation.messages
    answer = messages[start:]
    if not answer or not any(_is_filled(message) for message in answer):
        raise BrokenRow(f"{what} is empty")
    if answer[0]["role"] != "assistant":
        raise BrokenRow("`chosen` and `rejected` answer different prompts")
    if not start:
        raise BrokenRow(f"{what} answers nothing")
    before = {at for at, message in enumerate(messages[:start]) if message["role"] == "assistant"}
    return replace(conversation, masked=conversation.masked | before)


def _is_filled(message: Message) -> bool:
    content = message.get("content")
    return bool(message.get("tool_calls") or (content.strip() if isinstance(content, str) else content))


def _said(messages: Sequence[Message]) -> list[Message]:
    """Messages without white space around their texts."""
    return [
        {**message, "content": content.strip() if isinstance(content := message.get("content"), str) else content}
        for message in messages
    ]


def transcript(text: str) -> list[Message] | None:
    """The messages of a talk whose turns follow `Human:` and `Assistant:`, as Anthropic's files have it; None where it
    is none. Turns of one speaker that follow each other are one message."""
    if re.match(r"\s*Human:", text) is None:
        return None
    _, *parts = SPEAKER.split(text)
    messages = list[dict[str, Any]]()
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        role, content = SPEAKERS[speaker], said.strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content}".strip()
        else:
            messages.append({"role": role, "content": content})
    return list(messages)


def _stripped(message: Any) -> Any:
    """A message of a talk, which has a space after each `Assistant:`."""
    said = message.get("content") if isinstance(message, dict) else None
    return {**message, "content": said.strip()} if isinstance(said, str) else message


def _without_opening(messages: list[Any]) -> list[Any]:
    """Without the assistant's empty turn at the end, where the answer goes."""
    last = messages[-1] if messages else None
    opens = isinstance(last, dict) and last.get("role") == "assistant" and not last.get("content")
    return messages[:-1] if opens else messages

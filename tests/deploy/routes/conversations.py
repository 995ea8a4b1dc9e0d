"""One conversation in the words of three protocols, and the answer back out of each."""

from __future__ import annotations

import json
from typing import Any

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools> answer with <tool_call>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' ~ m.tool_call_id if m.tool_call_id }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call {{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
ABOUT = "What the weather will be."
CHAT_TOOLS = [{"type": "function", "function": {"name": "weather", "description": ABOUT, "parameters": SCHEMA}}]
ANTHROPIC_TOOLS = [{"name": "weather", "description": ABOUT, "input_schema": SCHEMA}]
RESPONSES_TOOLS = [{"type": "function", "name": "weather", "description": ABOUT, "parameters": SCHEMA, "strict": True}]

Messages = list[dict[str, Any]]
Answer = tuple[str, str, list[tuple[str, Any]]]
"""What is said, what is thought, and what is called: name and arguments."""


def as_anthropic(messages: Messages) -> dict[str, Any]:
    """The conversation as `system` and `messages`."""
    found: dict[str, Any] = {"messages": []}
    for message in messages:
        content, role = message["content"], message["role"]
        if role == "system":
            found["system"] = content
            continue
        blocks = [{"type": "text", "text": content}] if content else []
        if role == "tool":
            blocks = [{"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": content}]
        if "reasoning_content" in message:
            blocks.insert(0, {"type": "thinking", "thinking": message["reasoning_content"], "signature": "s"})
        for call in message.get("tool_calls", []):
            called = call["function"]
            given = {"name": called["name"], "input": json.loads(called["arguments"])}
            blocks.append({"type": "tool_use", "id": call["id"], **given})
        role = "assistant" if role == "assistant" else "user"
        if found["messages"] and found["messages"][-1]["role"] == role:
            found["messages"][-1]["content"] += blocks
        else:
            found["messages"].append({"role": role, "content": blocks})
    return found


def as_items(messages: Messages) -> dict[str, Any]:
    """The conversation as `instructions` and `input`."""
    found: dict[str, Any] = {"input": []}
    for message in messages:
        content, role = message["content"], message["role"]
        if role == "system":
            found["instructions"] = content
        elif role == "tool":
            output = {"call_id": message["tool_call_id"], "output": content}
            found["input"].append({"type": "function_call_output", **output})
        elif role == "user":
            found["input"].append({"role": role, "content": [{"type": "input_text", "text": content}]})
        else:
            if "reasoning_content" in message:
                thought = [{"type": "reasoning_text", "text": message["reasoning_content"]}]
                found["input"].append({"type": "reasoning", "id": "rs", "summary": [], "content": thought})
            if content:
                said = [{"type": "output_text", "text": content, "annotations": []}]
                item = {"type": "message", "id": "msg", "status": "completed", "role": role, "content": said}
                found["input"].append(item)
            for call in message.get("tool_calls", []):
                found["input"].append({"type": "function_call", "call_id": call["id"], **call["function"]})
    return found


def of_chat(choice: Any) -> Answer:
    """The answer in a chat completion."""
    message = choice.message
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]
    return message.content or "", getattr(message, "reasoning_content", ""), calls


def of_chunks(chunks: Any) -> Answer:
    """The answer in the chunks of a chat completion."""
    said, thought, calls = "", "", []
    for chunk in chunks:
        for choice in chunk.choices:
            said += choice.delta.content or ""
            thought += getattr(choice.delta, "reasoning_content", "")
            calls += [(c.function.name, json.loads(c.function.arguments)) for c in choice.delta.tool_calls or []]
    return said, thought, calls


def of_message(message: Any) -> Answer:
    """The answer in a message of Anthropic's."""
    said = "".join(block.text for block in message.content if block.type == "text")
    thought = "".join(block.thinking for block in message.content if block.type == "thinking")
    return said, thought, [(block.name, block.input) for block in message.content if block.type == "tool_use"]


def of_response(response: Any) -> Answer:
    """The answer in a response."""
    thoughts = [part.text for item in response.output if item.type == "reasoning" for part in item.content]
    calls = [(item.name, json.loads(item.arguments)) for item in response.output if item.type == "function_call"]
    return response.output_text, "".join(thoughts), calls

"""`POST /v1/chat/completions`: a conversation's next message, whole or as it comes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request, Response

from litgpt.deploy.backends.task import LEAST_LOGPROB, News, TokenNote, Work, token_text
from litgpt.deploy.protocol import channels
from litgpt.deploy.protocol.channels import ChannelReader
from litgpt.deploy.protocol.errors import JSON, Problem
from litgpt.deploy.protocol.events import Usage, events, finish_reason, stream_response
from litgpt.deploy.protocol.parsing import (
    characters,
    check_form,
    choices_of,
    encode,
    form_of,
    render,
    sampling_of,
    stops_of,
)
from litgpt.deploy.protocol.schemas import ChatRequest, Tool, ToolChoice
from litgpt.deploy.protocol.tool_calls import Call, CallReader, Parted, ToolFormat, forced_schema, format_of
from litgpt.deploy.served_models import Voice
from litgpt.deploy.service import Live, Service
from litgpt.prompts import ChatTemplate


@dataclass
class Order:
    """A request, understood."""

    body: ChatRequest
    voice: Voice
    works: list[Work]
    notation: ToolFormat | None = None
    """How calls are written, where there are tools."""
    names: frozenset[str] = frozenset()
    forced: str | None = None
    """What the answer begins with that has to be a call."""
    in_channels: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> dict[str, Any]:
        """What every answer, and every piece of one, begins with."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}

    def reader(self) -> CallReader | ChannelReader | None:
        """What parts an answer; None: all of it is said."""
        if self.in_channels:
            return ChannelReader(self.names)
        if self.notation is None:
            return None
        reader = CallReader(self.notation, self.names)
        if self.forced:
            reader.push(self.forced)
        return reader


class Choice:
    """One answer as it comes: what is said, called and thought, and how likely each token was."""

    def __init__(self, order: Order) -> None:
        self._reader = order.reader()
        self._only_one = order.body.parallel_tool_calls is False or order.forced is not None
        self.text = self.thought = ""
        self.calls: list[Call] = []
        self.notes: list[TokenNote] = []
        self.reason: str | None = None
        self.begun = False

    def take(self, news: News) -> Parted:
        """What is new in it."""
        parted = Parted(news.text) if self._reader is None else self._reader.push(news.text)
        if news.finish_reason is not None and self._reader is not None:
            parted += self._reader.close()
        if self._only_one:
            parted = replace(parted, calls=parted.calls[: 1 - len(self.calls)])
        self.text += parted.said
        self.thought += parted.thought
        self.calls += parted.calls
        self.notes += news.notes
        if news.finish_reason is not None:
            reason = finish_reason(news.finish_reason)
            self.reason = "tool_calls" if self.calls and reason == "stop" else reason
        return parted

    def message(self) -> dict[str, Any]:
        """It as a whole."""
        more: dict[str, Any] = {"tool_calls": [call.told() for call in self.calls]} if self.calls else {}
        if self.thought:
            more["reasoning_content"] = self.thought
        return {"role": "assistant", "content": self.text or (None if self.calls else ""), "refusal": None, **more}


def make_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http: Request) -> Response:
        """The next message of a conversation."""
        order = await service.prepare(lambda: understand(service, body))
        live = service.live(http)
        order.id = f"chatcmpl-{live.record.id}"
        live.record.stream = bool(body.stream)
        await live.begin(order.works)
        if body.stream:
            return stream_response(events(pieces(order, live), live))
        return JSON(await whole(order, live))

    return router


def understand(service: Service, body: ChatRequest) -> Order:
    """From the body to the work.

    Raises:
        Problem: Something in it can't be done.
    """
    voice = service.voice(body.model)
    if body.top_logprobs and not body.logprobs:
        raise Problem(400, "top_logprobs needs logprobs to be true.", "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise Problem(400, "stream_options needs stream to be true.", "stream_options")
    service.check_length(characters(body.messages), "messages")
    sampling = sampling_of(body, voice, service.sampling, (body.top_logprobs or 0) if body.logprobs else None)
    tools = [] if body.tool_choice == "none" else body.tools or []
    text = render(voice, body.messages, tools, variables_of(body, voice))
    order = Order(body, voice, [])
    form = form_of(body.response_format, voice)
    if tools:
        order.notation, order.names = notation_of(voice), frozenset(tool.function.name for tool in tools)
        form = _force(order, tools, form)
    elif isinstance(body.tool_choice, ToolChoice) or body.tool_choice == "required":
        raise Problem(400, "tool_choice asks for a tool, and there are no tools.", "tool_choice")
    prompt = encode(service, voice, text + (order.forced or ""), "messages")
    order.in_channels = _template_has(voice, channels.SIGN)
    shown = channels.MARKS if order.in_channels else order.notation.shown if order.notation is not None else ()
    limit = body.max_completion_tokens or body.max_tokens
    stops = stops_of(body, service)
    work = Work(voice.name, prompt, sampling, limit, stops, form, shown, bool(body.ignore_eos))
    order.works = works_of(work, choices_of(body, service))
    return order


def works_of(work: Work, n: int) -> list[Work]:
    """The same work `n` times; seeds count up."""
    return [replace(work, sampling=work.sampling.of_sample(i)) for i in range(n)]


def variables_of(body: ChatRequest, voice: Voice) -> dict[str, Any]:
    """What else a chat template reads."""
    given = dict(body.chat_template_kwargs or {})
    taken = {"messages", "tools", "add_generation_prompt"} & given.keys()
    if taken:
        name = sorted(taken)[0]
        raise Problem(400, f"chat_template_kwargs has no place for {name}.", f"chat_template_kwargs.{name}")
    if body.reasoning_effort is not None:
        style = voice.inference_model.style
        source = style.template().source if isinstance(style, ChatTemplate) else ""
        if "reasoning_effort" not in source and "enable_thinking" in source:  # on or off is all that it knows
            given.setdefault("enable_thinking", body.reasoning_effort != "none")
        else:
            given.setdefault("reasoning_effort", body.reasoning_effort)
    return given


def notation_of(voice: Voice) -> ToolFormat | None:
    """How this model writes calls; None: nobody knows, and they stay text."""
    style = voice.inference_model.style
    return format_of(style.template("tool_use").source) if isinstance(style, ChatTemplate) else None


def _template_has(voice: Voice, sign: str) -> bool:
    style = voice.inference_model.style
    return isinstance(style, ChatTemplate) and sign in style.template().source


def _force(order: Order, tools: Sequence[Tool], form: str | None) -> str | None:
    """Sets up an answer that has to be a call; the schema of the answer."""
    choice = order.body.tool_choice
    if choice in (None, "auto"):
        return form
    wanted = [tool.function for tool in tools]
    if isinstance(choice, ToolChoice):
        wanted = [function for function in wanted if function.name == choice.function.name]
        if not wanted:
            raise Problem(400, f"There is no tool {choice.function.name[:64]!r} to choose.", "tool_choice")
    if form is not None:
        raise Problem(400, "tool_choice and response_format can't both say what the answer is.", "tool_choice")
    if order.notation is None or order.notation.forced is None:
        raise Problem(
            400, "How this model writes calls is not known well enough to ask for one; use auto.", "tool_choice"
        )
    order.forced = order.notation.forced
    order.notation = _open_ended(order.notation)
    schema = forced_schema(order.notation, [function.model_dump(exclude_none=True) for function in wanted])
    return check_form(schema, order.voice, "tools")


def _open_ended(notation: ToolFormat) -> ToolFormat:
    """A call that goes to the answer's end: its grammar ends it, not a mark."""
    return replace(notation, end=None)


async def whole(order: Order, live: Live) -> dict[str, Any]:
    """The answer once it is complete."""
    choices = [Choice(order) for _ in order.works]
    usage = Usage(len(order.works))
    async for news in live.news():
        choices[news.choice].take(news)
        usage.take(news)
    told = [
        {
            "index": index,
            "message": choice.message(),
            "logprobs": _logprobs(order, choice.notes) if order.body.logprobs else None,
            "finish_reason": choice.reason,
        }
        for index, choice in enumerate(choices)
    ]
    return {**order.head("chat.completion"), "choices": told, "usage": usage.told()}


async def pieces(order: Order, live: Live) -> AsyncIterator[dict[str, Any]]:
    """The answer as it comes."""
    head = order.head("chat.completion.chunk")
    wants_usage = order.body.stream_options is not None and order.body.stream_options.include_usage
    if wants_usage:
        head["usage"] = None
    choices = [Choice(order) for _ in order.works]
    usage = Usage(len(order.works))

    def piece(index: int, delta: dict[str, Any], reason: str | None = None, notes: Any = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": notes, "finish_reason": reason}
        return {**head, "choices": [choice]}

    for index in range(len(choices)):
        yield piece(index, {"role": "assistant", "content": "", "refusal": None})
    async for news in live.news():
        choice = choices[news.choice]
        n_called = len(choice.calls)
        parted = choice.take(news)
        usage.take(news)
        notes = _logprobs(order, news.notes) if order.body.logprobs and news.notes else None
        if parted.thought:
            yield piece(news.choice, {"reasoning_content": parted.thought})
        if parted.said or notes:
            yield piece(news.choice, {"content": parted.said}, notes=notes)
        for at, call in enumerate(parted.calls):
            yield piece(news.choice, {"tool_calls": [call.told(n_called + at)]})
        if choice.reason is not None:
            yield piece(news.choice, {}, choice.reason)
    if wants_usage:
        yield {**head, "choices": [], "usage": usage.told()}


def _logprobs(order: Order, notes: Sequence[TokenNote]) -> dict[str, Any]:
    """How likely the tokens were."""
    tokenizer = order.voice.inference_model.tokenizer

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text, content = token_text(tokenizer, token), list(tokenizer.token_bytes(token))
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": content}

    content = [
        {**entry(note.token, note.logprob), "top_logprobs": [entry(token, logprob) for token, logprob in note.top]}
        for note in notes
    ]
    return {"content": content, "refusal": None}

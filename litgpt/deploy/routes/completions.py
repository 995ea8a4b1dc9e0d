"""`POST /v1/completions`: texts continued as they are."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from litgpt.deploy.backends.task import LEAST_LOGPROB, NotedStream, TokenNote, Work, token_text
from litgpt.deploy.protocol.errors import JSON, Problem
from litgpt.deploy.protocol.events import Usage, events, finish_reason, stream_response
from litgpt.deploy.protocol.parsing import choices_of, encode, form_of, sampling_of, stops_of
from litgpt.deploy.protocol.schemas import CompletionRequest
from litgpt.deploy.routes.chat import works_of
from litgpt.deploy.served_models import Voice
from litgpt.deploy.service import Live, Service


@dataclass
class Order:
    """A request, understood."""

    body: CompletionRequest
    voice: Voice
    prompts: list[list[int]]
    works: list[Work]
    """None where the prompts alone are to be given back."""
    n: int
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self) -> dict[str, Any]:
        """What every answer, and every piece of one, begins with."""
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.body.model}


def make_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(body: CompletionRequest, http: Request) -> Response:
        """What follows a text, or each of several."""
        order = await service.prepare(lambda: understand(service, body))
        live = service.live(http)
        order.id = f"cmpl-{live.record.id}"
        live.record.stream = bool(body.stream)
        echoes = await echoes_of(service, order)
        if not order.works:
            return JSON(whole_without_answers(order, echoes))
        await live.begin(order.works)
        if body.stream:
            return stream_response(events(pieces(order, live, echoes), live))
        return JSON(await whole(order, live, echoes))

    return router


def understand(service: Service, body: CompletionRequest) -> Order:
    """From the body to the work.

    Raises:
        Problem: Something in it can't be done.
    """
    voice = service.voice(body.model)
    n = choices_of(body, service)
    if body.best_of is not None and body.best_of != n:
        raise Problem(400, "best_of other than n is not offered; ask for n answers and choose.", "best_of")
    if body.stream_options is not None and not body.stream:
        raise Problem(400, "stream_options needs stream to be true.", "stream_options")
    if body.max_tokens == 0 and not body.echo:
        raise Problem(400, "max_tokens is 0, which makes sense with echo only.", "max_tokens")
    if body.max_tokens == 0 and body.stream:
        raise Problem(400, "max_tokens is 0, and there is nothing to stream.", "max_tokens")
    sampling = sampling_of(body, voice, service.sampling, body.logprobs)
    stops = stops_of(body, service)
    prompts = prompts_of(service, voice, body.prompt)
    form = form_of(body.response_format, voice)
    works: list[Work] = []
    for prompt in prompts if body.max_tokens != 0 else ():
        work = Work(
            voice.name, prompt, sampling, body.max_tokens, stops, form, ignore_end=bool(body.ignore_eos), continues=True
        )
        works += works_of(work, n)
    return Order(body, voice, prompts, works, n)


def prompts_of(service: Service, voice: Voice, given: str | list[Any], field: str = "prompt") -> list[list[int]]:
    """The tokens of each prompt: a text, several, or token ids.

    Raises:
        Problem: One of them can't be.
    """
    if isinstance(given, str):
        return [encode(service, voice, given, field, raw=True)]
    if not given:
        raise Problem(400, "The list is empty; give at least one text.", field)
    if isinstance(given[0], int):
        given = [given]
    room = service.backend.slots + service.limits.queue
    if len(given) > room:
        raise Problem(400, f"There are {len(given)} texts, and there is room for {room}; split them.", field)
    rows = voice.inference_model.model.transformer.wte.num_embeddings
    prompts = []
    for at, text in enumerate(given):
        if isinstance(text, str):
            prompts.append(encode(service, voice, text, f"{field}[{at}]", raw=True))
            continue
        service.check_tokens(text, f"{field}[{at}]")
        if not (min(text) >= 0 and max(text) < rows):
            raise Problem(400, f"There are token ids outside 0 ... {rows - 1}.", f"{field}[{at}]")
        prompts.append(text)
    return prompts


@dataclass
class Echo:
    """A prompt as it is given back."""

    text: str
    notes: list[TokenNote]
    """How likely each token was; nobody knows of the first one, whose log-probability is NaN."""


async def echoes_of(service: Service, order: Order) -> list[Echo | None]:
    """The prompts, where they are to be given back, with log-probabilities where these are asked for."""
    body, tokenizer = order.body, order.voice.inference_model.tokenizer
    if not body.echo:
        return [None] * len(order.prompts)
    echoes: list[Echo | None] = []
    for prompt in order.prompts:
        decoder = NotedStream(tokenizer)
        text = "".join(decoder.push(token) for token in prompt)
        if not order.works:  # else what is held back comes with the answer
            text += decoder.flush()
        notes: list[TokenNote] = []
        if body.logprobs is not None:
            scored = await service.compute("score", order.voice, prompt, top=body.logprobs)
            notes = [
                TokenNote(token, logprob, tuple(top), length)
                for token, (logprob, top), length in zip(prompt, scored, decoder.lengths, strict=True)
            ]
        echoes.append(Echo(text, notes))
    return echoes


def _logprobs(order: Order, notes: Sequence[TokenNote], start: int = 0) -> dict[str, Any]:
    """As OpenAI's older endpoint tells them; `start`: characters before the first token."""
    tokenizer = order.voice.inference_model.tokenizer
    told: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for note in notes:
        unknown = math.isnan(note.logprob)
        told["tokens"].append(token_text(tokenizer, note.token))
        told["token_logprobs"].append(None if unknown else max(note.logprob, LEAST_LOGPROB))
        top = {token_text(tokenizer, token): max(logprob, LEAST_LOGPROB) for token, logprob in note.top}
        told["top_logprobs"].append(None if unknown else top)
        told["text_offset"].append(start)
        start += note.length
    return told


def whole_without_answers(order: Order, echoes: list[Echo | None]) -> dict[str, Any]:
    """The prompts alone, given back."""
    choices = []
    for index, echo in enumerate(echo for echo in echoes for _ in range(order.n)):
        assert echo is not None
        notes = _logprobs(order, echo.notes) if order.body.logprobs is not None else None
        choices.append({"index": index, "text": echo.text, "logprobs": notes, "finish_reason": "length"})
    count = sum(map(len, order.prompts))
    usage = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
    return {**order.head(), "choices": choices, "usage": usage}


async def whole(order: Order, live: Live, echoes: list[Echo | None]) -> dict[str, Any]:
    """The answer once it is complete."""
    usage = Usage(order.n)
    texts, reasons = [""] * len(order.works), [""] * len(order.works)
    notes: list[list[TokenNote]] = [[] for _ in order.works]
    for index in range(len(order.works)):
        if echo := echoes[index // order.n]:
            texts[index], notes[index] = echo.text, [*echo.notes]
    async for news in live.news():
        texts[news.choice] += news.text
        notes[news.choice] += news.notes
        usage.take(news)
        if news.finish_reason is not None:
            reasons[news.choice] = finish_reason(news.finish_reason)
    choices = [
        {
            "index": index,
            "text": texts[index],
            "logprobs": _logprobs(order, notes[index]) if order.body.logprobs is not None else None,
            "finish_reason": reasons[index],
        }
        for index in range(len(texts))
    ]
    return {**order.head(), "choices": choices, "usage": usage.told()}


async def pieces(order: Order, live: Live, echoes: list[Echo | None]) -> AsyncIterator[dict[str, Any]]:
    """The answer as it comes."""
    head = order.head()
    wants_usage = order.body.stream_options is not None and order.body.stream_options.include_usage
    if wants_usage:
        head["usage"] = None
    usage = Usage(order.n)
    told = [0] * len(order.works)

    def piece(index: int, text: str, notes: Sequence[TokenNote], reason: str | None) -> dict[str, Any]:
        logprobs = _logprobs(order, notes, told[index]) if order.body.logprobs is not None else None
        told[index] += sum(note.length for note in notes)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice]}

    for index in range(len(order.works)):
        if echo := echoes[index // order.n]:
            yield piece(index, echo.text, echo.notes, None)
    async for news in live.news():
        usage.take(news)
        reason = None if news.finish_reason is None else finish_reason(news.finish_reason)
        if news.text or news.notes or reason is not None:
            yield piece(news.choice, news.text, news.notes, reason)
    if wants_usage:
        yield {**head, "choices": [], "usage": usage.told()}

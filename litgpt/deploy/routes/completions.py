"""`POST /v1/completions`: texts continued as they are."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from litgpt.deploy.backends.task import LEAST_LOGPROB, GenerationTask, OutputDecoder, TokenLogprob, token_text
from litgpt.deploy.protocol.errors import JSON, APIError
from litgpt.deploy.protocol.events import Usage, events, finish_reason, stream_response
from litgpt.deploy.protocol.parsing import choices_of, encode, response_format_schema, sampling_of, stops_of
from litgpt.deploy.protocol.schemas import CompletionRequest
from litgpt.deploy.routes.chat import tasks_of
from litgpt.deploy.served_models import ServedModel
from litgpt.deploy.service import InFlightRequest, Service


@dataclass
class ParsedCompletion:
    """A request, understood."""

    body: CompletionRequest
    served_model: ServedModel
    prompts: list[list[int]]
    tasks: list[GenerationTask]
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
        parsed = await service.prepare(lambda: parse(service, body))
        request = service.request(http)
        parsed.id = f"cmpl-{request.record.id}"
        request.record.stream = bool(body.stream)
        echoes = await echoes_of(service, parsed)
        if not parsed.tasks:
            return JSON(whole_without_answers(parsed, echoes))
        await request.begin(parsed.tasks)
        if body.stream:
            return stream_response(events(pieces(parsed, request, echoes), request))
        return JSON(await whole(parsed, request, echoes))

    return router


def parse(service: Service, body: CompletionRequest) -> ParsedCompletion:
    """From the body to the task.

    Raises:
        Problem: Something in it can't be done.
    """
    served_model = service.served_model(body.model)
    n = choices_of(body, service)
    if body.best_of is not None and body.best_of != n:
        raise APIError(400, "best_of other than n is not offered; ask for n answers and choose.", "best_of")
    if body.stream_options is not None and not body.stream:
        raise APIError(400, "stream_options needs stream to be true.", "stream_options")
    if body.max_tokens == 0 and not body.echo:
        raise APIError(400, "max_tokens is 0, which makes sense with echo only.", "max_tokens")
    if body.max_tokens == 0 and body.stream:
        raise APIError(400, "max_tokens is 0, and there is nothing to stream.", "max_tokens")
    sampling = sampling_of(body, served_model, service.sampling, body.logprobs)
    stops = stops_of(body, service)
    prompts = prompts_of(service, served_model, body.prompt)
    json_schema = response_format_schema(body.response_format, served_model)
    tasks: list[GenerationTask] = []
    for prompt in prompts if body.max_tokens != 0 else ():
        task = GenerationTask(
            served_model.name,
            prompt,
            sampling,
            body.max_tokens,
            stops,
            json_schema,
            ignore_end=bool(body.ignore_eos),
            continues=True,
        )
        tasks += tasks_of(task, n)
    return ParsedCompletion(body, served_model, prompts, tasks, n)


def prompts_of(
    service: Service, served_model: ServedModel, given: str | list[Any], field: str = "prompt"
) -> list[list[int]]:
    """The tokens of each prompt: a text, several, or token ids.

    Raises:
        Problem: One of them can't be.
    """
    if isinstance(given, str):
        return [encode(service, served_model, given, field, raw=True)]
    if not given:
        raise APIError(400, "The list is empty; give at least one text.", field)
    if isinstance(given[0], int):
        given = [given]
    room = service.backend.slots + service.limits.queue
    if len(given) > room:
        raise APIError(400, f"There are {len(given)} texts, and there is room for {room}; split them.", field)
    rows = served_model.inference_model.model.transformer.wte.num_embeddings
    prompts = []
    for at, text in enumerate(given):
        if isinstance(text, str):
            prompts.append(encode(service, served_model, text, f"{field}[{at}]", raw=True))
            continue
        service.check_tokens(text, f"{field}[{at}]")
        if not (min(text) >= 0 and max(text) < rows):
            raise APIError(400, f"There are token ids outside 0 ... {rows - 1}.", f"{field}[{at}]")
        prompts.append(text)
    return prompts


@dataclass
class Echo:
    """A prompt as it is given back."""

    text: str
    notes: list[TokenLogprob]
    """How likely each token was; nobody knows of the first one, whose log-probability is NaN."""


async def echoes_of(service: Service, parsed: ParsedCompletion) -> list[Echo | None]:
    """The prompts, where they are to be given back, with log-probabilities where these are asked for."""
    body, tokenizer = parsed.body, parsed.served_model.inference_model.tokenizer
    if not body.echo:
        return [None] * len(parsed.prompts)
    echoes: list[Echo | None] = []
    for prompt in parsed.prompts:
        decoder = OutputDecoder(tokenizer)
        text = "".join(decoder.push(token) for token in prompt)
        if not parsed.tasks:  # else what is held back comes with the answer
            text += decoder.flush()
        notes: list[TokenLogprob] = []
        if body.logprobs is not None:
            scored = await service.compute("score", parsed.served_model, prompt, top=body.logprobs)
            notes = [
                TokenLogprob(token, logprob, tuple(top), length)
                for token, (logprob, top), length in zip(prompt, scored, decoder.lengths, strict=True)
            ]
        echoes.append(Echo(text, notes))
    return echoes


def _logprobs(parsed: ParsedCompletion, notes: Sequence[TokenLogprob], start: int = 0) -> dict[str, Any]:
    """As OpenAI's older endpoint tells them; `start`: characters before the first token."""
    tokenizer = parsed.served_model.inference_model.tokenizer
    entry: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for note in notes:
        unknown = math.isnan(note.logprob)
        entry["tokens"].append(token_text(tokenizer, note.token))
        entry["token_logprobs"].append(None if unknown else max(note.logprob, LEAST_LOGPROB))
        top = {token_text(tokenizer, token): max(logprob, LEAST_LOGPROB) for token, logprob in note.top}
        entry["top_logprobs"].append(None if unknown else top)
        entry["text_offset"].append(start)
        start += note.length
    return entry


def whole_without_answers(parsed: ParsedCompletion, echoes: list[Echo | None]) -> dict[str, Any]:
    """The prompts alone, given back."""
    choices = []
    for index, echo in enumerate(echo for echo in echoes for _ in range(parsed.n)):
        assert echo is not None
        notes = _logprobs(parsed, echo.notes) if parsed.body.logprobs is not None else None
        choices.append({"index": index, "text": echo.text, "logprobs": notes, "finish_reason": "length"})
    count = sum(map(len, parsed.prompts))
    usage = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
    return {**parsed.head(), "choices": choices, "usage": usage}


async def whole(parsed: ParsedCompletion, request: InFlightRequest, echoes: list[Echo | None]) -> dict[str, Any]:
    """The answer once it is complete."""
    usage = Usage(parsed.n)
    texts, reasons = [""] * len(parsed.tasks), [""] * len(parsed.tasks)
    notes: list[list[TokenLogprob]] = [[] for _ in parsed.tasks]
    for index in range(len(parsed.tasks)):
        if echo := echoes[index // parsed.n]:
            texts[index], notes[index] = echo.text, [*echo.notes]
    async for delta in request.deltas():
        texts[delta.choice] += delta.text
        notes[delta.choice] += delta.notes
        usage.take(delta)
        if delta.finish_reason is not None:
            reasons[delta.choice] = finish_reason(delta.finish_reason)
    choices = [
        {
            "index": index,
            "text": texts[index],
            "logprobs": _logprobs(parsed, notes[index]) if parsed.body.logprobs is not None else None,
            "finish_reason": reasons[index],
        }
        for index in range(len(texts))
    ]
    return {**parsed.head(), "choices": choices, "usage": usage.format()}


async def pieces(
    parsed: ParsedCompletion, request: InFlightRequest, echoes: list[Echo | None]
) -> AsyncIterator[dict[str, Any]]:
    """The answer as it comes."""
    head = parsed.head()
    wants_usage = parsed.body.stream_options is not None and parsed.body.stream_options.include_usage
    if wants_usage:
        head["usage"] = None
    usage = Usage(parsed.n)
    entry = [0] * len(parsed.tasks)

    def piece(index: int, text: str, notes: Sequence[TokenLogprob], reason: str | None) -> dict[str, Any]:
        logprobs = _logprobs(parsed, notes, entry[index]) if parsed.body.logprobs is not None else None
        entry[index] += sum(note.length for note in notes)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice]}

    for index in range(len(parsed.tasks)):
        if echo := echoes[index // parsed.n]:
            yield piece(index, echo.text, echo.notes, None)
    async for delta in request.deltas():
        usage.take(delta)
        reason = None if delta.finish_reason is None else finish_reason(delta.finish_reason)
        if delta.text or delta.notes or reason is not None:
            yield piece(delta.choice, delta.text, delta.notes, reason)
    if wants_usage:
        yield {**head, "choices": [], "usage": usage.format()}

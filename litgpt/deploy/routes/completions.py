"""`POST /v1/completions`: texts continued as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request, Response

from litgpt.deploy.backends.task import LEAST_LOGPROB, Delta, GenerationTask, OutputDecoder, TokenLogprob, token_text
from litgpt.deploy.protocol.errors import APIError, JSONAnswer
from litgpt.deploy.protocol.parsing import (
    choices_of,
    prompts_of,
    response_format_schema,
    sampling_of,
    stops_of,
    tasks_of,
)
from litgpt.deploy.protocol.responses import STREAMABLE, ChunkedChoice, ParsedChunked, finish_reason, respond
from litgpt.deploy.protocol.schemas import CompletionRequest
from litgpt.deploy.service import Service


@dataclass
class Echo:
    """A prompt as it is given back."""

    text: str
    logprobs: list[TokenLogprob]
    """NaN for the first token."""


@dataclass
class ParsedCompletion(ParsedChunked):
    """A completion request, parsed; without tasks where the prompts alone are to be given back."""

    id_prefix = "cmpl-"
    kind = chunk_kind = "text_completion"

    body: CompletionRequest
    prompts: list[list[int]]
    echoes: list[Echo | None] = field(default_factory=list)
    """Of each prompt; None: it is not given back."""

    def choices(self) -> list[CompletionChoice]:
        return [CompletionChoice(self, index) for index in range(len(self.prompts) * self.n)]


class CompletionChoice(ChunkedChoice):
    """One text as it comes, and how likely each token was."""

    def __init__(self, parsed: ParsedCompletion, index: int) -> None:
        self._parsed, self._index = parsed, index
        self._echo = parsed.echoes[index // parsed.n]
        self._text = "" if self._echo is None else self._echo.text
        self._logprobs = [] if self._echo is None else [*self._echo.logprobs]
        self._reason = "length"
        self._offset = 0
        """Characters in the chunks so far."""

    def push(self, delta: Delta) -> None:
        self._text += delta.text
        self._logprobs += delta.logprobs
        if delta.finish_reason is not None:
            self._reason = finish_reason(delta.finish_reason)

    def opening(self) -> Iterator[dict[str, Any]]:
        if self._echo is not None:
            yield self._chunk(self._echo.text, self._echo.logprobs, None)

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        reason = None if delta.finish_reason is None else finish_reason(delta.finish_reason)
        if delta.text or delta.logprobs or reason is not None:
            yield self._chunk(delta.text, delta.logprobs, reason)

    def _chunk(self, text: str, logprobs: Sequence[TokenLogprob], reason: str | None) -> dict[str, Any]:
        formatted = _format_logprobs(self._parsed, logprobs, self._offset)
        self._offset += sum(each.length for each in logprobs)
        return {"index": self._index, "text": text, "logprobs": formatted, "finish_reason": reason}

    def format(self) -> dict[str, Any]:
        return self._chunk(self._text, self._logprobs, self._reason)


def make_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/completions", responses=STREAMABLE)
    async def completions(body: CompletionRequest, http: Request) -> Response:
        """What follows a text, or each of several."""
        parsed = await service.prepare(parse, service, body)
        parsed.identify(http.state.record)
        parsed.echoes = await echoes_of(service, parsed)
        return await respond(service, http, parsed) if parsed.tasks else JSONAnswer(echoes_alone(parsed))

    return router


def parse(service: Service, body: CompletionRequest) -> ParsedCompletion:
    """From the body to the tasks.

    Raises:
        APIError: Something in it can't be done.
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
    sampling = sampling_of(body, served_model, service.settings.sampling, body.logprobs)
    stops = stops_of(body.stop, service)
    prompts = prompts_of(service, served_model, body.prompt)
    json_schema = response_format_schema(body.response_format, served_model)
    limit, ignore_end = body.max_tokens, bool(body.ignore_eos)
    task = GenerationTask(served_model.name, [], sampling, limit, stops, json_schema, (), ignore_end, continues=True)
    tasks = [] if limit == 0 else [each for prompt in prompts for each in tasks_of(replace(task, prompt=prompt), n)]
    return ParsedCompletion(body, served_model, tasks, n, prompts)


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
        logprobs: list[TokenLogprob] = []
        if body.logprobs is not None:
            scored = await service.score(parsed.served_model, prompt, body.logprobs)
            logprobs = [
                TokenLogprob(each.token, each.logprob, each.top, length)
                for each, length in zip(scored, decoder.lengths, strict=True)
            ]
        echoes.append(Echo(text, logprobs))
    return echoes


def echoes_alone(parsed: ParsedCompletion) -> dict[str, Any]:
    """The response of the prompts alone, given back."""
    count = sum(map(len, parsed.prompts))
    usage = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
    return {**parsed.head(parsed.kind), "choices": [choice.format() for choice in parsed.choices()], "usage": usage}


def _format_logprobs(parsed: ParsedCompletion, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
    """The log-probabilities, where they are asked for, as the older of OpenAI's endpoints has them.

    Args:
        parsed: The request.
        logprobs: Of each token.
        offset: Characters before the first token.
    """
    if parsed.body.logprobs is None:
        return None
    tokenizer, by_ids = parsed.served_model.inference_model.tokenizer, parsed.body.return_tokens_as_token_ids

    def written(token: int) -> str:
        return f"token_id:{token}" if by_ids else token_text(tokenizer, token)

    found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for each in logprobs:
        unknown = math.isnan(each.logprob)
        found["tokens"].append(written(each.token))
        found["token_logprobs"].append(None if unknown else max(each.logprob, LEAST_LOGPROB))
        top = {written(token): max(logprob, LEAST_LOGPROB) for token, logprob in each.top}
        found["top_logprobs"].append(None if unknown else top)
        found["text_offset"].append(offset)
        offset += each.length
    return found

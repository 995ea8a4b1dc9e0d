"""`POST /v1/chat/completions`: a conversation's next message, whole or as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from litgpt.deploy.backends.task import LEAST_LOGPROB, Delta, TokenLogprob, token_text
from litgpt.deploy.protocol.conversation import MessageChoice, ParsedChat, parse
from litgpt.deploy.protocol.responses import STREAMABLE, ChunkedChoice, ParsedChunked, respond
from litgpt.deploy.protocol.schemas import ChatRequest
from litgpt.deploy.service import Service


class ParsedChatCompletion(ParsedChat, ParsedChunked):
    """A chat request, parsed."""

    id_prefix = "chatcmpl-"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def choices(self) -> list[ChatChoice]:
        return [ChatChoice(self, index) for index in range(self.n)]


class ChatChoice(MessageChoice, ChunkedChoice):
    """One answer, as OpenAI's chat API has it."""

    def opening(self) -> Iterator[dict[str, Any]]:
        yield self._chunk({"role": "assistant", "content": "", "refusal": None})

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        n_calls = len(self.message.calls)
        message = self.push(delta)
        logprobs = _format_logprobs(self._parsed, delta.logprobs) if delta.logprobs else None
        if message.reasoning:
            yield self._chunk({"reasoning_content": message.reasoning})
        if message.content or logprobs:
            yield self._chunk({"content": message.content}, logprobs)
        for at, call in enumerate(message.calls):
            yield self._chunk({"tool_calls": [call.format(n_calls + at)]})
        if self.reason is not None:
            yield self._chunk({}, reason=self.reason)

    def _chunk(self, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def format(self) -> dict[str, Any]:
        calls, reasoning = self.message.calls, self.message.reasoning
        content = self.message.content or (None if calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["tool_calls"] = [call.format() for call in calls]
        if reasoning:
            message["reasoning_content"] = reasoning
        return {
            "index": self._index,
            "message": message,
            "logprobs": _format_logprobs(self._parsed, self._logprobs),
            "finish_reason": self.reason,
        }


def make_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=STREAMABLE)
    async def chat(body: ChatRequest, http: Request) -> Response:
        """The next message of a conversation."""
        parsed = await service.prepare(parse, service, body, ParsedChatCompletion)
        parsed.identify(http.state.record)
        return await respond(service, http, parsed)

    return router


def _format_logprobs(parsed: ParsedChat, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """The log-probabilities, where they are asked for."""
    if not parsed.body.logprobs:
        return None
    tokenizer = parsed.served_model.inference_model.tokenizer

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text, content = token_text(tokenizer, token), list(tokenizer.token_bytes(token))
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": content}

    content = [
        {**entry(each.token, each.logprob), "top_logprobs": [entry(token, logprob) for token, logprob in each.top]}
        for each in logprobs
    ]
    return {"content": content, "refusal": None}

"""What chat and completions have in common when they answer: server-sent events, usage, finish reasons."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from litgpt.deploy.backends.task import Delta
from litgpt.deploy.protocol.errors import APIError, dumps
from litgpt.deploy.service import InFlightRequest


class Usage:
    """Tokens in and out; a prompt that several answers share counts once.

    Args:
        n: How many answers share a prompt.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._prompts: dict[int, tuple[int, int]] = {}
        self._generated = 0

    def take(self, delta: Delta) -> None:
        """Counts an answer that is done."""
        if delta.finish_reason is not None:
            prompt = delta.choice // self._n
            if prompt not in self._prompts or delta.choice % self._n == 0:
                self._prompts[prompt] = (delta.counts.prompt, delta.counts.shared)
            self._generated += delta.counts.generated

    def format(self) -> dict[str, Any]:
        """As OpenAI tells it."""
        prompt = sum(n for n, _ in self._prompts.values())
        shared = sum(n for _, n in self._prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._generated,
            "total_tokens": prompt + self._generated,
            "prompt_tokens_details": {"cached_tokens": shared},
        }


def finish_reason(reason: str) -> str:
    """OpenAI's word for why an answer ended."""
    return "length" if reason == "length" else "stop"


async def events(pieces: AsyncIterator[dict[str, Any]], request: InFlightRequest) -> AsyncIterator[bytes]:
    """Pieces as server-sent events; a failure is an event too, because the status has long been sent."""
    try:
        async for piece in pieces:
            yield b"data: " + dumps(piece) + b"\n\n"
        yield b"data: [DONE]\n\n"
    except APIError as error:
        yield b"data: " + dumps(error.body()) + b"\n\n"
    finally:
        request.end()


def stream_response(source: AsyncIterator[bytes]) -> StreamingResponse:
    """An answer of events; proxies are told not to hold them back."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(source, media_type="text/event-stream", headers=headers)

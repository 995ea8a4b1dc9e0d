"""`POST /predict`, as LitGPT has it: `{"prompt": text}` → `{"output": text}`, whole or in lines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from litgpt.deploy.backends.task import GenerationTask
from litgpt.deploy.protocol.errors import APIError, JSONAnswer
from litgpt.deploy.protocol.parsing import stops_of
from litgpt.deploy.protocol.schemas import MANY_STOPS, NAME, STOP, Body
from litgpt.deploy.service import InFlightRequest, Service
from litgpt.engine.sampling import Sampling


class Prediction(Body):
    """The body of a request: a prompt, and what is to differ from the server's settings."""

    prompt: str
    model: NAME | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: STOP | MANY_STOPS | None = None

    def sampling(self, base: Sampling) -> Sampling:
        """The server's settings with this request's in their place; a `top_k` of null chooses among all tokens.

        Raises:
            LitGPTError: A value is out of its range.
        """
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "seed")}
        changes = {name: value for name, value in given.items() if value is not None}
        if "top_k" in self.model_fields_set:
            changes["top_k"] = self.top_k
        return replace(base, **changes)


def make_router(service: Service) -> APIRouter:
    """The route, at the path the service names."""
    router, settings = APIRouter(), service.settings

    @router.post(settings.api_path)
    async def predict(body: Prediction, http: Request) -> Response:
        """`{"prompt": text}` → `{"output": text}`, or such lines as the text comes."""
        task = await service.prepare(parse, service, body)
        request = InFlightRequest(service, http)
        request.record.stream = settings.stream
        await request.begin([task])
        if settings.stream:
            return StreamingResponse(_lines(request), media_type="application/x-ndjson")
        return JSONAnswer({"output": "".join([delta.text async for delta in request.deltas()])})

    return router


def parse(service: Service, body: Prediction) -> GenerationTask:
    """From the body to the task.

    Raises:
        APIError, LitGPTError: Something in it can't be done.
    """
    served_model = service.served_model(body.model)
    service.check_length(len(body.prompt), "prompt")
    sampling = body.sampling(service.settings.sampling)
    tokens = served_model.inference_model.encode(body.prompt)
    service.check_tokens(tokens, "prompt")
    stops = stops_of(body.stop, service)
    limit = service.settings.max_new_tokens if body.max_new_tokens is None else body.max_new_tokens
    return GenerationTask(served_model.name, tokens, sampling, limit, stops)


async def _lines(request: InFlightRequest) -> AsyncIterator[str]:
    """One JSON line a piece; a failure is the last line, because the status has long been sent."""
    try:
        async for delta in request.deltas():
            if delta.text:
                yield json.dumps({"output": delta.text}) + "\n"
    except APIError as error:
        yield json.dumps({"error": error.message}) + "\n"
    finally:
        request.end()

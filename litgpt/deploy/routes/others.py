"""The smaller routes: the models there are, embeddings, tokens, health, metrics."""

from __future__ import annotations

import base64
import struct
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from litgpt.deploy.backends.task import token_text
from litgpt.deploy.metrics import CONTENT_TYPE
from litgpt.deploy.protocol.errors import APIError, JSONAnswer
from litgpt.deploy.protocol.parsing import characters, encode, plain_tools, prompts_of, render
from litgpt.deploy.protocol.schemas import DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from litgpt.deploy.served_models import ServedModel
from litgpt.deploy.service import Service

MOST_TEXTS = 256
"""Texts in one request for embeddings."""


def make_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.head("/health", include_in_schema=False)
    @router.get("/health", response_class=PlainTextResponse)
    async def health() -> Response:
        """`ok` while the model answers and the server takes requests."""
        trouble = "the server is shutting down" if service.draining else await service.backend.trouble()
        return PlainTextResponse(trouble or "ok", status_code=503 if trouble else 200)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(service.metrics.render(service.backend.gauges()), media_type=CONTENT_TYPE)

    @router.get("/v1/models")
    async def models() -> Response:
        """What can be asked for: the model, and its adapters."""
        return JSONAnswer(
            {
                "object": "list",
                "data": [_describe(service, served_model) for served_model in service.served_models.values()],
                "has_more": False,
                "first_id": next(iter(service.served_models)),
                "last_id": [*service.served_models][-1],
            }
        )

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """One of them."""
        return JSONAnswer(_describe(service, service.served_model(name)))

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, http: Request) -> Response:
        """The texts' embeddings, of length one: hidden states after the last norm, pooled as the server is set up."""
        return JSONAnswer(await _embed(service, body, http))

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        """The tokens of a text, or of a conversation as the model's template writes it."""
        return JSONAnswer(await service.prepare(_tokenize, service, body))

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of some tokens, special ones included."""
        served_model = service.served_model(body.model)
        service.check_length(len(body.tokens), "tokens")
        if any(not 0 <= token < 2**31 for token in body.tokens):
            raise APIError(400, "A token id is from 0 to 2147483647.", "tokens")
        tokenizer = served_model.inference_model.tokenizer
        return JSONAnswer({"prompt": await service.prepare(tokenizer.decode, body.tokens, False)})

    return router


def _describe(service: Service, served_model: ServedModel) -> dict[str, Any]:
    """A model as OpenAI's API and Anthropic's describe one, with what clients want to know before they use it."""
    base, usual = service.base.name, service.settings.sampling
    own = served_model.inference_model.model.config.name  # the folder that it is served from may be called `final`
    return {
        "id": served_model.name,
        "object": "model",
        "created": served_model.created,
        "type": "model",  # from here to the date: Anthropic's words
        "display_name": own if own and served_model.adapter is None else served_model.name,
        "created_at": datetime.fromtimestamp(served_model.created, UTC).isoformat(),
        "owned_by": "litgpt",
        "root": base,
        "parent": None if served_model.adapter is None else base,
        "max_model_len": service.prompt_limit,
        "sampling": {"temperature": usual.temperature, "top_p": usual.top_p, "top_k": usual.top_k},
        "pooling": service.settings.pooling,
    }


async def _embed(service: Service, body: EmbeddingRequest, http: Request) -> dict[str, Any]:
    served_model = service.served_model(body.model)
    record = http.state.record
    record.model = served_model.name
    width = served_model.inference_model.model.config.n_embd
    if body.dimensions is not None and body.dimensions != width:
        raise APIError(400, f"This model's embeddings have {width} numbers, and no fewer make sense.", "dimensions")
    if isinstance(body.input, list) and len(body.input) > MOST_TEXTS and not isinstance(body.input[0], int):
        raise APIError(400, f"There are {len(body.input)} texts; at most {MOST_TEXTS} are taken.", "input")
    prompts = await service.prepare(prompts_of, service, served_model, body.input, "input")
    rows = []
    for index, prompt in enumerate(prompts):
        vector = await service.embed(served_model, prompt)
        entry: Any = vector
        if body.encoding_format == "base64":
            entry = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        rows.append({"object": "embedding", "index": index, "embedding": entry})
    record.first = perf_counter()
    count = record.prompt_tokens = sum(map(len, prompts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": rows, "model": body.model, "usage": usage}


def _tokenize(service: Service, body: TokenizeRequest) -> dict[str, Any]:
    served_model = service.served_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise APIError(400, "Give either prompt or messages.", "prompt")
    for name in ("add_special_tokens",) if body.prompt is None else ("tools", "add_generation_prompt"):
        if getattr(body, name) is not None:
            whose = "prompt" if body.prompt is None else "messages"
            raise APIError(400, f"{name} goes with {whose}, which aren't given.", name)
    if body.messages is not None:
        tools = body.tools or []
        service.check_length(characters(body.messages, plain_tools(tools)), "messages")
        text = render(served_model, body.messages, tools, {}, body.add_generation_prompt is not False)
        tokens = encode(service, served_model, text, "messages")
    else:
        assert body.prompt is not None
        service.check_length(len(body.prompt), "prompt")
        bos = None if body.add_special_tokens in (None, True) else False
        tokens = served_model.inference_model.tokenizer.encode_ids(body.prompt, bos=bos)
    pieces = [token_text(served_model.inference_model.tokenizer, token) for token in tokens]
    return {"tokens": tokens, "pieces": pieces, "count": len(tokens), "max_model_len": service.prompt_limit}

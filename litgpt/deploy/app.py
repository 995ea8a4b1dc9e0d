"""The HTTP application: all routes over one service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from inspect import signature
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from litgpt import __version__
from litgpt.deploy.access import Gate
from litgpt.deploy.outcomes import RequestRecorder, install_error_handlers
from litgpt.deploy.protocol.errors import AnthropicErrorAnswer, ErrorAnswer, is_anthropic
from litgpt.deploy.routes import chat as chat_route
from litgpt.deploy.routes import completions as completions_route
from litgpt.deploy.routes import messages as messages_route
from litgpt.deploy.routes import others as other_routes
from litgpt.deploy.routes import page as page_route
from litgpt.deploy.routes import predict as predict_route
from litgpt.deploy.routes import responses as responses_route
from litgpt.deploy.service import Service

PRIVATE_NETWORK: dict[str, Any] = (
    {"allow_private_network": True} if "allow_private_network" in signature(CORSMiddleware).parameters else {}
)
"""Lets pages from the internet ask a server in the local network, where Starlette is new enough to know of that."""
ROUTES = (page_route, predict_route, chat_route, completions_route, messages_route, responses_route, other_routes)


def make_app(service: Service) -> FastAPI:
    """The application over a service."""
    settings = service.settings

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        await service.backend.start()
        yield
        await service.backend.stop()
        if settings.log is not None:
            settings.log.close()

    # Its pages of documentation would load scripts from elsewhere; the description itself is at /openapi.json.
    app = FastAPI(title="litgpt", version=__version__, lifespan=running, docs_url=None, redoc_url=None)
    known: set[str] = set()
    for module in ROUTES:
        router = module.make_router(service)
        paths = {route.path for route in router.routes if isinstance(route, APIRoute)}
        known |= paths
        refusal = AnthropicErrorAnswer if any(map(is_anthropic, paths)) else ErrorAnswer
        app.include_router(router, responses={"4XX": {"model": refusal}, "5XX": {"model": refusal}})
    install_error_handlers(app, settings.api_path)
    app.add_middleware(Gate, limits=settings.limits, keys=settings.keys, detail=settings.api_path, hosts=settings.hosts)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # clients send some of their own; what is allowed is the origin, and no cookie opens
            **PRIVATE_NETWORK,
            expose_headers=["retry-after", "x-request-id", "request-id"],
        )
    app.add_middleware(RequestRecorder, metrics=service.metrics, paths=frozenset(known), log=settings.log)
    return app

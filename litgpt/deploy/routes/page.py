"""`GET /`: the chat page."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from litgpt.deploy.pages import read_page
from litgpt.deploy.service import Service


def make_router(service: Service) -> APIRouter:
    """The route of the page, which asks the others for all it shows."""
    del service
    router = APIRouter()

    @router.head("/", include_in_schema=False)
    @router.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return read_page("chat").answer(request)

    return router

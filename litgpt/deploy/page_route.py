"""`GET /`: the chat page."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from litgpt.deploy.page import chat_page
from litgpt.deploy.service import Service


def make_router(service: Service) -> APIRouter:
    """The route of the page, which asks the others for all it shows."""
    del service
    router = APIRouter()

    @router.head("/", include_in_schema=False)
    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        html, headers = chat_page()
        return HTMLResponse(html, headers=headers)

    return router

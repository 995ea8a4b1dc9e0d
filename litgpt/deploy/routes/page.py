"""`GET /`: the chat page, one file with a policy that lets it run its own script and talk to its own server only."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

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


@cache
def chat_page() -> tuple[str, dict[str, str]]:
    """The page at `/` and the headers it is served with.

    The content security policy (https://www.w3.org/TR/CSP3/) names the page's one script and one style by their hashes,
    so that nothing an answer holds could run even if it became markup.
    """
    html = (files("litgpt.deploy") / "page" / "page.html").read_text(encoding="utf-8")
    script, style = (_hash_of(tag, html) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return html, headers


def _hash_of(tag: str, html: str) -> str:
    """A source expression for the content of the only `tag` there is."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"

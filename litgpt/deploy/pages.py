"""The pages that a browser sees: each is sent as one file, with a policy that lets it run its own scripts and talk to
its own server only."""

from __future__ import annotations

import gzip
import re
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files

from fastapi import Request, Response

LINK = re.compile(r'<link rel="stylesheet" href="([\w./]+)">|<script src="([\w./]+)"></script>')
"""A file of the page's folder, which goes into the page itself."""


@dataclass(frozen=True)
class Page:
    """A page with all its files in it, and the headers that it is served with."""

    html: str
    headers: dict[str, str]
    packed: bytes
    """The page, compressed by gzip."""

    def answer(self, request: Request) -> Response:
        """The page for a browser; none of it where the browser still has it."""
        headers = {**self.headers, "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.html, headers=headers, media_type="text/html")
        return Response(self.packed, headers={**headers, "Content-Encoding": "gzip"}, media_type="text/html")


@cache
def read_page(name: str) -> Page:
    """The page called `name`.

    The content security policy (https://www.w3.org/TR/CSP3/) names the page's scripts and styles by their hashes, so
    that nothing an answer holds could run even if it became markup.
    """
    folder = files("litgpt.deploy") / "page"
    sources: dict[str, list[str]] = {"script": [], "style": []}

    def inline(link: re.Match[str]) -> str:
        tag = "style" if link[1] else "script"
        content = (folder / (link[1] or link[2])).read_text(encoding="utf-8")
        sources[tag].append(f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'")
        return f"<{tag}>{content}</{tag}>"

    html = LINK.sub(inline, (folder / f"{name}.html").read_text(encoding="utf-8"))
    policy = (
        f"default-src 'none'; script-src {' '.join(sources['script'])}; style-src {' '.join(sources['style'])};"
        " img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
        "ETag": f'"{sha256(html.encode()).hexdigest()[:32]}"',
    }
    return Page(html, headers, gzip.compress(html.encode(), mtime=0))

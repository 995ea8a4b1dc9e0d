"""The application behind `litgpt studio`: the page, and what it asks for."""

from __future__ import annotations

import threading
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from litgpt import __version__
from litgpt.cli.plan import COMMANDS
from litgpt.cli.recipe_files import all_recipes, read_recipe, recipe_path
from litgpt.cli.studio.processes import Processes
from litgpt.cli.studio.recipe import ask
from litgpt.cli.studio.runs import RunFolder, RunFolders
from litgpt.deploy.access import Gate, Keys, Limits
from litgpt.deploy.metrics import Metrics
from litgpt.deploy.outcomes import RequestRecorder, install_error_handlers
from litgpt.deploy.pages import read_page
from litgpt.deploy.protocol.errors import APIError, JSONAnswer
from litgpt.errors import LitGPTError

MAX_BODY = 400_000
"""Bytes of a request."""


class RunName(BaseModel):
    """A run that is meant."""

    name: str


class RecipeText(BaseModel):
    """A recipe as it is edited on the page."""

    command: str
    text: str


def make_app(runs: RunFolders, keys: Keys, hosts: frozenset[str] | None) -> FastAPI:
    """The application over the runs of a folder.

    Args:
        runs: What it shows.
        keys: What requests must carry.
        hosts: The names that requests may call the server by; None: any.
    """
    app = FastAPI(title="litgpt studio", version=__version__, docs_url=None, redoc_url=None)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return read_page("studio").answer(request)

    processes = Processes(runs)
    add_run_routes(app, runs, processes)
    add_recipe_routes(app, processes)
    install_error_handlers(app, "")
    paths = frozenset(route.path for route in app.routes if isinstance(route, APIRoute))
    app.add_middleware(SameOrigin)
    app.add_middleware(Gate, limits=Limits(body=MAX_BODY), keys=keys, detail="", hosts=hosts)
    app.add_middleware(RequestRecorder, metrics=Metrics(), paths=paths, log=None)
    return app


def add_run_routes(app: FastAPI, runs: RunFolders, processes: Processes) -> None:
    """The routes that show runs, and stop one. They read files, so they run in threads."""

    @app.get("/api/runs")
    def all_runs() -> Response:
        return JSONAnswer({"folder": str(runs.root), "runs": [describe(run, processes) for run in runs.scan()]})

    @app.get("/api/run")
    def one_run(name: str) -> Response:
        run = runs[name]
        content = {"curves": run.curves(), "samples": run.samples(), "settings": run.settings(), "log": run.log_tail()}
        return JSONAnswer({"name": run.name, **content})

    @app.post("/api/stop")
    def stop(body: RunName) -> Response:
        processes.stop(runs[body.name])
        return JSONAnswer({"name": body.name})


def describe(run: RunFolder, processes: Processes) -> dict[str, Any]:
    """A run in the list; one whose files can't be read says why."""
    try:
        return {"name": run.name, "stamp": run.stamp(), **run.summary(), **processes.state_of(run)}
    except LitGPTError as error:
        return {"name": run.name, "problem": str(error)}
    except OSError as error:  # deleted meanwhile
        return {"name": run.name, "problem": f"It can't be read ({error.strerror})."}


def add_recipe_routes(app: FastAPI, processes: Processes) -> None:
    """The routes that show recipes, say what one means, and start it."""
    previews = threading.Semaphore(2)  # each is a process, which may need much memory

    @app.get("/api/recipes")
    def recipes() -> Response:
        found = [
            {"name": one.name, "title": one.title, "command": one.command, "device": one.device}
            for one in all_recipes()
        ]
        return JSONAnswer({"recipes": found, "commands": list(COMMANDS)})

    @app.get("/api/recipe")
    def recipe(name: str) -> Response:
        path = recipe_path(name)
        return JSONAnswer({"command": read_recipe(path).command, "text": path.read_text(encoding="utf-8")})

    @app.post("/api/check")
    def check(body: RecipeText) -> Response:
        with previews:
            return JSONAnswer(ask("check", body.command, body.text))

    @app.post("/api/preview")
    def preview(body: RecipeText) -> Response:
        with previews:
            return JSONAnswer(ask("preview", body.command, body.text))

    @app.post("/api/start")
    def start(body: RecipeText) -> Response:
        return JSONAnswer({"name": processes.start(body.command, body.text)})


class SameOrigin:
    """Refuses what a page elsewhere makes a browser send here: it may post plain text to any address unasked, and what
    is posted here starts programs."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            origin = headers.get("origin")
            is_json = headers.get("content-type", "").partition(";")[0].strip() == "application/json"
            if not is_json or (origin is not None and origin.partition("://")[2] != headers.get("host")):
                message = "Only the studio's own page may ask for this; send JSON, as application/json."
                await APIError(403, message, code="other_origin").response(scope["path"], "")(scope, receive, send)
                return
        await self.app(scope, receive, send)

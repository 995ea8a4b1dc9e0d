"""Where chat templates run: a process of its own, which `litgpt.prompts.rendering` starts and asks.

A template is somebody else's program, come with a checkpoint. Jinja's sandbox keeps it from Python's internals and from
changing what it is given; what it computes and builds is limited by the system, so that the limits hold inside a single
operation too. This file imports nothing of LitGPT, so that the process starts quickly.
"""

from __future__ import annotations

import json
import pickle
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

REMOVED_FILTERS = ("pprint", "random", "urlize", "wordwrap", "xmlattr")
REMOVED_METHODS = frozenset({"encode", "translate", "maketrans", "to_bytes", "from_bytes"})
STATM = Path("/proc/self/statm")


class GenerationBlocks(Extension):
    """`{% generation %}…{% endgeneration %}` around the assistant's words changes no text; its place is noted."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(lineno)

    def _note(self, caller: Macro) -> str:
        text = caller()
        start = sum(map(len, _pieces))
        _spans.append((start, start + len(text)))
        return text


_pieces: list[str] = []
"""What has been rendered so far."""
_spans: list[tuple[int, int]] = []
"""Where generation blocks stand in it, `[start, end)`."""


class PlainNamespace(Namespace):
    """Jinja's `namespace`, without the names that mean something to Python or Jinja."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        Namespace.__init__(*args, **kwargs)
        for name in object.__getattribute__(args[0], "_Namespace__attrs"):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError("it sets a name on a namespace that isn't plain")


class PlainDict:
    """`dict(…)` and `dict.fromkeys(…)`: the type itself would hand out methods that change other tables."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as `transformers` sets it up for chat templates."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols])
        self.filters["tojson"] = _to_json
        for name in REMOVED_FILTERS:
            del self.filters[name]
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": PlainNamespace,
            "dict": PlainDict(),
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in REMOVED_METHODS and super().is_safe_attribute(obj, attr, value)


@lru_cache(maxsize=1)
def _sandbox() -> Sandbox:
    return Sandbox()


@lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    return _sandbox().from_string(source)


def answer(source: str, context: dict[str, Any] | None) -> dict[str, Any]:
    """What a template gives: its `text`, and the `spans` of its generation blocks; without a context it is compiled."""
    _pieces.clear()
    _spans.clear()
    template = _compiled(source)
    if context is not None:
        _pieces.extend(template.generate(context))
    return {"text": "".join(_pieces), "spans": list(_spans)}


def memory() -> int:
    """Bytes of addresses that this process has; 0 elsewhere than on Linux, where they can't be limited."""
    return int(STATM.read_text().split()[0]) * resource.getpagesize() if STATM.is_file() else 0


@lru_cache(maxsize=1)
def limit_memory(nbytes: int) -> int:
    """Lets this process have no more memory than it has now, which is returned, and so much."""
    now = memory()
    if now:
        resource.setrlimit(resource.RLIMIT_AS, (now + nbytes, resource.RLIM_INFINITY))
    return now


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answers requests until there are no more, or memory ran out: pickles of `(source, context, seconds, nbytes)` in,
    JSON out, each after its length."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    def respond(content: dict[str, Any]) -> None:
        raw = json.dumps(content).encode()
        answers.write(len(raw).to_bytes(8, "little") + raw)
        answers.flush()

    while size := requests.read(8):
        source, context, seconds, nbytes = pickle.loads(requests.read(int.from_bytes(size, "little")))
        before = limit_memory(nbytes)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # which ends the process
        try:
            found = answer(source, context)
            # What a large text leaves behind would be missed by the next one.
            worn = memory() > before + nbytes // 4
            respond({**found, "ended": True} if worn else found)
            if worn:
                return
        except MemoryError:
            _pieces.clear()
            respond({"error": "it builds a text or list without end", "ended": True})
            return
        except Exception as error:  # A template may fail like any program: a missing key, text + number, recursion
            respond({"error": str(error)[:1000] or type(error).__name__})
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)

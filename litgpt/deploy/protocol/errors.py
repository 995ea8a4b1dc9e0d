"""What is wrong with a request, in the shape that the clients of its path know: OpenAI's, or Anthropic's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from fastapi import Response
from pydantic import BaseModel

from litgpt.errors import closest, sentence

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""Status -> `type`; every other 4xx is an `invalid_request_error`, every 5xx a `server_error`."""
ANTHROPIC_KINDS = KINDS | {413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}
"""The same in Anthropic's words, where every other 5xx is an `api_error`."""
ANTHROPIC_PATH = "/v1/messages"


class ErrorDetail(BaseModel):
    """What is wrong, as OpenAI's API says it."""

    message: str
    type: str
    param: str | None
    """The field of the request that is meant."""
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every refusal."""

    error: ErrorDetail


class AnthropicDetail(BaseModel):
    """What is wrong, as Anthropic's API says it."""

    type: str
    message: str


class AnthropicErrorAnswer(BaseModel):
    """The body of every refusal at Anthropic's paths."""

    type: Literal["error"]
    error: AnthropicDetail


class APIError(Exception):
    """Ends a request with a status and one sentence.

    Args:
        status: The HTTP status.
        message: What is wrong and what to do.
        param: The field of the request that is meant.
        code: A word that programs compare, `context_length_exceeded` say.
        retry_after: Seconds after which another try makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, sentence(message), code, retry_after
        self.param = None if param is None else sentence(param)

    @property
    def label(self) -> str:
        """It in one word, without anything of the request; for logs."""
        return self.code or str(self.body()["error"]["type"])

    def body(self) -> dict[str, Any]:
        """`{"error": {…}}`."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic_body(self) -> dict[str, Any]:
        """`{"type": "error", "error": {…}}`."""
        kind = ANTHROPIC_KINDS.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def response(self, path: str, detailed: str) -> JSONAnswer:
        """The response.

        Args:
            path: The path of the request, whose clients know a shape.
            detailed: LitGPT's own path, whose errors have a `detail`, too.
        """
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if is_anthropic(path):
            return JSONAnswer(self.anthropic_body(), self.status, headers)
        return JSONAnswer(self.body() | ({"detail": self.message} if path == detailed else {}), self.status, headers)


def is_anthropic(path: str) -> bool:
    """Whether the clients of a path are Anthropic's."""
    return path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/")


def model_failed() -> APIError:
    """What clients get when the model failed; the reason is in the server's log."""
    return APIError(500, "The model failed on this request; the server's log says why.", code="model_failed")


class JSONAnswer(Response):
    """An answer as JSON; half characters, which UTF-8 has no bytes for, become question marks."""

    media_type = "application/json"

    def __init__(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(dumps(content), status, headers)


ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False)


def dumps(content: Any) -> bytes:
    """`content` as JSON on one line; a number that JSON doesn't know becomes null."""
    try:
        text = ENCODER.encode(content)
    except ValueError:
        text = ENCODER.encode(_finite(content))
    return text.encode("utf-8", "replace")


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if abs(content) <= 1.8e308 else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, (list, tuple)) else content


def explain(errors: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> tuple[str, str | None]:
    """One sentence for what is wrong with a body, and the field; nothing of the body itself but names of fields.

    Args:
        errors: Pydantic's; the sentence is about one of them.
        fields: The names that the body may have.
    """
    error = _nearest(errors)
    place: Sequence[Any] = error["loc"][1:]  # after "body"
    if error["type"] == "json_invalid":
        return f"The body is not valid JSON: {error['ctx']['error']}.", None
    if not place or (len(place) == 1 and error["type"] in ("model_attributes_type", "dict_type")):
        return f'The body must be a JSON object like {{"{fields[0]}": "..."}}, sent as application/json.', None
    name = _path(place)
    if error["type"] == "missing":
        return f"The field `{name}` is missing.", name
    if error["type"] == "extra_forbidden":
        known = fields if len(place) == 1 else ()
        return f"There is no field `{name}`.{closest(name, known)}", name
    reason = error["msg"].removeprefix("Value error, ")[:300]
    return f"The field `{name}` is of the wrong kind: {reason[0].lower()}{reason[1:]}.", name


def _nearest(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first complaint; where a value is none of several kinds, that about the kind that it comes nearest to."""
    place = errors[0]["loc"]
    if not _is_kind(place[-1]):
        return errors[0]
    same = [error for error in errors if error["loc"][: len(place) - 1] == place[:-1]]
    return max(same, key=lambda error: len(error["loc"]))


def _is_kind(part: Any) -> bool:
    """Whether a part of a place is pydantic's name of an alternative, and no field."""
    if isinstance(part, int):
        return False
    return not str(part).isidentifier() or str(part)[0].isupper() or part in ("str", "int", "float", "bool")


def _path(place: Sequence[Any]) -> str:
    """`messages[0].role`, without the names of pydantic's alternatives."""
    path = str(place[0])
    for before, part in pairwise(place):
        if part == before:  # the name of an alternative, which stands before what it holds
            continue
        if isinstance(part, int):
            path += f"[{part}]"
        elif not _is_kind(part):
            path += f".{part}"
    return path[:200]

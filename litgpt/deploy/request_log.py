"""What is recorded of each request, for the metrics and the log: times and counts, never a text and never a key."""

from __future__ import annotations

import sys
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TextIO

from litgpt.deploy.protocol.errors import dumps
from litgpt.errors import LitGPTError


@dataclass
class RequestRecord:
    """One request."""

    path: str
    client: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    came: float = field(default_factory=perf_counter)
    status: int = 0
    model: str | None = None
    stream: bool = False
    prompt_tokens: int = 0
    shared_tokens: int = 0
    generated_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    waited: float | None = None
    """Seconds."""
    first: float | None = None
    """When its first token came."""
    failure: str | None = None
    """What went wrong, in a word."""

    def line(self) -> bytes:
        """It as a line of JSON."""
        now = perf_counter()
        first = None if self.first is None else round(self.first - self.came, 4)
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": self.id,
            "client": self.client,
            "path": self.path,
            "status": self.status,
            "model": self.model,
            "stream": self.stream,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.shared_tokens,
            "completion_tokens": self.generated_tokens,
            "finish_reasons": self.finish_reasons,
            "queue_seconds": None if self.waited is None else round(self.waited, 4),
            "first_token_seconds": first,
            "seconds": round(now - self.came, 4),
            "failure": self.failure,
        }
        return dumps(entry)


class RequestLog:
    """Where lines of JSON go: a file, or the standard output as `-`.

    Raises:
        LitGPTError: The file can't be written.
    """

    def __init__(self, path: str) -> None:
        try:
            self._file: TextIO = sys.stdout if path == "-" else Path(path).expanduser().open("a", encoding="utf-8")
        except OSError as error:
            raise LitGPTError(f"--request_log {path} can't be written ({error.strerror}).") from None

    def write(self, record: RequestRecord) -> None:
        """Adds a line; a full disk must not end the server."""
        line = record.line().decode() + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError:
            pass

    def close(self) -> None:
        """Closes a file of its own."""
        if self._file is not sys.stdout:
            self._file.close()

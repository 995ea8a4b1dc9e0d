"""Responses that later requests may go on with: the last ones, in memory."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from litgpt.deploy.protocol.errors import APIError
from litgpt.deploy.protocol.schemas import ChatMessage
from litgpt.errors import quoted

MOST = 1000
"""Responses that are kept."""
MOST_CHARACTERS = 64_000_000
"""Of all conversations together."""


@dataclass(frozen=True)
class StoredResponse:
    """A response, and the conversation up to its end."""

    response: dict[str, Any]
    messages: Sequence[ChatMessage]
    """Without the instructions, which hold for one response."""
    characters: int


class StoredResponses:
    """The last responses; a new one takes the place of that which was used longest ago."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, StoredResponse] = OrderedDict()
        self._characters = 0
        self._lock = Lock()  # requests are parsed in several threads

    def add(self, response: dict[str, Any], messages: Sequence[ChatMessage]) -> None:
        """Keeps a response under its id."""
        size = len(json.dumps(response)) + sum(len(message.model_dump_json(exclude_none=True)) for message in messages)
        with self._lock:
            self._found[response["id"]] = StoredResponse(response, messages, size)
            self._characters += size
            while len(self._found) > MOST or self._characters > MOST_CHARACTERS:
                _, oldest = self._found.popitem(last=False)
                self._characters -= oldest.characters

    def get(self, name: str, field: str | None = None) -> StoredResponse:
        """The response of an id.

        Args:
            name: The id.
            field: Where it stands in a request.

        Raises:
            APIError: It isn't kept.
        """
        with self._lock:
            found = self._found.get(name)
            if found is None:
                message = (
                    f"There is no response {quoted(name)} here: the last {MOST} are kept until the server ends, those "
                    "with store false not at all; send the whole conversation as input."
                )
                raise APIError(404, message, field, "response_not_found")
            self._found.move_to_end(name)
            return found

    def delete(self, name: str) -> None:
        """Forgets the response of an id.

        Raises:
            APIError: It isn't kept.
        """
        found = self.get(name)
        with self._lock:
            if self._found.pop(name, None) is not None:
                self._characters -= found.characters

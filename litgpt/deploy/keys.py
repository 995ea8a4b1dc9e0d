"""Who may ask: API keys, from the command line, a file or the environment."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from litgpt.errors import LitGPTError

VARIABLES = ("LITGPT_API_KEY", "LIT_SERVER_API_KEY")
"""Read where the command line has no key; the second one is LitServe's."""


class Keys:
    """The keys that a request may carry; only their hashes are kept.

    Raises:
        LitGPTError: A key has characters that no header can carry.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        found = [key.strip() for key in keys if key.strip()]
        if any(not key.isascii() or not key.isprintable() or " " in key for key in found):
            raise LitGPTError("An API key has characters that no header can carry; use letters, digits and -_.")
        self._hashes = [sha256(key.encode()).digest() for key in found]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def admit(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request carries one of the keys; takes the same time whatever it carries."""
        bearer = headers.get(b"authorization", b"")
        sent = bearer[7:].strip() if bearer[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
        digest = sha256(sent).digest()
        # Every key is compared, so that the time tells neither which one it was nor whether there was one.
        matches = [hmac.compare_digest(digest, known) for known in self._hashes]
        return not self._hashes or any(matches)


def read_keys(given: str | None, file: Path | None) -> Keys:
    """The keys of `--api_key` (several with commas between) and of a file (one a line), else of the environment.

    Raises:
        LitGPTError: The file can't be read or holds no key.
    """
    keys = given.split(",") if given else []
    if given is not None and not any(key.strip() for key in keys):
        raise LitGPTError("--api_key is empty; give a key or leave it out.")
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise LitGPTError(f"--api_key_file {file} can't be read ({reason}).") from None
        found = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise LitGPTError(f"--api_key_file {file} holds no key; write one a line.")
        keys += found
    if not keys:
        keys = [key for name in VARIABLES for key in os.environ.get(name, "").split(",")]
    return Keys(keys)

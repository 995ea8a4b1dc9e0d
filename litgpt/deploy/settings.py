"""The command line of `litgpt serve`, parsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from litgpt.deploy.access import Keys, Limits
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError

if TYPE_CHECKING:
    from litgpt.deploy.request_log import RequestLog


@dataclass(frozen=True)
class Loading:
    """How the model is loaded; plain values, which go to other processes."""

    accelerator: str = "auto"
    precision: str | None = None
    quantize: str | None = None
    access_token: str | None = None
    slots: int = 8
    length: int | None = None
    deterministic: bool | None = None
    parse_special_tokens: bool = False
    """Whether special tokens that a message writes out are tokens."""


@dataclass(frozen=True)
class Settings:
    """What is served, and how."""

    checkpoint_dir: Path
    loading: Loading = field(default_factory=Loading)
    name: str | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Folder by name."""
    sampling: Sampling = field(default_factory=Sampling)
    """Of requests that don't say otherwise."""
    max_new_tokens: int = 50
    """Of requests to `api_path` that don't say otherwise."""
    api_path: str = "/predict"
    stream: bool = False
    """Answer at `api_path` in lines as the text comes."""
    pooling: Literal["mean", "last"] = "mean"
    """What an embedding is made of."""
    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    hosts: frozenset[str] | None = None
    """Names that requests may call the server by; None: any."""
    origins: Sequence[str] = ()
    """Web pages of these origins may ask, from a browser; `*`: all."""
    log: RequestLog | None = None
    shutdown_timeout: int = 30
    """Seconds that running requests get to finish in."""

    @property
    def model_name(self) -> str:
        """What requests call the model."""
        return self.name or Path(self.checkpoint_dir).resolve().name


def parse_adapters(given: Sequence[str]) -> dict[str, Path]:
    """`NAME=FOLDER` → folder by name.

    Raises:
        LitGPTError: Not of that form, or a name twice.
    """
    found: dict[str, Path] = {}
    for entry in given:
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder):
            raise LitGPTError(f"--adapters {entry} is not NAME=FOLDER, as in `--adapters legal=out/legal/final`.")
        if name in found:
            raise LitGPTError(f"--adapters has the name {name} twice; give each adapter a name of its own.")
        found[name] = Path(folder).expanduser()
    return found

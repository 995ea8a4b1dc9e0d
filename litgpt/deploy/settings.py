"""The command line of `litgpt serve`, parsed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litgpt.deploy.backends.task import Backend
    from litgpt.deploy.keys import Keys
    from litgpt.deploy.limits import Limits
    from litgpt.deploy.request_log import RequestLog
    from litgpt.deploy.served_models import ServedModel
    from litgpt.deploy.service import Service
    from litgpt.engine.sampling import Sampling


@dataclass(frozen=True)
class Loading:
    """How the model is loaded; plain values, which go to other processes."""

    accelerator: str = "auto"
    precision: str | None = None
    quantize: str | None = None
    access_token: str | None = None
    slots: int = 8
    length: int | None = None


@dataclass(frozen=True)
class Settings:
    """The command line, parsed."""

    checkpoint_dir: Path
    loading: Loading
    name: str | None
    adapters: tuple[str, ...]
    sampling: Sampling
    max_new_tokens: int
    api_path: str
    stream: bool
    pooling: Literal["mean", "last"]
    limits: Limits
    keys: Keys
    origins: tuple[str, ...]
    log: RequestLog | None
    shutdown_timeout: int

    @property
    def model_name(self) -> str:
        """What requests call the model."""
        return self.name or Path(self.checkpoint_dir).resolve().name

    def service(self, served_models: Mapping[str, ServedModel], backend: Backend) -> Service:
        """What the routes serve."""
        from litgpt.deploy.service import Service

        return Service(
            served_models=served_models,
            backend=backend,
            sampling=self.sampling,
            max_new_tokens=self.max_new_tokens,
            api_path=self.api_path,
            stream=self.stream,
            pooling=self.pooling,
            limits=self.limits,
            keys=self.keys,
            origins=self.origins,
            log=self.log,
        )

"""MicroLlama's data: TinyLlama's without the code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litgpt.data.tinyllama import TinyLlama


@dataclass
class MicroLlama(TinyLlama):
    """SlimPajama alone, prepared as LitData's chunks."""

    data_path: str | Path = Path("data")
    """The folder with `slimpajama/train` and `slimpajama/val`; may be in a store (s3://…)."""
    use_starcoder: bool = True
    """LitGPT has this flag by mistake; there is no code here, whatever it says."""

    def _folders(self) -> list[str]:
        return super()._folders()[:2]

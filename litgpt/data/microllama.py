"""MicroLlama's data: TinyLlama's without the code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litgpt.data.lit_data import below, is_remote
from litgpt.data.tinyllama import TinyLlama


@dataclass
class MicroLlama(TinyLlama):
    """SlimPajama alone, prepared as LitData's chunks."""

    data_path: str | Path = Path("data")
    """The folder with `slimpajama/train` and `slimpajama/val`; may be in a store (s3://…)."""
    use_starcoder: bool = True
    """LitGPT has this flag by mistake: there is no code here, which is told where `data_path` has some."""

    def setup(self, stage: str = "") -> None:
        super().setup(stage)
        code = below(self.data_path, "starcoder")
        if self.use_starcoder and not is_remote(code) and Path(code).is_dir():
            self.log(f"{code} is not read: MicroLlama has no code, whatever data.use_starcoder says; TinyLlama has.")

    def _folders(self) -> list[str]:
        return super()._folders()[:2]

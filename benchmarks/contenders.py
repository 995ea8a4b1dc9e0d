"""What the benchmarks share: programs that take turns, each in a process of its own with one thread."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
PEER = "litgpt==0.5.13"


class Contender:
    """A program that prints a line of JSON when it is ready, and one after each line it is given.

    Args:
        name: For messages.
        python: The interpreter that runs it.
        program: Its source.
        arguments: Its `sys.argv[1:]`.
    """

    def __init__(self, name: str, python: str, program: str, *arguments: object) -> None:
        own = python == sys.executable  # another environment must not find this package
        environment = {**os.environ, "PYTHONPATH": str(ROOT) if own else "", "OMP_NUM_THREADS": "1"}
        environment.update(CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")
        self.name = name
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [python, "-W", "ignore", "-c", program, *map(str, arguments)],
            env=environment,
            cwd=self.folder.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.told = self._answer()
        """What it said when it was ready."""

    def ask(self, what: str = "") -> Any:
        """What the program answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("{", "[", "null")):  # libraries print as well
                return json.loads(line)
        sys.exit(f"{self.name} ended with status {self.process.wait()}.")

    def close(self) -> None:
        """Ends the program."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def in_turn(contenders: list[Contender], rounds: int, what: str = "") -> list[list[Any]]:
    """The answers of each contender; within a round all are asked once."""
    answers: list[list[Any]] = [[] for _ in contenders]
    for number in range(rounds):
        forth = list(zip(contenders, answers, strict=True))
        for contender, found in forth if number % 2 == 0 else reversed(forth):
            found.append(contender.ask(what))
    return answers


def paired(numerators: list[float], denominators: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def peer_python(given: str | None, folder: Path, *also: str) -> str:
    """The python of an environment with LitGPT 0.5.13 and the packages `also`: the one given, or a new one."""
    if given:
        return given
    import torch

    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    same_torch = f"torch=={torch.__version__.partition('+')[0]}"
    for packages in ([same_torch, "numpy"], [same_torch, PEER, "sentencepiece", "transformers<4.57", *also]):
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def litgpt_folder(folder: Path, copy: Path) -> Path:
    """The model of a Hugging Face folder as LitGPT keeps it, in a new folder `copy`."""
    sys.path.insert(0, str(ROOT))
    from litgpt.checkpoint.convert import to_litgpt
    from litgpt.checkpoint.layout import CONFIG_FILES, hf_weight_files

    copy.mkdir()
    for file in [*(folder / name for name in CONFIG_FILES), *hf_weight_files(folder)]:
        if file.is_file():
            (copy / file.name).symlink_to(file.resolve())
    to_litgpt(copy)
    return copy


def table(columns: list[str], rows: list[list[object]]) -> str:
    """A Markdown table, its columns aligned."""
    lines = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([shown[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *shown[1:]])

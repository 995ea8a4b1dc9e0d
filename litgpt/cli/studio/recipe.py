"""What a recipe means and what it would learn from, found out in a process of its own: `python -m
litgpt.cli.studio.recipe check COMMAND FILE`, or `preview`.

The command's own parser reads the file, which may name any class, and data may take long and much memory; the studio
itself stays as it is, and reads one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from litgpt.cli.plan import COMMANDS
from litgpt.errors import LitGPTError, UnknownNameError, closest, quoted

SECONDS = {"check": 120, "preview": 600}
"""Until a process is ended."""
MAX_TEXT = 100_000
"""Characters of a recipe."""
SAMPLES, SAMPLE_LENGTH = 4, 20_000
"""Samples that a preview shows, and characters of each."""


def ask(question: str, command: str, text: str) -> dict[str, Any]:
    """What a process says about a recipe for a command.

    Args:
        question: `check` or `preview`.
        command: A training command.
        text: The YAML.

    Raises:
        LitGPTError: The command can't take it; in the command's own words.
    """
    if command not in COMMANDS:
        raise UnknownNameError(f"No training command is called {quoted(command)}.{closest(command, COMMANDS)}")
    if len(text) > MAX_TEXT:
        raise LitGPTError(f"The recipe has more than {MAX_TEXT} characters; shorten it.")
    with tempfile.NamedTemporaryFile("w", prefix="recipe-", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        line = [sys.executable, "-m", __name__, question, command, file.name]
        try:
            done = subprocess.run(
                line, capture_output=True, encoding="utf-8", stdin=subprocess.DEVNULL, timeout=SECONDS[question]
            )
        except subprocess.TimeoutExpired:
            raise LitGPTError(f"The recipe takes more than {SECONDS[question]} seconds to {question}.") from None
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
            raise LitGPTError(f"The recipe can't be read ({why}); change it.")
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if "problem" in told:
            raise LitGPTError(str(told["problem"]).replace(file.name, "the recipe"))
        return told


def main(arguments: Sequence[str]) -> None:
    """Answers a question of `ask`, as the last line of the output."""
    from litgpt.cli.parser import parse

    question, command, file = arguments
    try:
        values = parse(command, import_module(COMMANDS[command]).setup, ["--config", file])
        told = preview(command, values) if question == "preview" else check(values)
    except LitGPTError as error:
        told = {"problem": str(error)}
    print("\n" + json.dumps(told))


def check(values: dict[str, Any]) -> dict[str, Any]:
    """Where a run would write, and whether it goes on with another."""
    return {"out_dir": str(Path(values["out_dir"]).resolve()), "resume": bool(values.get("resume"))}


def preview(command: str, values: dict[str, Any]) -> dict[str, Any]:
    """Samples as the model would get them, in pieces that are learned or not, and what `litgpt data preview` counts."""
    from litgpt.data.sft.preview import Preview, parts_of, runs

    folder = next((values[name] for name in ("checkpoint_dir", "tokenizer_dir") if values.get(name)), None)
    if folder is None:
        raise LitGPTError("The recipe names no tokenizer; add tokenizer_dir.")
    limit, token = values["train"].max_seq_length, values.get("access_token")
    found = Preview.of(Path(folder), values["data"], limit, command == "pretrain", token)
    samples = []
    for index in range(min(SAMPLES, len(found.data.train_dataset))):
        for title, part in parts_of(found.data.train_dataset[index]):
            ids, labels = part["input_ids"].tolist(), part["labels"].tolist()
            pieces = [
                (found.tokenizer.decode(piece, skip_special_tokens=False)[:SAMPLE_LENGTH], learned)
                for piece, learned in runs(ids[:SAMPLE_LENGTH], labels[:SAMPLE_LENGTH])
            ]
            targets = sum(label >= 0 for label in labels[1:])
            kind = title.strip("─ \n") or "sample"
            title = f"{kind} {index}: {len(ids):,} tokens, {targets:,} of them learned"
            samples.append({"title": title, "pieces": pieces})
    datasets = {"training": found.data.train_dataset, "validation": found.data.val_dataset}
    lines = [line for name, dataset in datasets.items() if dataset for line in (*found.summary(name, dataset), "")]
    return {"samples": samples, "summary": "\n".join(lines)}


if __name__ == "__main__":
    main(sys.argv[1:])

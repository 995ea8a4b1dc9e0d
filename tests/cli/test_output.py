"""`--quiet` and `--json`, for every command alike."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from litgpt.__main__ import COMMANDS, main
from litgpt.cli.help import output_flags
from litgpt.cli.run import to_json
from litgpt.errors import QUIET, is_quiet
from tests.paths import ROOT

MODEL = str(ROOT / "litgpt" / "assets" / "austen-2m")
TEXT = ROOT / "litgpt" / "assets" / "instructions" / "val.jsonl"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert main(arguments) == code
    return json.loads(capsys.readouterr().out)


def test_every_command_is_quiet_and_those_with_results_have_json() -> None:
    with_json = set()
    for name, (target, _) in COMMANDS.items():
        module, function = target.split(":")
        flags = [flag for flag, _ in output_flags(getattr(import_module(module), function))]
        assert flags[0] == "--quiet"
        with_json |= {name} if "--json" in flags else set()
    results = {"evaluate", "validate", "plan", "recipes", "data preview", "tokenizer train", "list", "show", "rm"}
    assert with_json == {*results, "doctor"}


@pytest.mark.parametrize("command", ["chat", "finetune_lora", "recipes cp"])
def test_a_command_without_a_result_has_no_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), MODEL, "--json"]) == 2
    assert f"`litgpt {command}` has no --json" in capsys.readouterr().err


def test_json_stands_alone_whatever_else_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    small = next(recipe for recipe in printed(capsys, "recipes", "--json", "--memory_gb", "8") if recipe["card_gb"])
    assert small["card_gb"] == 8 and small["command"].startswith("finetune")
    assert printed(capsys, "validate", MODEL, "--json")["checks"]["weights"]["ok"]
    sample, *_ = printed(
        capsys, "data", "preview", MODEL, "--data", "JSON", "--data.json_path", str(TEXT), "--json",
        "--data.val_split_fraction", "0.1", "--data.mask_prompt", "true",
    )["samples"]  # fmt: skip
    assert len(sample["input_ids"]) == len(sample["labels"]) and -100 in sample["labels"]
    learned = [label for label in sample["labels"] if label != -100]
    assert learned and set(learned) <= set(sample["input_ids"])


@pytest.mark.slow
def test_a_plan_is_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    plan = printed(capsys, "plan", "finetune_lora", MODEL, "--json", "--plan.peak_tflops", "1")
    assert plan["fits"] is True and plan["memory"]["needed"] > plan["memory"]["weights"] > 4 * plan["trainable"]


def test_what_failed_is_in_the_json_and_in_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = printed(capsys, "validate", str(tmp_path), "--json", code=1)
    assert found["valid"] is False and found["checks"]["files"] == {
        "ok": False,
        "found": f"{tmp_path} has no weights (lit_model.pth, *.safetensors or *.bin): download the checkpoint again.",
    }


def test_numbers_that_are_none_are_null() -> None:
    assert json.loads(to_json({"a": float("nan"), "b": [Path("x"), {1}]})) == {"a": None, "b": ["x", [1]]}


def test_the_preview_shows_ids_and_labels_of_each_token(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "JSON", "--data.json_path", str(TEXT), "--data.val_split_fraction", "0.1"]
    line = ["data", "preview", MODEL, *data, "--data.mask_prompt", "true", "--samples", "1"]
    assert main([*line, "--tokens"]) == 0
    rows = [row.split(maxsplit=3) for row in capsys.readouterr().out.splitlines()]
    start = next(at for at, row in enumerate(rows) if row[:3] == ["at", "id", "label"])
    table = [row for row in rows[start + 1 :] if len(row) == 4 and row[0].isdecimal()]
    sample = printed(capsys, *line, "--json")["samples"][0]
    n = len(sample["input_ids"])
    assert [int(row[1]) for row in table[:n]] == sample["input_ids"]
    assert [int(row[2]) for row in table[:n]] == sample["labels"]


def test_a_quiet_answer_is_the_answer_alone(capfd: pytest.CaptureFixture[str]) -> None:
    line = ["generate", MODEL, "--prompt", "It was", "--max_new_tokens", "3", "--temperature", "0"]
    assert main(line) == 0
    loud = capfd.readouterr()
    assert main([*line, "--quiet"]) == 0
    quiet = capfd.readouterr()
    assert quiet.out == loud.out and "Time for inference" in loud.err and quiet.err == ""
    assert not is_quiet()


def test_a_quiet_run_says_how_it_ended_and_a_used_folder_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["finetune_lora", MODEL, "--data", "JSON", "--data.json_path", str(TEXT), "--data.val_split_fraction", "0.1"]
    line += ["--train.max_steps", "1", "--train.global_batch_size", "1", "--train.max_seq_length", "128"]
    line += ["--eval.max_new_tokens", "1", "--eval.final_validation", "false", "--out_dir", str(tmp_path / "out")]
    assert main([*line, "--quiet"]) == 0
    said = capsys.readouterr()
    assert [text.split(":")[0] for text in said.out.splitlines()] == ["Done", "Checkpoint"] and said.err == ""
    assert main(line) == 0
    loud = capsys.readouterr().out
    assert f"{tmp_path / 'out'} has final of an earlier run" in loud and "step 1/1" in loud


def test_the_environment_can_ask_for_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, quiet in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv(QUIET, value)
        assert is_quiet() is quiet

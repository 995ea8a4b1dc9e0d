"""`litgpt list`, `show` and `rm`."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from litgpt.__main__ import main
from litgpt.scripts.local_models import find_models
from litgpt.scripts.model_description import describe, is_gguf_model
from tests.paths import ROOT
from tests.tiny import hf_folder

AUSTEN = ROOT / "litgpt" / "assets" / "austen-2m"
UPDATES = {"lora": "LoRA", "adapter": "LLaMA-Adapter", "adapter_v2": "LLaMA-Adapter V2"}
PARAMETERS = {"lora": {"lora_r": 8}, "adapter": {}, "adapter_v2": {}}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, what each method made of it, a folder that PEFT wrote, and what is no model."""
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "checkpoints" / "jane" / "austen"
    shutil.copytree(AUSTEN, base)
    for suffix in UPDATES:
        folder = tmp_path / "out" / suffix / "step-000005"
        folder.mkdir(parents=True)
        (folder / f"lit_model.pth.{suffix}").write_bytes(b"updates")
        data = {"class_path": "litgpt.data.JSON", "init_args": {"json_path": "mine.json"}}
        settings = {"checkpoint_dir": "checkpoints/jane/austen", "data": data, **PARAMETERS[suffix]}
        (folder / "hyperparameters.yaml").write_text(yaml.safe_dump(settings))
        for file in AUSTEN.glob("*config*"):
            shutil.copy(file, folder)
        logs = tmp_path / "out" / suffix / "logs" / "csv" / "version_0"
        logs.mkdir(parents=True)
        (logs / "metrics.csv").write_text("step,loss,val_loss\n4,2.5,\n5,2.25,\n5,,2.75\n6,1.0,\n")
    peft = tmp_path / "out" / "peft"
    peft.mkdir()
    (peft / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "jane/austen", "r": 8}))
    (peft / "adapter_model.safetensors").write_bytes(b"updates")
    (tmp_path / "out" / "notes").mkdir()
    (tmp_path / "out" / "notes" / "config.json").write_text("{}")
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *folders: str) -> dict[str, Any]:
    assert main(["list", *folders, "--json"]) == 0
    return {model["path"]: model for model in json.loads(capsys.readouterr().out)}


def test_every_kind_is_found_with_what_it_was_trained_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys)
    base = found.pop("checkpoints/jane/austen")
    assert base["trained"] is None and base["parameters"] > 1_000_000 and base["problem"] is None
    assert base["size"] == sum(file.stat().st_size for file in AUSTEN.rglob("*") if file.is_file())
    assert found.pop("out/peft")["trained"]["base"] == "jane/austen"
    assert len(found) == len(UPDATES)
    for suffix, kind in UPDATES.items():
        model = found[f"out/{suffix}/step-000005"]
        assert (model["kind"], model["parameters"], model["family"]) == (kind, base["parameters"], base["family"])
        trained = model["trained"]
        assert trained["command"] == f"finetune_{suffix}" and trained["data"] == "JSON (mine.json)"
        assert (trained["steps"], trained["loss"], trained["val_loss"]) == (5, 2.25, 2.75)


def test_the_table_has_a_line_for_each(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "out"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["PATH", "KIND"] and len(lines) == 4
    assert any("finetune_lora on checkpoints/jane/austen with JSON (mine.json)" in line for line in lines)


def test_what_is_damaged_is_listed_with_why(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "out" / "lora" / "step-000005" / "hyperparameters.yaml").write_text("a: [")
    (place / "out" / "peft" / "adapter_config.json").write_text('{"base_model_name_or_path": "gone/away"}')
    found = listed(capsys)
    assert "hyperparameters.yaml" in found["out/lora/step-000005"]["problem"]
    assert found["out/peft"]["problem"] == "its base gone/away is not here"


def test_links_are_followed_to_models_but_not_in_circles(place: Path) -> None:
    (place / "more").mkdir()
    (place / "more" / "linked").symlink_to(AUSTEN)
    (place / "more" / "circle").symlink_to(place / "more")
    assert list(find_models([Path("more")])) == [Path("more/linked")]


def test_the_parts_of_a_gguf_model_are_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "out" / "g"
    folder.mkdir()
    for name in ("one.gguf", "two-00001-of-00002.gguf", "two-00002-of-00002.gguf"):
        (folder / name).write_bytes(b"GGUF")
    assert [path.name for path in find_models([folder])] == ["one.gguf", "two-00001-of-00002.gguf"]
    assert not is_gguf_model(folder / "two-00002-of-00002.gguf")
    assert describe(folder / "two-00001-of-00002.gguf").size == 8
    assert main(["rm", "--yes", str(folder / "two-00001-of-00002.gguf")]) == 0
    assert [path.name for path in folder.iterdir()] == ["one.gguf"]


def test_a_tied_head_is_counted_once_in_every_kind_of_folder(tmp_path: Path) -> None:
    shutil.copytree(hf_folder("llama-tied", tmp_path / "made"), tmp_path / "hf")
    shutil.copytree(tmp_path / "hf", tmp_path / "lit")
    assert main(["convert_to_litgpt", str(tmp_path / "lit")]) == 0
    (tmp_path / "lit" / "config.json").unlink()
    expected = describe(tmp_path / "hf").parameters
    for base in ("hf", "lit"):
        updates = tmp_path / f"of_{base}"
        updates.mkdir()
        (updates / "lit_model.pth.lora").write_bytes(b"updates")
        shutil.copy(tmp_path / "lit" / "model_config.yaml", updates)
        (updates / "hyperparameters.yaml").write_text(yaml.safe_dump({"checkpoint_dir": str(tmp_path / base)}))
        assert describe(updates).parameters == expected
    assert describe(tmp_path / "lit").parameters == expected


def test_show_says_what_it_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "jane/austen"]) == 0
    said = capsys.readouterr().out
    assert ("checkpoints/jane/austen" in said and "lit_model.pth" in said) or "safetensors" in said
    assert main(["show", "out/lora/step-000005"]) == 0
    said = capsys.readouterr().out
    assert "trained by  finetune_lora" in said and "steps       5" in said and "validation  2.7500" in said


def test_rm_deletes_what_it_is_given_and_nothing_that_links_lead_to(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = place / "precious"
    outside.mkdir()
    (outside / "file").write_text("kept")
    folder = place / "out" / "lora" / "step-000005"
    (folder / "link").symlink_to(outside)
    assert main(["rm", "--yes", "out/lora/step-000005", "jane/austen"]) == 0
    assert not folder.exists() and not (place / "checkpoints" / "jane").exists()
    assert (outside / "file").read_text() == "kept" and (place / "out" / "lora" / "logs").is_dir()
    assert "out/adapter/step-000005, " in capsys.readouterr().out  # what can't be used without its base


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("out/notes", "out/notes is no model's folder"),
        ("out/lora", "out/lora is no model's folder; `litgpt list out/lora` shows those in it."),
        ("linked", "is a link to"),
        (".", "holds the folder that you are in"),
        ("nowhere", "There is no checkpoint folder nowhere."),
    ],
)
def test_rm_refuses_what_is_no_folder_of_a_model(
    path: str, sentence: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "linked").symlink_to(place / "checkpoints" / "jane" / "austen")
    if path == ".":
        monkeypatch.chdir(place / "checkpoints" / "jane" / "austen")
    assert main(["rm", "--yes", path]) == 1
    assert sentence in capsys.readouterr().err
    assert (place / "checkpoints" / "jane" / "austen" / "config.json").exists() and (place / "linked").exists()


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/", "/ holds the folder that you are in, or your own; delete it yourself."),
        ("~", "holds the folder that you are in, or your own"),
        (".", ". holds the folder that you are in"),
        ("..", ".. holds the folder that you are in"),
        ("out", "out is no model's folder; `litgpt list out` shows those in it."),
    ],
)
def test_rm_reads_nothing_below_what_it_refuses(
    path: str, sentence: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk takes minutes to be walked."""
    (place / "home" / "jane").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(place / "home" / "jane"))
    monkeypatch.chdir(place)
    read: list[Any] = []
    for owner, name in ((Path, "iterdir"), (os, "walk"), (os, "scandir"), (os, "listdir")):
        monkeypatch.setattr(owner, name, recorded(getattr(owner, name), read))
    assert main(["rm", "--yes", path]) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert [each for each in read if Path(each) != Path("out")] == []  # out's own files alone
    assert main(["list", "out"]) == 0 and Path("out/lora") in map(Path, read)  # what is read is recorded


def recorded(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """The same function, which keeps its first argument."""

    def call(first: Any = ".", *args: Any, **kwargs: Any) -> Any:
        calls.append(first)
        return function(first, *args, **kwargs)

    return call


def test_folders_that_may_not_be_read_are_passed_over(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = place / "out" / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0)
    try:
        if os.access(closed, os.R_OK):  # root may read all the same
            for name in ("iterdir", "is_file"):
                monkeypatch.setattr(Path, name, forbidden(getattr(Path, name), closed))
        found = listed(capsys, "out")
        assert len(found) == 4 and not any("closed" in path for path in found)
        assert listed(capsys, "out/closed") == {}
        assert main(["rm", "--yes", "out/closed"]) == 1
        assert "out/closed can't be read: " in capsys.readouterr().err
    finally:
        closed.chmod(0o700)


def forbidden(method: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """The same method of a path, which refuses a folder that may not be read."""

    def call(path: Path) -> Any:
        above = path if method.__name__ == "iterdir" else path.parent
        if above.absolute().is_relative_to(folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return method(path)

    return call


@pytest.mark.parametrize(("answer", "stays"), [("y", False), ("n", True), ("", True)])
def test_rm_asks(
    answer: str, stays: bool, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["rm", "out/peft"]) == 2  # nobody to ask
    assert "--yes" in capsys.readouterr().err and (place / "out" / "peft").is_dir()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert main(["rm", "out/peft"]) == 0
    assert (place / "out" / "peft").is_dir() is stays

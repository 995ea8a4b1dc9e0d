"""Names of files that come from a file or a server never lead out of the folder that they are joined to."""

from __future__ import annotations

import json
import os
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litgpt.checkpoint.layout import find_checkpoint
from litgpt.errors import LitGPTError
from litgpt.hub_client import relative_name

HOSTILE = [
    "/abs/x.safetensors",
    "../../x",
    "a/../../x",
    "..",
    ".",
    "",
    "a//b",
    "a/",
    "./a",
    "C:x",
    "C:\\x",
    "..\\x",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "x" * 256,
    "é" * 128,
    "/".join("a" * 17),
    None,
    5,
    ["a"],
]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_name_that_is_none_is_refused_in_one_short_sentence(name):
    with pytest.raises(LitGPTError, match=r"^The index names a file .* would not lie in its own folder") as raised:
        relative_name(name, "The index")
    assert len(str(raised.value)) < 300 and str(raised.value).isprintable()


@pytest.mark.parametrize("name", ["model.safetensors", "a b.bin", "original/params.json", "ä.gguf", "..a", "a..b"])
def test_plain_names_are_taken(name):
    assert relative_name(name, "The index") == name


@given(st.text(st.sampled_from("./\\:aé\0\n~ "), max_size=12))
@settings(max_examples=300, deadline=None)
def test_what_is_taken_stays_inside(name):
    try:
        relative_name(name, "x")
    except LitGPTError:
        return
    inside = Path("/folder", name)
    assert Path(os.path.normpath(inside)) == inside and inside.is_relative_to("/folder") and inside != Path("/folder")
    assert not PureWindowsPath(name).drive and "\\" not in name


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/model.safetensors", "model.safetensors\0"])
def test_an_index_that_names_files_elsewhere_is_not_followed(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").touch()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(LitGPTError, match="would not lie in its own folder"):
        find_checkpoint(folder)

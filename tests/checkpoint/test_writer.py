"""The writer: files that torch and transformers open, one tensor in memory at a time, whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import weakref
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import litgpt.checkpoint.writer as writer
from litgpt.checkpoint.atomic import atomic_file, atomic_folder, require_space
from litgpt.checkpoint.reader import load_pth
from litgpt.checkpoint.weights import Tensors, lazy
from litgpt.checkpoint.writer import save_state, tensor_specs, write_lit, write_safetensors
from litgpt.errors import LitGPTError
from tests.paths import ROOT


def tensors() -> dict[str, torch.Tensor]:
    """All kinds: types, empty, scalar, not contiguous."""
    torch.manual_seed(0)
    kinds = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
    found = {str(kind): (torch.randn(5, 3) * 4).to(kind) for kind in kinds}
    found |= {"float8": torch.randn(7).to(torch.float8_e4m3fn), "empty": torch.empty(0, 4), "scalar": torch.tensor(2.5)}
    return {**found, "transposed": torch.randn(6, 4).t(), "slice": torch.randn(9, 8)[2:5]}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(*(kind.reshape(-1).view(torch.uint8) for kind in (found[name], tensor.contiguous()))), name


# -- LitGPT's format


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("wide", [2**30, 1])
def test_torch_opens_what_is_written(tmp_path, monkeypatch, mmap, wide):
    monkeypatch.setattr(writer, "ZIP64_BYTES", wide)
    write_lit(tmp_path / "model.pth", tensors().items())
    found = torch.load(tmp_path / "model.pth", mmap=mmap, weights_only=True)
    assert_equal(found, tensors())
    assert all(tensor.data_ptr() % writer.ALIGNMENT == 0 for tensor in found.values()) or not mmap


def test_the_archive_is_sound(tmp_path):
    write_lit(tmp_path / "model.pth", tensors().items())
    with zipfile.ZipFile(tmp_path / "model.pth") as archive:
        assert archive.testzip() is None


def test_a_shared_tensor_takes_room_once_and_stays_shared(tmp_path):
    big = torch.randn(1000)
    write_lit(tmp_path / "model.pth", [("embedding", big)], shared={"head": "embedding"})
    found = torch.load(tmp_path / "model.pth", weights_only=True)
    assert found["head"].data_ptr() == found["embedding"].data_ptr()
    assert (tmp_path / "model.pth").stat().st_size < 1.5 * big.nbytes


def test_a_state_dict_in_memory_keeps_what_is_shared(tmp_path):
    embedding = torch.randn(10, 3)
    state = {"embedding": embedding, "other": torch.randn(10, 3), "head": embedding, "part": embedding[:5]}
    save_state(tmp_path / "model.pth", state, wrap="model")
    found = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    assert_equal(found, state)
    assert found["head"].data_ptr() == found["embedding"].data_ptr() != found["other"].data_ptr()


def test_only_one_tensor_is_asked_for_at_a_time(tmp_path):
    def one_by_one():
        for index in range(5):
            tensor = torch.full((100,), float(index))
            alive = weakref.ref(tensor)
            yield str(index), tensor
            del tensor
            assert alive() is None

    write_lit(tmp_path / "model.pth", one_by_one())
    assert load_pth(tmp_path / "model.pth")["4"][0] == 4


# -- safetensors


def test_safetensors_in_one_file(tmp_path):
    state = tensors()
    write_safetensors(tmp_path, lazy(state), tensor_specs(lazy(state)))
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors"}
    assert_equal(load_file(tmp_path / "model.safetensors"), state)


def test_safetensors_in_shards_with_their_index(tmp_path):
    state = {str(number): torch.randn(10, 10) for number in range(5)} | {"large": torch.randn(60, 10)}
    write_safetensors(tmp_path, lazy(state), tensor_specs(lazy(state)), shard_bytes=1000)
    index = writer.read_json(tmp_path / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    shards = {name: load_file(tmp_path / name) for name in sorted(set(index["weight_map"].values()))}
    assert [list(shard) for shard in shards.values()] == [["0", "1"], ["2", "3"], ["4"], ["large"]]
    assert_equal({name: shards[file][name] for name, file in index["weight_map"].items()}, state)


# -- whole or not at all


class Interrupted(Exception):
    pass


def fail(error: BaseException):
    def fetch(name: str) -> torch.Tensor:
        if name == "second":
            raise error
        return torch.zeros(1000)

    return Tensors(("first", "second"), fetch)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "model.pth").write_text("old")
    with pytest.raises(Interrupted):
        write_lit(tmp_path / "model.pth", fail(Interrupted()))
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]
    assert (tmp_path / "model.pth").read_text() == "old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, code):
    with pytest.raises(LitGPTError, match=r"disk is full: .*model\.pth could not be written"):
        write_lit(tmp_path / "model.pth", fail(OSError(code, os.strerror(code))))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_names_the_place_that_was_asked_for(tmp_path, exists):
    target = tmp_path / "out"
    if exists:
        target.mkdir()
    full = OSError(errno.ENOSPC, "full")
    with pytest.raises(LitGPTError) as told, atomic_folder(target) as outer, atomic_folder(outer / "inner") as folder:
        write_lit(folder / "model.pth", fail(full))
    assert f"{target / 'inner' / 'model.pth'} could not be written" in str(told.value)
    assert ".part" not in str(told.value)


def test_a_file_that_the_system_refuses_to_let_grow(tmp_path):
    """The real thing: an error in the middle of writing a tensor."""
    code = (
        "import resource, torch; from litgpt.checkpoint.writer import write_lit;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        f"write_lit({str(tmp_path / 'model.pth')!r}, [(str(i), torch.ones(10_000)) for i in range(9)])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "FileError: The disk is full" in result.stderr
    assert result.returncode == 1 and not list(tmp_path.iterdir())


def test_a_folder_appears_whole(tmp_path):
    with atomic_folder(tmp_path / "new" / "folder") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "folder" / "file").read_text() == "content"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["folder"]


def test_a_folder_that_fails_does_not_appear(tmp_path):
    with pytest.raises(Interrupted), atomic_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("content")
        raise Interrupted
    assert not list(tmp_path.iterdir())


def test_into_an_existing_folder_files_are_replaced_and_others_stay(tmp_path):
    for name in ("kept", "replaced"):
        (tmp_path / name).write_text("old")
    with atomic_folder(tmp_path) as folder:
        (folder / "replaced").write_text("new")
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("new")
    found = {str(file.relative_to(tmp_path)): file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {"kept": "old", "replaced": "new", str(Path("inner/file")): "new"}


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "model.pth"
    code = (
        "import os, signal; from litgpt.checkpoint.atomic import atomic_file, atomic_folder\n"
        f"with atomic_file({str(path)!r}) as file, atomic_folder({str(tmp_path / 'folder')!r}):\n"
        "    file.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == -signal.SIGKILL
    assert not path.exists() and len(list(tmp_path.iterdir())) == 2
    save_state(path, {"a": torch.ones(1)})
    with atomic_folder(tmp_path / "folder"):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "model.pth"]


@pytest.mark.parametrize("write", [atomic_file, atomic_folder])
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, write):
    (tmp_path / "file").write_text("")
    with pytest.raises(LitGPTError, match="can't be written"), write(tmp_path / "file" / "below"):
        pass


def test_a_file_is_no_folder_to_write_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LitGPTError, match="is a file"), atomic_folder(tmp_path / "file"):
        pass


def test_a_folder_is_no_file_to_write_to(tmp_path):
    with pytest.raises(LitGPTError, match="is a folder"), atomic_file(tmp_path):
        pass


def test_room_is_asked_for_beforehand(tmp_path):
    require_space(tmp_path / "not" / "yet" / "there", 1000, "A thing")
    with pytest.raises(LitGPTError, match=r"A thing needs .* GB of disk"):
        require_space(tmp_path / "not" / "yet" / "there", 10**18, "A thing")

"""Devices, precisions, output folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from litgpt import runtime
from litgpt.errors import LitGPTError
from litgpt.runtime import (
    default_precision,
    keep_freed_memory,
    make_fabric,
    output_dir,
    parameter_dtype,
    peak_memory,
    pick_device,
    product_dtype,
    training_precision,
)


def test_the_cpu_is_always_there():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cuda", "no CUDA GPU"),
        ("cuda:1", "no CUDA GPU"),
        ("gpu", "no CUDA GPU"),
        ("mps", "Apple silicon"),
        ("tpu", "Unknown device"),
    ],
)
def test_an_absent_device_is_one_sentence(monkeypatch, name, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(LitGPTError, match=sentence):
        pick_device(name)


def test_a_gpu_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(LitGPTError, match="there are 2 CUDA GPUs"):
        pick_device("cuda:2")


@pytest.mark.parametrize(
    ("device", "bf16", "training", "precision"),
    [
        ("cpu", True, True, "bf16-mixed"),
        ("cpu", True, False, "bf16-true"),
        ("cpu", False, True, "32-true"),
        ("cpu", False, False, "bf16-true"),
        ("cuda", True, True, "bf16-mixed"),
        ("cuda", False, True, "16-mixed"),
        ("cuda", False, False, "16-true"),
        ("mps", False, True, "32-true"),
    ],
)
def test_the_default_precision_follows_the_device(monkeypatch, device, bf16, training, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    monkeypatch.setattr(runtime, "has_bfloat16", lambda: bf16)
    assert default_precision(training, device) == precision


@pytest.mark.parametrize(
    ("precision", "parameters", "products"),
    [
        ("32-true", torch.float32, torch.float32),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("bf16-mixed", torch.float32, torch.bfloat16),
        ("16-mixed", torch.float32, torch.float16),
    ],
)
def test_a_precision_is_two_dtypes(precision, parameters, products):
    assert parameter_dtype(precision) == parameters
    assert product_dtype(precision) == products


@pytest.mark.parametrize(
    ("precision", "device", "sentence"),
    [
        ("16-mixed", "cpu", "needs a CUDA GPU"),
        ("16-true", "cuda", "no precision to train in"),
        ("bf16-mixed", "mps", "not supported on mps"),
        ("fp8", "cpu", "Unknown precision 'fp8'"),
    ],
)
def test_a_precision_that_cannot_be_trained_in_is_refused(precision, device, sentence):
    with pytest.raises(LitGPTError, match=sentence):
        training_precision(precision, device)


@pytest.mark.parametrize(
    ("devices", "sentence"), [("two", "a number or auto"), (0, "at least 1"), (3, "this machine has 2")]
)
def test_devices_that_are_not_there_are_refused(monkeypatch, devices, sentence):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(LitGPTError, match=sentence):
        runtime.process_counts(devices, 1, "cuda")


def test_more_processes_than_cores_are_refused(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert runtime.process_counts(4, 1, "cpu") == (4, 1)
    with pytest.raises(LitGPTError, match="this machine has 4 CPU cores"):
        runtime.process_counts(5, 1, "cpu")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_one_sentence(seed):
    with pytest.raises(LitGPTError, match=f"between 0 and 4294967295, not {seed}"):
        make_fabric(1, device="cpu", seed=seed)


def test_processes_are_counted_by_torchrun_where_it_runs(monkeypatch):
    assert runtime.process_counts("auto", 1, "cpu") == (1, 1)
    for name, value in dict(TORCHELASTIC_RUN_ID="1", LOCAL_WORLD_SIZE="4", WORLD_SIZE="8").items():
        monkeypatch.setenv(name, value)
    assert runtime.process_counts(1, 1, "cpu") == (4, 2)


def test_fabric_on_one_device_is_plain(monkeypatch):
    fabric = make_fabric(1, precision="32-true", device="cpu", seed=1)
    assert (fabric.world_size, fabric.device) == (1, torch.device("cpu"))
    first = torch.rand(1)
    make_fabric(1, precision="32-true", device="cpu", seed=1)
    assert torch.equal(torch.rand(1), first)


def test_an_output_folder_is_made_below_the_artifacts_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_ARTIFACTS_DIR", str(tmp_path))
    assert output_dir(Path("out") / "x") == tmp_path / "out" / "x"
    assert (tmp_path / "out" / "x").is_dir()
    assert output_dir(tmp_path / "absolute") == tmp_path / "absolute"


def test_an_output_folder_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LitGPTError, match="choose another --out_dir"):
        output_dir(tmp_path / "file" / "below")


def test_freed_memory_is_kept_where_glibc_is():
    assert keep_freed_memory() == (os.confstr("CS_GNU_LIBC_VERSION") is not None if hasattr(os, "confstr") else False)


def test_memory_is_this_process_s():
    before = peak_memory(torch.device("cpu"))
    block = torch.ones(2**24)
    assert peak_memory(torch.device("cpu")) >= max(before, block.nbytes)


def test_memory_is_told_where_the_kernel_has_no_such_line(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "STATUS", tmp_path / "status")
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert peak_memory(torch.device("cpu")) > 0


@pytest.mark.skipif(not runtime.STATUS.is_file(), reason="elsewhere the system counts the parent as well")
def test_memory_of_the_program_that_started_this_one_does_not_count():
    block = torch.ones(2**28)  # 1 GiB, held while the other program starts
    code = "import torch; from litgpt.runtime import peak_memory; print(peak_memory(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 2**25 < int(done.stdout) < block.nbytes

"""`litgpt doctor`, on this machine and on ones with a fault each."""

from __future__ import annotations

import json
from typing import Any

import pytest

from litgpt.__main__ import main
from litgpt.scripts import doctor
from litgpt.scripts.doctor import Cards, Finding

TORCH: dict[str, Any] = {
    "version": "2.13.0", "cuda": "13.0", "hip": None, "threads": 2, "mps": False,
    "architectures": ["sm_80", "sm_90"], "devices": [],
}  # fmt: skip
CARD = {"name": "H200", "memory": 150e9, "capability": [9, 0]}
CARDS = Cards(("NVIDIA H200",), "580.1", "13.0")


def test_this_machine_is_fit_and_no_token_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main(["doctor", "--json"]) == 0
    said = capsys.readouterr()
    found = {finding["about"]: finding for finding in json.loads(said.out)}
    assert found["import torch"]["verdict"] == found["python"]["verdict"] == "ok"
    assert found["hub"]["text"] == "there is an access token" and "hf_secret" not in said.out + said.err
    assert {"memory", "disk", "threads", "litgpt", "lightning"} <= found.keys()


def test_a_broken_torch_breaks_the_check_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ASK_TORCH", "raise ImportError('libtorch.so: not found')")
    assert main(["doctor"]) == 1
    said = capsys.readouterr()
    assert "BROKEN   import torch      fails (ImportError: libtorch.so: not found); reinstall it" in said.out
    assert said.err == "litgpt: import torch: something is broken; see above what to do.\n"


def test_a_package_that_cannot_be_imported_is_told() -> None:
    torch = {**TORCH, "problems": {"lightning.fabric": "ModuleNotFoundError: No module named 'torchmetrics'"}}
    (found,) = doctor.import_problems(torch)
    assert found.about == "import lightning" and found.verdict == "BROKEN" and "torchmetrics" in found.text


@pytest.mark.parametrize(
    ("finding", "verdict", "text"),
    [
        (lambda: doctor.package("lightning", "2.6.2"), "BROKEN", "malicious release that steals credentials"),
        (lambda: doctor.package("lightning", "2.6.3"), "BROKEN", "uninstall it at once"),
        (lambda: doctor.package("lightning", "2.6.6"), "ok", "2.6.6"),
        (lambda: doctor.package("torch", "2.9.1"), "BROKEN", "too old; run `pip install 'torch>=2.11'`"),
        (lambda: doctor.package("torch", "2.11.0+cpu"), "ok", "2.11.0+cpu"),
        (lambda: doctor.package("torch", "2.14.1"), "note", "newer"),
        (lambda: doctor.package("tokenizers", None), "BROKEN", "pip install tokenizers"),
        (lambda: doctor.python_version("3.10.1"), "BROKEN", "install a newer one"),
        (lambda: doctor.python_version("3.14.0"), "note", "tested: 3.11 to 3.13"),
    ],
)
def test_versions_are_held_to_what_is_supported(finding: Any, verdict: str, text: str) -> None:
    found: Finding = finding()
    assert found.verdict == verdict and text in found.text


@pytest.mark.parametrize(
    ("torch", "cards", "verdict", "text"),
    [
        ({"devices": [CARD]}, CARDS, "ok", "H200, 150 GB"),
        ({"devices": [{**CARD, "capability": [6, 1]}]}, CARDS, "BROKEN", "no kernels for its architecture sm_61"),
        ({"cuda": None}, CARDS, "BROKEN", "torch is built for CPUs, but there is NVIDIA H200"),
        ({}, Cards(("NVIDIA H200",), "550.1", "12.4"), "BROKEN", "the driver runs up to 12.4: update the driver"),
        ({}, CARDS, "BROKEN", "torch finds no GPU"),
        ({"cuda": None}, None, "ok", "the CPU alone"),
        ({"cuda": None, "mps": True}, None, "ok", "Apple's GPU"),
    ],
)
def test_cards_that_torch_cannot_use_are_told(
    torch: dict[str, Any], cards: Cards | None, verdict: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    *_, found = doctor.devices({**TORCH, **torch}, cards)
    assert found.verdict == verdict and text in found.text


def test_threads_that_are_too_many_or_too_few_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(doctor, "_cgroup", lambda name: "200000 100000")
    for n, verdict in ((2, "ok"), (8, "warning"), (1, "warning")):
        assert [found.verdict for found in doctor.threads({"threads": n})] == [verdict]

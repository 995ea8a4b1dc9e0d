"""`finetune_adapter` and `finetune_adapter_v2` from their arguments to a folder that other commands use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from litgpt.adapter import Adapter
from litgpt.adapter_v2 import AdapterV2
from litgpt.checkpoint.finetuned import find_finetuned
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.engine.inference_model import InferenceModel
from litgpt.finetune import adapter, adapter_v2
from litgpt.peft import Method
from litgpt.prompts import ChatTemplate
from tests.finetune.test_finetune import run

pytestmark = pytest.mark.usefixtures("no_picture")

COMMANDS = {".adapter": (adapter.setup, Adapter()), ".adapter_v2": (adapter_v2.setup, AdapterV2())}

RATES = {".adapter": 0.3, ".adapter_v2": 0.02}
"""Learning rates; one layer's gates and prompts in front of a random model have little to move."""


@pytest.fixture(scope="module", params=COMMANDS)
def finished(
    request: pytest.FixtureRequest, lit_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Method]:
    """What a run leaves, and its method."""
    setup, method = COMMANDS[request.param]
    out_dir = tmp_path_factory.mktemp("out")
    optimizer = {"class_path": "AdamW", "init_args": {"lr": RATES[request.param]}}
    settings: dict[str, Any] = dict(train={"max_steps": 30}, eval={"initial_validation": True}, optimizer=optimizer)
    return run(setup, lit_folder, data_file, out_dir, **settings), method


def test_a_run_leaves_the_adapter_and_what_it_needs(finished: tuple[Path, Method], lit_folder: Path) -> None:
    out_dir, method = finished
    weights = f"lit_model.pth{method.suffix}"
    common = {weights, "model_config.yaml", "tokenizer.json", "tokenizer_config.json", "hyperparameters.yaml"}
    names = {path.name for path in (out_dir / "final").iterdir()}
    assert common <= names and "lit_model.pth" not in names
    assert common <= {path.name for path in (out_dir / "step-000002").iterdir()}
    content = yaml.safe_load((out_dir / "final" / "hyperparameters.yaml").read_text())
    assert Path(content["checkpoint_dir"]) == lit_folder
    raw = torch.load(out_dir / "final" / weights, weights_only=True)
    assert raw.keys() == {"model"} and all(method.owns(name) for name in raw["model"])


def test_all_of_the_adapter_is_trained(finished: tuple[Path, Method]) -> None:
    out_dir, method = finished
    early, late = (load_pth(out_dir / step / f"lit_model.pth{method.suffix}") for step in ("step-000002", "final"))
    assert early.keys() == late.keys()
    assert not [name for name in early if torch.equal(early[name], late[name])]


def test_the_validation_loss_falls(finished: tuple[Path, Method]) -> None:
    metrics = (finished[0] / "logs" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    column = metrics[0].split(",").index("val_loss")
    losses = [float(cells[column]) for line in metrics[1:] if (cells := line.split(","))[column]]
    assert losses[-1] < losses[0] - 0.3


def test_its_folder_is_used_with_the_model_it_was_trained_on(finished: tuple[Path, Method], lit_folder: Path) -> None:
    out_dir, method = finished
    found = find_finetuned(out_dir / "final")
    assert found is not None and found.method == method and found.base.dir == lit_folder
    inference_model = InferenceModel.load(out_dir / "final", precision="32-true")
    assert isinstance(inference_model.style, ChatTemplate)
    tokens = torch.arange(20)[None]
    difference = inference_model.model(tokens) - load_model(lit_folder)(tokens)
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize("suffix", COMMANDS)
def test_a_resumed_run_is_the_run_that_never_stopped(
    suffix: str, lit_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    setup: Callable[..., Any] = COMMANDS[suffix][0]
    run(setup, lit_folder, data_file, tmp_path)
    whole = {name: tensor.clone() for name, tensor in load_pth(tmp_path / "final" / f"lit_model.pth{suffix}").items()}
    run(setup, lit_folder, data_file, tmp_path, resume=tmp_path / "step-000002")
    resumed = load_pth(tmp_path / "final" / f"lit_model.pth{suffix}")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_tied_head_stays_tied(hf_folder: Path, data_file: Path, tmp_path: Path) -> None:
    run(adapter_v2.setup, hf_folder, data_file, tmp_path, resume=None, train={"max_steps": 2})
    model = InferenceModel.load(tmp_path / "final", precision="32-true").model
    assert model.tied and torch.equal(
        model.transformer.wte.weight, load_model(hf_folder).transformer.wte.weight.float()
    )

"""A fingerprint is of the weights, not of their container; updates know the model they were learned on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litgpt import LLM
from litgpt.checkpoint import fingerprint as module
from litgpt.checkpoint.convert import to_hf, to_litgpt
from litgpt.checkpoint.finetuned import METHODS, find_finetuned
from litgpt.checkpoint.fingerprint import BASE, fingerprint, same_weights, saved_base
from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.peft_folder.writer import to_peft
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.checkpoint.writer import save_state
from litgpt.errors import LitGPTError
from litgpt.finetune import adapter, adapter_v2, lora
from litgpt.generate import adapter as generate_adapter
from litgpt.peft import owned_state
from litgpt.scripts.merge_lora import merge_lora
from tests.tiny import hf_folder
from tests.training.runs import tiny_config, tiny_model


def saved(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    tiny_config().save(folder)
    save_state(folder / "lit_model.pth", state)
    return folder


def of(folder: Path) -> str:
    return fingerprint(find_checkpoint(folder))


KINDS = ["llama-tied", "gpt2", "neox", "qwen3-moe", "phi3"]


@pytest.mark.parametrize(
    ("case", "dtype"), [*((kind, None) for kind in KINDS), ("llama", torch.bfloat16), ("llama", torch.float16)]
)
def test_a_copy_in_another_container_or_precision_is_the_same_model(
    case: str, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    folder = hf_folder(case, tmp_path / "hf")
    before = of(folder)
    to_litgpt(folder, dtype=dtype)
    assert find_checkpoint(folder).kind == "litgpt" and same_weights(of(folder), before)
    assert same_weights(of(to_hf(folder, tmp_path / "back")), before)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_other_weights_are_another_model(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    state = {name: tensor.clone() for name, tensor in tiny_model().state_dict().items()}
    before = of(saved(tmp_path_factory.mktemp("before"), state))
    name = data.draw(st.sampled_from(sorted(state)))
    at = data.draw(st.integers(0, state[name].numel() - 1))
    state[name].view(-1)[at] += data.draw(st.sampled_from([-0.01, 0.02, 3.0]))
    assert not same_weights(of(saved(tmp_path_factory.mktemp("after"), state)), before)


def test_a_large_tensor_is_known_by_parts_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VALUES", 2000)
    state = {name: tensor.clone() for name, tensor in tiny_model().state_dict().items()}
    before = of(saved(tmp_path, state))
    for tensor in state.values():
        tensor.mul_(1.01)
    assert of(saved(tmp_path, state)) != before


# ------------------------------------------------------------------------------------------------- where updates meet


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, lit_folder: Path) -> Path:
    return Path(shutil.copytree(lit_folder, tmp_path_factory.mktemp("base") / "model"))


def learned(folder: Path, base: Path, suffix: str) -> Path:
    """What a run leaves in a `step-*` folder, without the run."""
    method: Any = METHODS[suffix]()
    checkpoint = find_checkpoint(base)
    model = load_model(checkpoint)
    method.attach(model)
    folder.mkdir()
    file = folder / f"lit_model.pth{suffix}"
    save_state(file, owned_state(model, method.owns), wrap="model", beside={BASE: fingerprint(checkpoint)})
    rows = [f"checkpoint_dir: {base}", *(f"lora_{name}: {value}" for name, value in method.settings().items())]
    (folder / "hyperparameters.yaml").write_text("\n".join(rows).replace("None", "null"))
    return folder


def change(base: Path) -> None:
    state = {name: tensor.clone() for name, tensor in load_pth(base / "lit_model.pth").items()}
    state["transformer.h.1.mlp.proj.weight"].mul_(1.5)
    save_state(base / "lit_model.pth", state)


@pytest.mark.parametrize("suffix", METHODS)
def test_updates_beside_another_model_than_theirs_are_refused_everywhere(
    suffix: str, lit_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(lit_folder, tmp_path / "base"))
    update = learned(tmp_path / "update", base, suffix)
    assert torch.load(update / f"lit_model.pth{suffix}", weights_only=True).keys() == {"model"}
    found = find_finetuned(update)
    assert found is not None
    found.load_model()
    if suffix == ".lora":
        exported = to_peft(update, tmp_path / "peft")
        assert saved_base(exported / "adapter_model.safetensors") == of(base)
    change(base)
    train = {".lora": lora, ".adapter": adapter, ".adapter_v2": adapter_v2}[suffix].setup
    ways: dict[str, Any] = {
        "open": lambda: LLM.load(update),
        "train on": lambda: train(update, out_dir=tmp_path / "out"),
    }
    if suffix == ".lora":
        ways["merge"] = lambda: merge_lora(update)
        ways["export"] = lambda: to_peft(update, tmp_path / "peft2")
        ways["open PEFT's"] = lambda: LLM.load(exported)
    if suffix == ".adapter":
        ways["generate"] = lambda: generate_adapter.main(prompt="x", checkpoint_dir=base, adapter_path=update)
    for way, go in ways.items():
        with pytest.raises(LitGPTError, match="was trained on other weights than"):
            go()
            pytest.fail(way)
    assert not (tmp_path / "out").exists() and not (tmp_path / "peft2").exists()
    assert not (update / "lit_model.pth").exists()


def test_updates_that_tell_of_no_base_are_taken_as_they_are(base: Path, tmp_path: Path) -> None:
    update = learned(tmp_path / "update", base, ".lora")
    file = update / "lit_model.pth.lora"
    torch.save(torch.load(file, weights_only=True), file)
    assert saved_base(file) == ""
    found = find_finetuned(update)
    assert found is not None
    found.load_model()

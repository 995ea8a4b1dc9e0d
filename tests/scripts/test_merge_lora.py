"""`litgpt merge_lora`: what it reads, what it writes, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.checkpoint.writer import save_state
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import owned_state
from litgpt.scripts.merge_lora import merge_lora

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 32, "padded_vocab_size": 32, "block_size": 16}
SETTINGS = {
    "lora_r": 2,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "lora_mlp": True,
    "lora_query": False,
    "lora_value": True,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in bfloat16."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = GPT(Config(**SIZES)).bfloat16()
    model.config.save(folder)
    save_state(folder / "lit_model.pth", model.state_dict())
    return folder


@pytest.fixture
def trained(base: Path, tmp_path: Path) -> Path:
    """What a run with `bf16-mixed` leaves before merging: an update in float32."""
    model = load_model(base, dtype=torch.float32)
    method = LoRA(**{name.removeprefix("lora_"): value for name, value in SETTINGS.items()})
    method.attach(model)
    update = owned_state(model, method.owns)
    for tensor in update.values():
        torch.nn.init.normal_(tensor)
    folder = tmp_path / "final"
    folder.mkdir()
    save_state(folder / "lit_model.pth.lora", update, wrap="model")
    shutil.copy(base / "model_config.yaml", folder)
    settings = {**SETTINGS, "checkpoint_dir": str(base), "precision": "bf16-mixed"}
    (folder / "hyperparameters.yaml").write_text(yaml.dump(settings))
    return folder


def test_updated_weights_change_and_no_others(base: Path, trained: Path) -> None:
    merge_lora(trained)
    before, after = load_pth(base / "lit_model.pth"), load_pth(trained / "lit_model.pth")
    update = load_pth(trained / "lit_model.pth.lora")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        f"transformer.h.{i}.{part}.weight" for i in (0, 1) for part in ("attn.qkv", "mlp.fc", "mlp.proj")
    }
    a, b = (update[f"transformer.h.0.mlp.fc.lora_{part}"] for part in "AB")
    expected = (before["transformer.h.0.mlp.fc.weight"].float() + 4 * b @ a).bfloat16()
    assert torch.equal(after["transformer.h.0.mlp.fc.weight"], expected)


def test_the_result_has_the_dtype_of_the_base_or_the_one_asked_for(trained: Path) -> None:
    merge_lora(trained)
    assert {tensor.dtype for tensor in load_pth(trained / "lit_model.pth").values()} == {torch.bfloat16}
    (trained / "lit_model.pth").unlink()
    merge_lora(trained, precision="32-true")
    assert {tensor.dtype for tensor in load_pth(trained / "lit_model.pth").values()} == {torch.float32}


def test_what_is_merged_already_stays(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "lit_model.pth").write_bytes(b"as it was")
    merge_lora(trained)
    assert (trained / "lit_model.pth").read_bytes() == b"as it was"
    assert "already" in capsys.readouterr().out
    for change in ({"precision": "bf16-true"}, {"pretrained_checkpoint_dir": trained}):
        with pytest.raises(LitGPTError, match="already; remove that to merge anew"):
            merge_lora(trained, **change)
    assert (trained / "lit_model.pth").read_bytes() == b"as it was"


def test_the_base_may_have_moved(base: Path, trained: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((trained / "hyperparameters.yaml").read_text())
    (trained / "hyperparameters.yaml").write_text(yaml.dump({**settings, "checkpoint_dir": str(tmp_path / "gone")}))
    with pytest.raises(LitGPTError, match="no checkpoint folder"):
        merge_lora(trained)
    merge_lora(trained, pretrained_checkpoint_dir=base)
    assert load_model(trained)(torch.arange(4)[None]).isfinite().all()


def test_a_model_that_no_lora_was_trained_on_is_refused(base: Path) -> None:
    with pytest.raises(LitGPTError, match=r"has no lit_model\.pth\.lora to merge"):
        merge_lora(base)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda folder: (folder / "lit_model.pth.lora").unlink(), r"has no lit_model\.pth\.lora to merge"),
        (lambda folder: (folder / "hyperparameters.yaml").unlink(), r"no hyperparameters\.yaml"),
        (lambda folder: (folder / "hyperparameters.yaml").write_text("lora_r: 2"), "is no file of the settings"),
        (lambda folder: (folder / "hyperparameters.yaml").write_text("- 1"), "is no file of the settings"),
        (lambda folder: os.truncate(folder / "lit_model.pth.lora", 500), r"lit_model\.pth\.lora is damaged"),
    ],
)
def test_bad_folders_are_told_in_one_sentence_and_stay_as_they_were(
    trained: Path, change: object, complaint: str
) -> None:
    change(trained)  # type: ignore[operator]
    with pytest.raises(LitGPTError, match=complaint) as caught:
        merge_lora(trained)
    assert "\n" not in str(caught.value)
    assert not (trained / "lit_model.pth").exists() and not list(trained.glob(".*"))


def test_an_update_of_other_settings_is_refused(base: Path, trained: Path) -> None:
    settings = yaml.safe_load((trained / "hyperparameters.yaml").read_text())
    (trained / "hyperparameters.yaml").write_text(yaml.dump({**settings, "lora_r": 4}))
    with pytest.raises(LitGPTError, match="of shape"):
        merge_lora(trained)


PEER = """
import sys, torch, yaml
from pathlib import Path
from litgpt.lora import GPT, Config, lora_filter, merge_lora_weights
torch.manual_seed(1)
sizes, settings, folder = yaml.safe_load(sys.argv[1]), yaml.safe_load(sys.argv[2]), Path(sys.argv[3])
model = GPT(Config(**sizes, **settings)).eval()
for name, tensor in model.state_dict().items():
    if "lora_B" in name:
        torch.nn.init.normal_(tensor)
state = model.state_dict()
base = {name.replace(".linear.", "."): tensor.clone() for name, tensor in state.items() if "lora_" not in name}
torch.save(base, folder / "base" / "lit_model.pth")
torch.save({"model": {n: t for n, t in state.items() if lora_filter(n, t)}}, folder / "run" / "lit_model.pth.lora")
merge_lora_weights(model)
with torch.no_grad():
    torch.save(model(torch.arange(8)[None]), folder / "logits.pth")
"""


@pytest.mark.slow
def test_what_litgpt_trained_is_merged_as_litgpt_merges_it(peer_python: str, tmp_path: Path) -> None:
    for folder in (tmp_path / "base", tmp_path / "run"):
        folder.mkdir()
        Config(**SIZES).save(folder)
    settings = {**SETTINGS, "lora_query": True, "lora_key": False, "lora_head": True, "lora_projection": True}
    command = [peer_python, "-I", "-c", PEER, yaml.dump(SIZES), yaml.dump(settings), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    content = {**settings, "checkpoint_dir": str(tmp_path / "base"), "precision": "32-true"}
    (tmp_path / "run" / "hyperparameters.yaml").write_text(yaml.dump(content))
    merge_lora(tmp_path / "run")
    with torch.no_grad():
        ours = load_model(tmp_path / "run")(torch.arange(8)[None])
    torch.testing.assert_close(ours, torch.load(tmp_path / "logits.pth", weights_only=True), rtol=1e-4, atol=1e-4)

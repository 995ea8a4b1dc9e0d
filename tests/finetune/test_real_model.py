"""LoRA on a real instruct model with real instructions, and LitGPT 0.5.13 opening what it leaves."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.args import EvalArgs, TrainArgs
from litgpt.checkpoint.finetuned import find_finetuned
from litgpt.checkpoint.peft_folder.writer import to_peft
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.data import JSON
from litgpt.finetune import lora
from litgpt.generate.base import main as generate
from litgpt.lora import LoRA
from litgpt.peft import load_owned

pytestmark = pytest.mark.slow
TOKENS = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365]


@pytest.fixture(scope="module")
def instructions(shared_assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 samples to train and 32 others to validate on."""
    folder = tmp_path_factory.mktemp("instructions")
    rows = json.loads((shared_assets / "instruct" / "alpaca_en_demo.json").read_text())
    (folder / "train.json").write_text(json.dumps(rows[:160]))
    (folder / "val.json").write_text(json.dumps(rows[500:532]))
    return folder


@pytest.fixture(scope="module")
def finetuned(smollm2: Path, instructions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("out")
    steps = dict(global_batch_size=8, micro_batch_size=4, epochs=1, lr_warmup_steps=3, max_seq_length=128)
    lora.setup(
        smollm2,
        out_dir=out_dir,
        lora_key=True,
        lora_projection=True,
        lora_mlp=True,
        data=JSON(instructions, mask_prompt=True, prompt_style="chat"),
        train=TrainArgs(**steps),
        eval=EvalArgs(interval=1000, initial_validation=True, max_new_tokens=40),
        optimizer={"class_path": "AdamW", "init_args": {"lr": 1e-3}},
    )
    return out_dir


def test_validation_loss_falls_by_a_tenth_of_a_nat(finetuned: Path) -> None:
    with (finetuned / "logs" / "csv" / "version_0" / "metrics.csv").open() as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row.get("val_loss")]
    print(f"validation loss before {losses[0]:.4f}, after {losses[-1]:.4f}")
    assert losses[-1] <= losses[0] - 0.1


PEER = """
import sys, torch, yaml
from pathlib import Path
from litgpt.lora import GPT as LoRAGPT, Config as LoRAConfig, merge_lora_weights
from litgpt.model import GPT
from litgpt.config import Config
from litgpt.tokenizer import Tokenizer
final, base, tokens, out = Path(sys.argv[1]), sys.argv[2], eval(sys.argv[3]), sys.argv[4]
idx = torch.tensor([tokens])
model = GPT(Config.from_checkpoint(final)).float().eval()
state = torch.load(final / "lit_model.pth", weights_only=True)
model.load_state_dict(state)
hp = yaml.safe_load((final / "hyperparameters.yaml").read_text())
settings = {name: value for name, value in hp.items() if name.startswith("lora_")}
adapted = LoRAGPT(LoRAConfig.from_checkpoint(final, **settings)).float().eval()
base_state = torch.load(base, weights_only=True)
missing, surplus = adapted.load_state_dict(base_state, strict=False)
assert not surplus and all("lora" in name for name in missing), (missing, surplus)
update = torch.load(final / "lit_model.pth.lora", weights_only=True)["model"]
missing, surplus = adapted.load_state_dict(update, strict=False)
assert not surplus and not any("lora" in name for name in missing), (missing, surplus)
Tokenizer(final)
with torch.no_grad():
    torch.save({"merged": model(idx), "adapted": adapted(idx)}, out)
"""


def test_litgpt_opens_the_merged_model_and_the_update_with_equal_logits(
    finetuned: Path, smollm2: Path, peer_python: str, tmp_path: Path
) -> None:
    from litgpt.checkpoint.writer import save_state

    base = load_model(smollm2)
    save_state(tmp_path / "base.pth", base.state_dict())
    final, out = finetuned / "final", tmp_path / "logits.pth"
    command = [peer_python, "-I", "-c", PEER, str(final), str(tmp_path / "base.pth"), str(TOKENS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs: dict[str, Any] = torch.load(out, weights_only=True)
    idx = torch.tensor([TOKENS])
    with torch.no_grad():
        merged = load_model(final, dtype=torch.float32)(idx)
        model = load_model(smollm2, dtype=torch.float32)
        method = LoRA(key=True, projection=True, mlp=True)
        method.attach(model)
        path = final / "lit_model.pth.lora"
        load_owned(model, method.owns, load_pth(path), str(path))
        adapted = model.eval()(idx)
    torch.testing.assert_close(merged, theirs["merged"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(adapted, theirs["adapted"], rtol=1e-4, atol=1e-3)


KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora_mlp": True},
    "rslora": {"lora_rslora": True, "lora_target": "attn.*,mlp.proj"},
    "dora": {"lora_dora": True, "lora_key": True, "lora_projection": True},
}


@pytest.fixture(scope="module", params=KINDS)
def short_run(
    request: pytest.FixtureRequest, smollm2: Path, instructions: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """What two steps of a kind of LoRA leave."""
    out_dir = tmp_path_factory.mktemp(request.param)
    lora.setup(
        smollm2,
        out_dir=out_dir,
        data=JSON(instructions, prompt_style="chat"),
        train=TrainArgs(global_batch_size=4, micro_batch_size=4, max_steps=2, epochs=None, max_seq_length=64),
        eval=EvalArgs(interval=1000, final_validation=False, max_new_tokens=0),
        optimizer={"class_path": "AdamW", "init_args": {"lr": 1e-2}},
        **KINDS[request.param],
    )
    return request.param, out_dir / "final"


def test_peft_opens_the_export_with_equal_logits(
    short_run: tuple[str, Path], smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    to_peft(short_run[1], tmp_path / "peft")
    found, idx = find_finetuned(tmp_path / "peft"), torch.tensor([TOKENS])
    assert found is not None
    base = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the two libraries about each other
        plain = base(idx).logits
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()(idx).logits
        ours = found.load_model(dtype=torch.float32)(idx)
    assert (theirs - plain).abs().max() > 0.1, "nothing was learned"
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    for folder in (short_run[1], tmp_path / "peft"):
        capsys.readouterr()
        generate(folder, prompt="Name a colour.", max_new_tokens=4, precision="32-true")
        assert capsys.readouterr().out.strip()


def test_litgpt_stops_at_kinds_that_it_does_not_know(
    short_run: tuple[str, Path], smollm2: Path, peer_python: str, tmp_path: Path
) -> None:
    """Rather than merging an update as if it were plain LoRA."""
    from litgpt.checkpoint.layout import copy_config_files
    from litgpt.checkpoint.writer import save_state

    kind, final = short_run
    copy_config_files(smollm2, tmp_path / "base")
    model = load_model(smollm2)
    save_state(tmp_path / "base" / "lit_model.pth", model.state_dict())
    model.config.save(tmp_path / "base")
    folder = tmp_path / "updates"
    shutil.copytree(final, folder, ignore=shutil.ignore_patterns("lit_model.pth"))
    code = "import sys; from litgpt.scripts.merge_lora import merge_lora; from pathlib import Path; "
    code += "merge_lora(Path(sys.argv[1]), Path(sys.argv[2]))"
    command = [peer_python, "-I", "-c", code, str(folder), str(tmp_path / "base")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode == 0) == (folder / "lit_model.pth").is_file() == (kind == "lora"), done.stderr[-1500:]
    assert kind == "lora" or "unexpected keyword argument 'lora_" in done.stderr
    if kind == "lora":
        ours, theirs = load_pth(final / "lit_model.pth"), load_pth(folder / "lit_model.pth")
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0.02, atol=0.02, check_dtype=False)

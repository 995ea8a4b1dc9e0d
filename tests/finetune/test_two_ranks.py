"""Two gloo ranks on the CPU against one process: preferences, distillation and rewards, replicated and shared out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.args import EvalArgs, TrainArgs
from litgpt.checkpoint.reader import load_pth
from litgpt.data import JSON, Preferences, Prompts
from litgpt.errors import LitGPTError
from litgpt.finetune import distill, dpo, grpo
from litgpt.training.metrics.loggers import read_metrics
from tests.training.test_sharded import start

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5
"""Of losses, in float32."""
WORDS = ["cat", "dog", "cow", "hen", "pig", "fox", "bee", "ant", "owl", "elk"]
REWARD = """
def short(prompts, completions, **columns):
    return [-len(text) / 10 for text in completions]

def failing(prompts, completions, **columns):
    return [1 / 0 for text in completions]
"""


def common(folder: Path, out: str, **train: Any) -> dict[str, Any]:
    settings = dict(
        global_batch_size=3, micro_batch_size=2, lr_warmup_steps=0, max_steps=3, min_lr=0.0, save_interval=2
    )
    return dict(
        checkpoint_dir=folder / "model",
        out_dir=folder / out,
        precision="32-true",
        optimizer={"class_path": "AdamW", "init_args": {"lr": 0.01}},
        train=TrainArgs(**{**settings, **train}),
        eval=EvalArgs(interval=2, max_new_tokens=None, initial_validation=True),
    )


def preferences(folder: Path, out: str, **more: Any) -> None:
    data = Preferences(path=folder / "pairs.json", val_split_fraction=0.2, prompt_style="default", seed=1)
    dpo.setup(**{**common(folder, out), "data": data, **more})


def distillation(folder: Path, out: str, **more: Any) -> None:
    data = JSON(folder / "data.json", val_split_fraction=0.2, prompt_style="default", mask_prompt=True)
    given = dict(teacher=str(folder / "teacher"), data=data, on_policy=0.5, max_new_tokens=6)
    distill.setup(**{**common(folder, out), **given, **more})


def rewards(folder: Path, out: str, **more: Any) -> None:
    data = Prompts(path=folder / "prompts.json", val_split_fraction=0.2, prompt_style="default", seed=1)
    given = dict(data=data, reward=f"{folder}/own.py:short", max_new_tokens=6, group_size=4, deterministic=True)
    grpo.setup(**{**common(folder, out, global_batch_size=2, max_steps=4), **given, **more})


RUNS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "dpo": (preferences, {}),
    "dpo-full": (preferences, {"method": "full"}),
    "kto": (preferences, {"loss": "kto"}),
    "distill": (distillation, {"divergence": "jsd"}),
    "grpo": (rewards, {"method": "full", "loss": "dapo"}),
    "grpo-lora": (rewards, {"updates": 2, "beta": 0.05}),
}
SHARED_OUT = ("dpo", "dpo-full", "distill", "grpo", "grpo-lora")
MISTAKES: dict[str, dict[str, Any]] = {
    "frozen": {"method": "full", "beta": 0.1, "strategy": "fsdp"},
    "reward": {"strategy": "ddp", "reward": "own.py:failing"},
}


def two_ranks(folder: Path) -> None:
    os.environ["LITGPT_CACHE"] = str(folder / "cache")
    for name, (run, settings) in RUNS.items():
        run(folder, f"{name}-ddp", devices=2, strategy="ddp", **settings)
    for name in SHARED_OUT:
        run, settings = RUNS[name]
        run(folder, f"{name}-fsdp", devices=2, strategy="fsdp", **settings)
    for name, settings in MISTAKES.items():
        if "reward" in settings:
            settings = {**settings, "reward": f"{folder}/{settings['reward']}"}
        try:
            rewards(folder, f"{name}-refused", devices=2, **settings)
        except LitGPTError as error:
            (folder / f"{name}-{os.environ['LOCAL_RANK']}.txt").write_text(str(error))


@pytest.fixture(scope="module")
def folder(lit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what runs of one process and of two ranks left."""
    folder = tmp_path_factory.mktemp("ranks")
    os.environ["LITGPT_CACHE"] = str(folder / "cache")
    shutil.copytree(lit_folder, folder / "model")
    shutil.copytree(lit_folder, folder / "teacher")
    state = load_pth(folder / "teacher" / "lit_model.pth")
    torch.manual_seed(7)
    torch.save({name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in state.items()}, folder / "t.pth")
    (folder / "t.pth").rename(folder / "teacher" / "lit_model.pth")
    pairs = [{"prompt": f"Name the {word}.", "chosen": f"It is the {word}.", "rejected": "No."} for word in WORDS]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    (folder / "data.json").write_text(json.dumps([{"instruction": f"Name the {w}.", "output": w} for w in WORDS]))
    (folder / "prompts.json").write_text(json.dumps([{"prompt": f"Name the {word}."} for word in WORDS]))
    (folder / "own.py").write_text(REWARD)
    for name, (run, settings) in RUNS.items():
        run(folder, f"{name}-one", **settings)
    start(two_ranks, 2, folder)
    return folder


def column(folder: Path, name: str) -> list[float]:
    rows = read_metrics(folder / "logs" / "csv" / "version_0" / "metrics.csv")
    return [row[name] for row in rows if name in row]


def equal(folder: Path, name: str, kind: str) -> None:
    for measure in ("loss", "val_loss", "grad_norm", "accuracy", "margin", "reward", "val_reward", "divergence"):
        one, two = (column(folder / f"{name}-{which}", measure) for which in ("one", kind))
        assert two == pytest.approx(one, abs=TOLERANCE), measure
    assert len(column(folder / f"{name}-{kind}", "loss")) >= 3
    file = next(
        iter(sorted((folder / f"{name}-one" / "final").glob("lit_model.pth*"), key=lambda path: -len(path.name)))
    )
    ours, theirs = load_pth(file), load_pth(folder / f"{name}-{kind}" / "final" / file.name)
    for key, tensor in ours.items():
        if key.endswith("qkv.bias"):  # that of keys changes nothing: its gradient is rounding, which Adam scales up
            continue
        torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=2e-4, msg=f"{name} {key}")


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_learn_what_one_process_learns(folder: Path, name: str) -> None:
    equal(folder, name, "ddp")


@pytest.mark.parametrize("name", SHARED_OUT)
def test_a_model_that_is_shared_out_learns_the_same(folder: Path, name: str) -> None:
    equal(folder, name, "fsdp")


@pytest.mark.parametrize(
    ("name", "complaint"), [("frozen", "shared out over devices: use --strategy ddp"), ("reward", "division by zero")]
)
def test_a_mistake_is_one_sentence_on_every_rank(folder: Path, name: str, complaint: str) -> None:
    for rank in (0, 1):
        assert complaint in (folder / f"{name}-{rank}.txt").read_text()

"""`finetune_grpo` from its arguments to a folder: rollouts by the engine on the weights that train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.args import EvalArgs, TrainArgs
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.data import Conversations, Prompts
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError, UsageError
from litgpt.finetune import full, grpo
from litgpt.finetune.policy.rollouts import turns_of
from litgpt.finetune.sampling_answers import Sampler
from litgpt.peft import Full, Method
from litgpt.peft.adapter_v2 import AdapterV2
from litgpt.peft.lora import LoRA
from litgpt.runtime import make_fabric
from litgpt.training.metrics import metrics
from litgpt.training.metrics.loggers import read_metrics
from tests.paths import ROOT
from tests.tiny_tokenizer import SIZE

FAST = {"class_path": "AdamW", "init_args": {"lr": 0.02}}
WORDS = ["cat", "dog", "cow", "hen", "pig", "fox", "bee", "ant", "owl", "elk"]
OWN = """
def short(prompts, completions, word, **columns):
    assert len(prompts) == len(completions) == len(word)
    return [-len(text) / 10 for text in completions]

def wrong(prompts, completions, **columns):
    return [1.0]

def failing(prompts, completions, **columns):
    return [1 / 0]

class Tool:
    def __call__(self, prompt, completion, word, **columns):
        return "It is" if completion.count("It is") < 1 else None
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(metrics, "draw_loss", lambda rows, path, title: path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    rows = [{"prompt": f"Name the {word}.", "answer": word, "word": word} for word in WORDS]
    (folder / "prompts.json").write_text(json.dumps(rows))
    (folder / "own.py").write_text(OWN)
    return folder


def run(folder: Path, files: Path, out_dir: Path, **arguments: Any) -> list[dict[str, float]]:
    settings = dict(global_batch_size=2, micro_batch_size=4, lr_warmup_steps=0, max_steps=4, save_interval=1)
    train = TrainArgs(**{**settings, "min_lr": 0.0, **arguments.pop("train", {})})
    evaluation = EvalArgs(interval=2, max_new_tokens=None, initial_validation=True)
    data = Prompts(path=files / "prompts.json", val_split_fraction=0.2, prompt_style="default", seed=1)
    given = {"data": data, "precision": "32-true", "optimizer": FAST, "reward": f"{files}/own.py:short"}
    given |= {"max_new_tokens": 6, "group_size": 4, **arguments}
    grpo.setup(folder, out_dir=out_dir, train=train, eval=evaluation, **given)
    return read_metrics(sorted((out_dir / "logs" / "csv").iterdir())[-1] / "metrics.csv")


def column(rows: list[dict[str, float]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("method", "loss", "deterministic"),
    [("lora", "dapo", False), ("full", "grpo", True), pytest.param("adapter_v2", "rloo", False, marks=SLOW)],
)
def test_a_run_resumes_exactly_in_the_middle_of_a_portion(
    method: Any, loss: Any, deterministic: bool, lit_folder: Path, files: Path, tmp_path: Path
) -> None:
    options = dict(method=method, loss=loss, updates=2, beta=0.05, deterministic=deterministic)
    rows = run(lit_folder, files, tmp_path / "whole", **options)
    assert len(column(rows, "loss")) == 4 and column(rows, "epoch") == [0.0, 0.25, 0.25, 0.5]
    rewards = column(rows, "reward")
    assert rewards[0] == rewards[1] and rewards[2] == rewards[3]  # two steps learn from the same answers
    assert max(column(rows, "drift")) < 1e-5  # engine and trainer, in float32
    assert column(rows, "reference_kl")[0] == pytest.approx(0, abs=1e-8) and column(rows, "reference_kl")[-1] > 0
    assert len(column(rows, "val_reward")) == 3
    again = run(lit_folder, files, tmp_path / "again", resume=tmp_path / "whole" / "step-000001", **options)
    for name in ("loss", "reward", "val_reward"):
        assert column(again, name) == column(rows, name), name
    file = tmp_path / "whole" / "final" / {"full": "lit_model.pth"}.get(method, f"lit_model.pth.{method}")
    ours, theirs = load_pth(file), load_pth(tmp_path / "again" / "final" / file.name)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "(reward -" in (tmp_path / "whole" / "report.html").read_text()


@pytest.mark.parametrize("method", [Full(), LoRA(r=2, mlp=True), AdapterV2(start_layer=0)], ids=lambda one: one.suffix)
def test_given_answers_have_the_log_probabilities_that_were_noted_to_the_bit(
    method: Method, lit_folder: Path, hf_folder: Path
) -> None:
    fabric = make_fabric(1, precision="32-true", device="cpu")
    for folder in (lit_folder, hf_folder):
        model = load_model(folder, dtype=torch.float32)
        method.attach(model)
        for name, parameter in model.named_parameters():
            if name.endswith(("lora_B", "adapter_bias")):
                torch.nn.init.normal_(parameter, std=0.1)
        generator = torch.Generator().manual_seed(3)
        prompts = [torch.randint(4, SIZE, (size,), generator=generator).tolist() for size in (3, 90, 17, 64, 5)]
        samplings = [Sampling(seed=seed, logprobs=0) for seed in range(5)]
        drawn = Sampler(model, fabric, [], 20, slots=2, deterministic=True).answers(prompts, samplings)
        again = Sampler(model, fabric, [], 20, slots=5, deterministic=True)
        found = again.replayed(prompts[::-1], [answer.ids for answer in drawn][::-1])[::-1]
        assert found == [answer.log_probs for answer in drawn]
        with torch.no_grad():
            model.transformer.ln_f.weight.mul_(1.01)
        assert again.replayed(prompts, [answer.ids for answer in drawn]) != found
        assert len({len(answer.ids) for answer in drawn}) == 1 and len(drawn[0].ids) == 20


def test_talks_with_an_environment_learn_what_the_model_said(lit_folder: Path, files: Path, tmp_path: Path) -> None:
    assert turns_of(torch.tensor([-100, -100, 5, 6, -100, 7])) == [(2, 4), (5, 6)]
    options = dict(environment=f"{files}/own.py:Tool", max_turns=3, train={"max_steps": 2}, deterministic=True)
    rows = run(lit_folder, files, tmp_path / "out", loss="dr_grpo", updates=2, **options)
    assert max(column(rows, "drift")) < 1e-5  # after the first update, too, turn by turn
    assert column(rows, "answer_tokens")[0] >= 1
    with pytest.raises(UsageError, match="--max_turns is for talks"):
        run(lit_folder, files, tmp_path / "refused", max_turns=2)


def test_what_does_not_go_together_is_refused(lit_folder: Path, files: Path, tmp_path: Path) -> None:
    others = Conversations(path=files / "prompts.json", prompt_style="default")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"data": others}, "give --data Prompts"),
        ({"group_size": 1}, "--group_size must be 2"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"reward": None}, "Give --reward"),
        ({"reward": "praise"}, "There is no reward 'praise'"),
        ({"reward": ["code", "exact_match"], "reward_weights": [1.0]}, "--reward_weights has 1 numbers"),
        ({"reward": "regex:("}, "is no regular expression"),
        ({"method": "full", "quantize": "bnb.nf4"}, "--quantize keeps frozen"),
        ({"train": {"z_loss": 0.1}}, "train.z_loss goes by"),
    ]
    for arguments, complaint in cases:
        with pytest.raises(UsageError, match=complaint):
            run(lit_folder, files, tmp_path / "out", **arguments)
    for reward, complaint in (
        ("wrong", "returns .*; it has to return 2 finite numbers"),
        ("failing", "The reward failing fails in line 10 of own.py: division by zero"),
        ("absent", "has no function 'absent'"),
    ):
        with pytest.raises(LitGPTError, match=complaint):
            run(lit_folder, files, tmp_path / "out", reward=f"{files}/own.py:{reward}", train={"max_steps": 1})
    data = Prompts(path=files / "prompts.json", prompt_style="default")
    with pytest.raises(LitGPTError, match="--data Prompts is for finetune_grpo"):
        full.setup(lit_folder, out_dir=tmp_path / "out", data=data)


# ------------------------------------------------------------------------------------------------- the real thing


@pytest.mark.slow
def test_a_model_doubles_its_reward(files: Path, tmp_path: Path) -> None:
    """The share of vowels in what the shipped model says is 0.3; that of `e`s, a tenth, has a ceiling of 1."""
    (tmp_path / "own.py").write_text(
        "def vowel(prompts, completions, **columns):\n"
        "    return [text.lower().count('e') / max(1, len(text)) for text in completions]\n"
    )
    names = "He She It They Emma Anne Elizabeth Darcy Jane Catherine Knightley Wickham".split()
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": f"{name} was"} for name in names]))
    rows = run(
        ROOT / "litgpt" / "assets" / "austen-2m",
        tmp_path,
        tmp_path / "out",
        reward=f"{tmp_path}/own.py:vowel",
        method="full",
        group_size=8,
        max_new_tokens=12,
        optimizer={"class_path": "AdamW", "init_args": {"lr": 1e-3}},
        train={"max_steps": 25, "global_batch_size": 4, "micro_batch_size": 32, "save_interval": None},
    )
    rewards = column(rows, "reward")
    print([round(reward, 3) for reward in rewards], max(column(rows, "drift")))
    assert sum(rewards[-3:]) >= 2 * sum(rewards[:3])

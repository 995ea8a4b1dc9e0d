"""A reward model's scores against transformers' own class on the same folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.args import EvalArgs, TrainArgs
from litgpt.cli.plan import plan
from litgpt.data import Prompts
from litgpt.errors import LitGPTError
from litgpt.finetune import grpo
from litgpt.finetune.policy.reward_model import RewardModel
from litgpt.training.metrics.loggers import read_metrics
from tests.tiny import GPT2_LIKE, LLAMA_LIKE
from tests.tiny_tokenizer import SIZE, write_tokenizer

transformers = pytest.importorskip("transformers")
SIZES: dict[str, Any] = dict(vocab_size=SIZE, num_labels=1, pad_token_id=3)
KINDS = {
    "Llama": {**LLAMA_LIKE, "max_position_embeddings": 128, **SIZES},
    "Qwen2": {**LLAMA_LIKE, "max_position_embeddings": 128, **SIZES},
    "GPT2": {**GPT2_LIKE, "n_positions": 128, **SIZES},
}
TEMPLATE = "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '\\n' }}{% endfor %}"


def make_folder(folder: Path, kind: str, template: str | None = None, **changes: Any) -> Any:
    """A folder of random weights; its model in transformers."""
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    if template is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    config = getattr(transformers, f"{kind}Config")(**{**KINDS[kind], **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = make_folder(tmp_path / "model", kind)
    ours = RewardModel(str(tmp_path / "model"), dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(4, SIZE, (length,), generator=generator).tolist() for length in (5, 30, 1, 17, 64)]
    texts += [[*texts[0], 3, 3], [3]]  # at the end of a text, padding doesn't count
    with torch.no_grad():
        expected = [float(theirs(torch.tensor([text])).logits[0, 0]) for text in texts]
    assert ours.scores(texts) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert len(set(expected)) > 4


def test_a_template_of_its_own_puts_prompt_and_answer_into_words(tmp_path: Path) -> None:
    make_folder(tmp_path / "plain", "Llama")
    make_folder(tmp_path / "chat", "Llama", TEMPLATE)
    plain, chat = (RewardModel(str(tmp_path / name), dtype=torch.float32) for name in ("plain", "chat"))
    messages = [{"role": "user", "content": "Name the cat."}]
    found = chat(["<prompt>"], ["cat"], prompt_messages=[messages])
    text = "[user] Name the cat.\n[assistant] cat\n"
    assert found == pytest.approx(plain.scores([plain.tokenizer.encode_ids(text, bos=False)]))
    assert plain(["Name the cat. "], ["cat"], prompt_messages=[messages]) == pytest.approx(
        plain.scores([plain.tokenizer.encode_ids("Name the cat. cat")])
    )


def test_what_is_no_reward_model_is_refused(tmp_path: Path, hf_folder: Path, lit_folder: Path) -> None:
    make_folder(tmp_path / "two", "Llama", num_labels=2)
    make_folder(tmp_path / "headless", "Llama")
    config = json.loads((tmp_path / "headless" / "config.json").read_text())
    shutil.copytree(tmp_path / "headless", tmp_path / "unknown")
    (tmp_path / "unknown" / "config.json").write_text(
        json.dumps({**config, "architectures": ["BertForSequenceClassification"], "model_type": "bert"})
    )
    shutil.copyfile(hf_folder / "model.safetensors", tmp_path / "headless" / "model.safetensors")
    for folder, complaint in (
        (tmp_path / "absent", "There is no checkpoint folder"),
        (hf_folder, "is a LlamaForCausalLM; a model that scores texts is"),
        (lit_folder, "a model that scores texts is a Hugging Face"),
        (tmp_path / "two", "scores texts by 2 labels; a reward model is"),
        (tmp_path / "headless", "has no tensor score.weight"),
        (tmp_path / "unknown", "No model family here reads model_type 'bert'"),
    ):
        with pytest.raises(LitGPTError, match=complaint):
            RewardModel(str(folder))
    make_folder(tmp_path / "short", "Llama")
    with pytest.raises(LitGPTError, match="129 tokens for the reward model, whose context is 128"):
        RewardModel(str(tmp_path / "short")).scores([[5] * 129])


def test_it_rewards_a_run(lit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITGPT_CACHE", str(tmp_path / "cache"))
    theirs = make_folder(tmp_path / "model", "Qwen2", TEMPLATE)
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": f"Name the {word}."} for word in ("cat", "dog")]))
    grpo.setup(
        lit_folder,
        reward=f"reward_model:{tmp_path / 'model'}",
        out_dir=tmp_path / "out",
        data=Prompts(path=tmp_path / "prompts.json", val_split_fraction=0, prompt_style="default"),
        train=TrainArgs(max_steps=1, global_batch_size=2, micro_batch_size=4, lr_warmup_steps=0),
        eval=EvalArgs(max_new_tokens=None),
        max_new_tokens=6,
        group_size=4,
        precision="32-true",
    )
    rows = read_metrics(tmp_path / "out" / "logs" / "csv" / "version_0" / "metrics.csv")
    assert theirs.score.weight.abs().max() > 0 and rows[-1]["reward_std"] > 0


def test_it_is_planned(lit_folder: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "model", "Llama")
    common = [str(lit_folder), "--train.max_seq_length", "64", "--train.max_steps", "2", "--plan.peak_tflops", "1"]
    without, beside = (
        plan("finetune_grpo", *common, "--reward", reward)
        for reward in ("exact_match", f"reward_model:{tmp_path / 'model'}")
    )
    assert without is not None and beside is not None
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert beside["memory"]["weights"] - without["memory"]["weights"] == size

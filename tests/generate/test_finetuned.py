"""`generate_full`, `generate_adapter`, `generate_adapter_v2`, and the folders of finetuning runs in other clients."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from litgpt.adapter import Adapter
from litgpt.adapter_v2 import AdapterV2
from litgpt.api import LLM
from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.reader import load_model
from litgpt.checkpoint.writer import save_state
from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError
from litgpt.generate import adapter, adapter_v2, base, full
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import Full, Method, owned_state
from litgpt.prompts import Alpaca, PromptStyle, save_prompt_style
from litgpt.tokenizer import Tokenizer
from tests.engine.oracle import naive
from tests.generate.folder import END, make_folder

METHODS: dict[str, tuple[Callable[..., None] | None, str, Callable[[], Method]]] = {
    "full": (full.main, "finetuned_path", Full),
    "adapter": (adapter.main, "adapter_path", Adapter),
    "adapter_v2": (adapter_v2.main, "adapter_path", AdapterV2),
    "lora": (None, "", lambda: LoRA(r=4, mlp=True, head=True)),
}
BESIDE = ["adapter", "adapter_v2", "lora"]
EXACT = dict(temperature=0.0, precision="32-true")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that was finetuned; its prompt style is a chat template."""
    return make_folder(tmp_path_factory.mktemp("base") / "tiny", block_size=256, n_layer=3)


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, GPT]]:
    """By method: what a run of it leaves (with Alpaca's prompt style), and the model it trained."""
    made = {}
    for name, (_, _, make) in METHODS.items():
        method, out = make(), tmp_path_factory.mktemp(name)
        torch.manual_seed(3)
        model = load_model(folder, dtype=torch.float32)
        method.attach(model)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if method.owns(parameter_name):
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
        save_state(out / f"lit_model.pth{method.suffix}", owned_state(model, method.owns))
        settings = {"checkpoint_dir": str(folder), "lora_r": 4, "lora_mlp": True, "lora_head": True}
        (out / "hyperparameters.yaml").write_text(yaml.safe_dump(settings))
        save_prompt_style("alpaca", out)
        made[name] = out, model.eval()
    return made


def answer(model: GPT, folder: Path, style: PromptStyle, prompt: str, n: int, **sample: Any) -> str:
    """The greedy answer by the oracle, as text."""
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode_ids(style.apply(prompt, **sample), bos=False if style.adds_bos else None)
    tokens = naive(model, ids, n)
    return tokenizer.decode(tokens[: tokens.index(END)] if END in tokens else tokens)


@pytest.mark.parametrize("name", ["full", "adapter", "adapter_v2"])
def test_a_command_prints_the_answer_of_the_finetuned_model(folder, runs, name, capsys):
    main, flag, method = METHODS[name]
    out, model = runs[name]
    arguments = dict(prompt="Add", input="1 and 2", max_new_tokens=8, **EXACT)
    main(folder, **{flag: out / f"lit_model.pth{method().suffix}"}, **arguments)
    printed, told = capsys.readouterr()
    assert printed == answer(model, folder, Alpaca(), "Add", 8, input="1 and 2") + "\n"
    assert printed != answer(load_model(folder), folder, Alpaca(), "Add", 8, input="1 and 2") + "\n"
    assert "Time for inference: " in told and "tokens/sec" in told and "Memory used: " in told
    main(folder, **{flag: out}, **arguments)  # the folder will do
    assert capsys.readouterr().out == printed


def test_the_style_is_the_bases_where_the_finetuning_left_none(folder, runs, tmp_path, capsys):
    file = Path(shutil.copy(runs["adapter"][0] / "lit_model.pth.adapter", tmp_path))
    adapter.main(folder, prompt="Hi", input="there", sys_prompt="Short.", adapter_path=file, max_new_tokens=8, **EXACT)
    style = InferenceModel.load(folder, precision="32-true").style
    expected = answer(runs["adapter"][1], folder, style, "Hi\n\nthere", 8, sys_prompt="Short.")
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize("name", BESIDE)
def test_generate_takes_the_folder_of_a_run(folder, runs, name, capsys):
    out, model = runs[name]
    base.main(out, "Hi", max_new_tokens=8, **EXACT)
    assert capsys.readouterr().out.endswith("### Response:\n" + answer(model, folder, Alpaca(), "Hi", 8) + "\n")


@pytest.mark.parametrize("name", BESIDE)
def test_llm_takes_the_folder_of_a_run(folder, runs, name, tmp_path):
    out, model = runs[name]
    llm = LLM.load(out, distribute=None)
    llm.distribute(accelerator="cpu", precision="32-true")
    expected = answer(model, folder, Alpaca(), "Hi", 8)
    assert llm.generate("Hi", max_new_tokens=8, temperature=0.0) == expected
    if name == "lora":
        llm.save(tmp_path / "whole")
        assert LLM.load(tmp_path / "whole").generate("Hi", max_new_tokens=1, temperature=0.0)
    else:
        with pytest.raises(LitGPTError, match="adapter can't be saved as a whole one"):
            llm.save(tmp_path / "whole")


def test_low_rank_updates_are_merged_into_the_weights(folder, runs):
    model = runs["lora"][1]
    merged = InferenceModel.load(runs["lora"][0], precision="32-true").model
    tokens = torch.arange(20)[None]
    expected = model(tokens).detach()
    torch.testing.assert_close(merged(tokens), expected, rtol=0, atol=3e-5 * float(expected.abs().max()))
    assert merged.state_dict().keys() == load_model(folder).state_dict().keys()


def test_a_whole_model_wins_over_an_update_beside_it(folder, runs, tmp_path):
    out = shutil.copytree(runs["lora"][0], tmp_path / "final")
    shutil.copytree(folder, out, dirs_exist_ok=True)
    assert torch.equal(
        InferenceModel.load(out, precision="32-true").model.lm_head.weight, load_model(folder).lm_head.weight
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda out, name: (out / "hyperparameters.yaml").unlink(), "has no hyperparameters.yaml, which says how"),
        (
            lambda out, name: (out / "hyperparameters.yaml").write_text("seed: 1"),
            "is no file of the settings of a fine",
        ),
        (
            lambda out, name: (out / "hyperparameters.yaml").write_text("checkpoint_dir: nowhere\nlora_r: 4"),
            "There is no checkpoint folder nowhere",
        ),
        (lambda out, name: (out / f"lit_model.pth.{name}").write_bytes(b"PK"), "is damaged|holds more than tensors"),
    ],
    ids=["no settings", "other settings", "no base", "damaged"],
)
@pytest.mark.parametrize("name", BESIDE)
def test_a_broken_folder_is_told_in_one_sentence(runs, tmp_path, name, change, complaint):
    out = shutil.copytree(runs[name][0], tmp_path / "final")
    change(out, name)
    with pytest.raises(LitGPTError, match=complaint) as caught:
        InferenceModel.load(out)
    assert "\n" not in str(caught.value)


def test_what_needs_a_whole_model_says_what_the_folder_is(runs):
    with pytest.raises(LitGPTError, match="holds lit_model.pth.adapter only, which `litgpt generate`"):
        find_checkpoint(runs["adapter"][0])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (dict(adapter_path=Path("nowhere.adapter")), "no file nowhere.adapter with finetuned weights"),
        (dict(checkpoint_dir=Path("nowhere")), "no checkpoint folder nowhere"),
        (dict(max_new_tokens=0), "max_new_tokens is 0"),
        (dict(quantize="bnb.nf4", precision="bf16-mixed"), "bnb.nf4 computes in one dtype"),
        (dict(temperature=-1.0), "temperature is -1.0"),
    ],
)
def test_a_mistake_is_one_sentence(folder, runs, arguments, complaint):
    with pytest.raises(LitGPTError, match=complaint):
        adapter.main(**{"checkpoint_dir": folder, "adapter_path": runs["adapter"][0], **arguments})


def test_an_adapter_of_another_version_is_refused(folder, runs):
    with pytest.raises(LitGPTError, match="adapter_v2 holds lm_head.adapter_bias"):
        adapter.main(folder, adapter_path=runs["adapter_v2"][0] / "lit_model.pth.adapter_v2")

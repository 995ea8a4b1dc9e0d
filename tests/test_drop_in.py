"""What LitGPT's users call from Python works as they call it: by position, by keyword, with objects of their own."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt import GPT, LLM, Config, PromptStyle, Tokenizer
from litgpt.api import Preprocessor, benchmark_dict_to_markdown_table
from litgpt.args import TrainArgs
from litgpt.checkpoint.layout import find_checkpoint
from litgpt.data import JSON, DataModule, SFTDataset, TextFiles
from litgpt.finetune import adapter, adapter_v2, full, lora
from litgpt.model import Block, CausalSelfAttention, GemmaMLP, GptNeoxMLP, LLaMAMLP, RMSNorm
from litgpt.prompts import Default
from tests.tiny_tokenizer import write_tokenizer

FINETUNING = "data train {} optimizer logger_name seed access_token"
POSITIONS: dict[Callable[..., Any], str] = {
    LLM: "model preprocessor prompt_style",
    LLM.load: "model init tokenizer_dir access_token distribute",
    LLM.distribute: "self accelerator devices precision quantize generate_strategy fixed_kv_cache_size",
    LLM.generate: "self prompt sys_prompt max_new_tokens temperature top_k top_p return_as_token_ids stream",
    LLM.benchmark: "self num_iterations",
    LLM.trainer_setup: "self trainer_ckpt",
    LLM.save: "self out_dir prompt_style",
    LLM.forward: "self input_ids target_ids loss_fn",
    LLM.load_state_dict: "self state_dict strict",
    Preprocessor: "tokenizer device",
    benchmark_dict_to_markdown_table: "data",
    Tokenizer: "checkpoint_dir",
    Tokenizer.encode: "self string device bos eos max_length",
    Tokenizer.decode: "self tensor",
    Tokenizer.decode_stream: "self token_stream device",
    Tokenizer.token_to_id: "self token",
    Config.from_name: "name",
    Config.from_file: "path",
    Config.from_checkpoint: "path",
    GPT.forward: "self idx input_pos input_pos_maxp1 lm_head_chunk_size",
    GPT.set_kv_cache: "self batch_size max_seq_length rope_cache_length device dtype",
    Block: "config block_idx",
    CausalSelfAttention: "config block_idx",
    GptNeoxMLP: "config intermediate_size",
    LLaMAMLP: "config intermediate_size",
    GemmaMLP: "config intermediate_size",
    RMSNorm: "size dim eps add_unit_offset",
    PromptStyle.from_name: "name",
    PromptStyle.from_config: "config",
    SFTDataset: "data tokenizer prompt_style max_seq_length mask_prompt ignore_index transform",
    DataModule.connect: "self tokenizer batch_size max_seq_length",
    full.setup: "checkpoint_dir out_dir precision devices num_nodes resume " + FINETUNING.format("eval log"),
    adapter.setup: "checkpoint_dir out_dir precision quantize devices num_nodes " + FINETUNING.format("eval log"),
    adapter_v2.setup: "checkpoint_dir out_dir precision quantize devices num_nodes resume "
    + FINETUNING.format("eval log"),
    lora.setup: "checkpoint_dir out_dir precision quantize devices num_nodes lora_r lora_alpha lora_dropout lora_query "
    "lora_key lora_value lora_projection lora_mlp lora_head " + FINETUNING.format("log eval"),
}
"""Callable → the parameters that LitGPT 0.5.13 has there, in its order; ours follow them."""


@pytest.mark.parametrize("call", POSITIONS, ids=lambda call: f"{call.__module__}.{call.__qualname__}")
def test_parameters_stand_where_litgpt_has_them(call: Callable[..., Any]) -> None:
    wanted = POSITIONS[call].split()
    by_position = [
        parameter
        for parameter in inspect.signature(call).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    assert [parameter.name for parameter in by_position[: len(wanted)]] == wanted
    assert all(parameter.default is not parameter.empty for parameter in by_position[len(wanted) :])


class Letters:
    """A tokenizer of a user's own: no subclass, no files, LitGPT's two methods."""

    bos_id, eos_id = 0, 1

    def encode(
        self, text: str, device: Any = None, bos: bool | None = None, eos: bool = False, max_length: int = -1
    ) -> torch.Tensor:
        ids = [self.bos_id] * bool(bos) + [ord(letter) for letter in text] + [self.eos_id] * eos
        return torch.tensor(ids[:max_length] if max_length > 0 else ids)

    def decode(self, tensor: torch.Tensor) -> str:
        return "".join(chr(index) for index in tensor.tolist() if index > 1)


class Opened(Letters):
    """One that opens a text with BOS unless told not to."""

    def encode(self, text: str, bos: bool = True, **rest: Any) -> torch.Tensor:  # type: ignore[override]
        return super().encode(text, bos=bos, **rest)


@pytest.fixture(scope="module")
def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(Config(n_layer=2, n_embd=32, n_head=2, block_size=256, padded_vocab_size=128, rotary_percentage=1.0))


@pytest.mark.parametrize("tokenizer", [Letters(), Opened()], ids=["plain", "opening"])
def test_a_tokenizer_of_ones_own_tokenizes_data(tokenizer: Letters, tmp_path: Path) -> None:
    row = {"instruction": "Add.", "output": "4!"}
    (sample,) = SFTDataset([row], tokenizer, Default())  # type: ignore[arg-type]
    assert sample["input_ids"].tolist() == [*tokenizer.encode("Add.").tolist(), *map(ord, "4!"), 1]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row] * 4))
    data = JSON(file, val_split_fraction=0.25, prompt_style="default", num_workers=0)
    data.connect(tokenizer, batch_size=3)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    assert next(iter(data.train_dataloader()))["input_ids"].tolist() == [sample["input_ids"].tolist()] * 3


def test_a_tokenizer_of_ones_own_tokenizes_text(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("Hello there. " * 9)
    data = TextFiles(tmp_path, num_workers=0)
    data.connect(Letters(), max_seq_length=16)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    assert set(data.train_dataset[0]["input_ids"].tolist()) <= {0, *map(ord, "Hello there. ")}


def test_a_tokenizer_of_ones_own_answers(gpt: GPT) -> None:
    llm = LLM(gpt, Preprocessor(Letters()), Default())  # type: ignore[arg-type]
    ids = llm.generate("Hello", max_new_tokens=5, temperature=0.0, return_as_token_ids=True)
    assert llm.generate("Hello", max_new_tokens=5, temperature=0.0) == Letters().decode(ids)
    assert "".join(llm.generate("Hello", max_new_tokens=5, temperature=0.0, stream=True)) == Letters().decode(ids)
    assert Default().stop_tokens(Letters()) == ([1],)  # type: ignore[arg-type]


def test_a_transformers_tokenizer_is_one_too(tmp_path: Path, gpt: GPT) -> None:
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer(write_tokenizer(tmp_path))
    theirs = Tokenizer.of(transformers.AutoTokenizer.from_pretrained(tmp_path))
    assert (theirs.bos_id, theirs.eos_id, len(theirs)) == (ours.bos_id, ours.eos_id, len(ours))
    assert theirs.encode("Hi", bos=False, eos=True).tolist() == ours.encode("Hi", bos=False, eos=True).tolist()
    assert theirs.decode(ours.encode("Hi", eos=True)) == "Hi"


def test_an_llm_without_a_tokenizer_computes(gpt: GPT) -> None:
    llm = LLM(gpt)
    logits, loss = llm(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))
    assert logits.shape == (1, 4, 128) and loss.dim() == 0
    with pytest.raises(ValueError, match="without a tokenizer"):
        llm.generate("Hello")


def test_saving_without_a_folder_names_one(gpt: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    LLM(gpt, checkpoint_dir=write_tokenizer(tmp_path / "tokenizer")).save()
    assert find_checkpoint(tmp_path / "out" / "llm").dir.name == "llm"


def test_decoding_by_keyword(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    assert tokenizer.decode(tensor=tokenizer.encode("Hi")) == "Hi"


def test_a_config_has_the_name_of_its_checkpoint_on_the_hub() -> None:
    assert Config(hf_config={"org": "EleutherAI", "name": "pythia-14m"}).name == "pythia-14m"
    assert Config(name="mine", hf_config={"org": "EleutherAI", "name": "pythia-14m"}).name == "mine"


@pytest.mark.parametrize("name", ["Unknown/pythia-14m", "EleutherAI/no-such-model", "a/b/pythia-14m"])
def test_an_organisation_that_has_no_such_model_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not a known model name"):
        Config.from_name(name)
    assert Config.from_name("EleutherAI/pythia-14m") == Config.from_name("pythia-14m")


def test_a_fraction_of_no_warm_up_beside_steps_of_it() -> None:
    assert TrainArgs(lr_warmup_steps=100, lr_warmup_fraction=0).warmup_iters(1, 1, 9999, range(10)) == 100 * 16


@pytest.mark.parametrize("name", ["pythia-14m", "Llama-3.2-1B", "Gemma-2-2b", "OLMo-1B-hf", "Mixtral-8x7B-v0.1"])
def test_a_configs_classes_are_its_models(name: str) -> None:
    config = Config.from_name(name, n_layer=1)
    with torch.device("meta"):
        block = Block(config, 0)
        norm = config.norm_class(config.n_embd, eps=config.norm_eps)
    assert type(block.mlp) is config.mlp_class
    assert repr(norm) == repr(block.norm_1) and vars(norm).keys() == vars(block.norm_1).keys()

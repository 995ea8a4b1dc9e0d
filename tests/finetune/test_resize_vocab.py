"""Tokens that were added to a tokenizer: refused in a sentence, or given to the model on request."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tokenizers
import torch

from litgpt.checkpoint.finetuned import find_finetuned
from litgpt.checkpoint.reader import load_model
from litgpt.data import DataModule
from litgpt.errors import LitGPTError, UsageError
from litgpt.finetune import adapter, full, lora
from litgpt.model import GPT
from litgpt.scripts.convert_from_litgpt import convert_from_litgpt
from tests.finetune.test_finetune import run
from tests.tiny_tokenizer import SIZE

SETTINGS = dict(train={"max_steps": 1}, eval={"max_new_tokens": None})


@pytest.fixture(scope="module")
def grown(hf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied model whose tokenizer has become larger than its vocabulary: the data's words are new tokens."""
    folder = tmp_path_factory.mktemp("grown") / "model"
    shutil.copytree(hf_folder, folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"new{number}" for number in range(16)] + ["cat", "dog"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("setup", [full.setup, lora.setup, adapter.setup])
def test_a_token_beyond_the_vocabulary_is_refused_before_training(setup, grown, data_file, tmp_path) -> None:
    with pytest.raises(LitGPTError, match=r"The data has the token id \d+, which is outside 0 \.\.\. .*--resize_vocab"):
        run(setup, grown, data_file, tmp_path, **SETTINGS)


def test_an_adapter_has_no_use_for_new_tokens(grown, data_file, tmp_path) -> None:
    with pytest.raises(UsageError, match="finetune_full and finetune_lora"):
        run(adapter.setup, grown, data_file, tmp_path, resize_vocab=True, **SETTINGS)


@pytest.mark.parametrize("setup", [full.setup, lora.setup], ids=["full", "lora"])
def test_new_tokens_are_trained_saved_and_exported(setup, grown, data_file, tmp_path) -> None:
    import transformers

    folder = run(setup, grown, data_file, tmp_path / "out", resize_vocab=True, **SETTINGS) / "final"
    model = load_model(folder, dtype=torch.float32)
    rows = model.config.padded_vocab_size
    assert rows is not None and rows > SIZE and len(model.transformer.wte.weight) == rows
    tokens = torch.tensor([[3, rows - 1, 5]])
    convert_from_litgpt(folder, tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)
    if setup is lora.setup:
        (folder / "lit_model.pth").unlink()
        alone = find_finetuned(folder)
        assert alone is not None
        with torch.no_grad():
            torch.testing.assert_close(
                alone.load_model(dtype=torch.float32)(tokens), model(tokens), rtol=0.02, atol=0.02
            )


class Numbers(DataModule):
    """A user's own module: token ids without a tokenizer."""

    def setup(self, stage: str = "") -> None:
        ids = torch.tensor([1, 2, 96])
        self.train_dataset = [{"input_ids": ids, "labels": ids}]


def test_a_module_of_the_users_own_is_checked_too() -> None:
    module = Numbers()
    module.connect()
    module.setup()
    module.check_vocabulary(97)
    with pytest.raises(LitGPTError, match=r"token id 96, which is outside 0 \.\.\. 95"):
        module.check_vocabulary(96)


@pytest.mark.parametrize("tied", [True, False])
def test_more_rows_leave_the_scores_of_the_others_as_they_were(tied: bool) -> None:
    from litgpt.config import Config
    from litgpt.peft.method import resize_vocabulary

    model = GPT(Config(n_layer=1, n_head=2, n_embd=16, padded_vocab_size=24, block_size=8, tie_embeddings=tied))
    tokens = torch.tensor([[1, 23, 4]])
    before = model(tokens)
    resize_vocabulary(model, 30)
    after = model(tokens)
    assert model.tied == tied and after.size(-1) == 30 == model.config.padded_vocab_size
    torch.testing.assert_close(after[..., :24], before)

"""How instructions and answers become token ids."""

from __future__ import annotations

import pytest
import torch

from litgpt.data import SFTDataset
from litgpt.errors import LitGPTError
from litgpt.prompts import PromptStyle
from litgpt.tokenizer import Tokenizer


class Plain(PromptStyle):
    """`Q: … A:`, with no place for an input."""

    def apply(self, prompt: str, *, sys_prompt: str | None = None, **kwargs: str) -> str:
        return f"Q: {prompt} A: "


ROWS = [{"instruction": f"Say {word}.", "output": word} for word in ("one", "eleven", "twenty-four")]


def text_of(tokenizer: Tokenizer, ids: torch.Tensor) -> str:
    return "".join(tokenizer.processor.id_to_token(index) for index in ids.tolist())


def test_a_sample_is_prompt_and_answer_with_an_end_token(tokenizer: Tokenizer) -> None:
    sample = SFTDataset(ROWS, tokenizer, Plain())[1]
    assert text_of(tokenizer, sample["input_ids"]) == "<s>Q: Say eleven. A: eleven</s>"
    assert sample["input_ids"].dtype == sample["labels"].dtype == torch.int64


def test_a_masked_prompt_has_no_labels(tokenizer: Tokenizer) -> None:
    sample = SFTDataset(ROWS, tokenizer, Plain(), mask_prompt=True, ignore_index=-1)[0]
    kept = sample["labels"] != -1
    assert text_of(tokenizer, sample["labels"][kept]) == "one</s>"
    assert torch.equal(sample["labels"][kept], sample["input_ids"][kept])
    whole = SFTDataset(ROWS, tokenizer, Plain(), mask_prompt=False)[0]
    assert torch.equal(whole["labels"], whole["input_ids"])


def test_a_sample_that_is_too_long_keeps_its_end_token(tokenizer: Tokenizer) -> None:
    dataset = SFTDataset(ROWS, tokenizer, Plain(), max_seq_length=28)
    assert text_of(tokenizer, dataset[2]["input_ids"]) == "<s>Q: Say twenty-four. A: twe</s>"
    assert all(len(sample["input_ids"]) <= 28 and sample["input_ids"][-1] == tokenizer.eos_id for sample in dataset)


def test_what_does_not_fit_is_counted_and_what_teaches_nothing_is_left_out(tokenizer: Tokenizer) -> None:
    dataset = SFTDataset(ROWS, tokenizer, Plain(), max_seq_length=24)
    assert dataset.data == ROWS[:2]
    assert (dataset.n_cut, dataset.n_dropped) == (1, 1)
    assert len(dataset.unused("training")) == 2
    assert all((sample["labels"] != -100).sum() > 1 for sample in dataset)


def test_prompts_that_all_fill_the_context_are_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(LitGPTError, match="No prompt leaves room for an answer in 10 tokens"):
        SFTDataset(ROWS, tokenizer, Plain(), max_seq_length=10)


def test_an_input_the_style_has_no_place_for_follows_the_instruction(tokenizer: Tokenizer) -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert "Add.\n\n1 2 A: 3" in text_of(tokenizer, SFTDataset([row], tokenizer, Plain())[0]["input_ids"])
    alpaca = text_of(tokenizer, SFTDataset([row], tokenizer, "alpaca")[0]["input_ids"])
    assert alpaca.count("1 2") == 1 and "### Input:\n1 2" in alpaca


@pytest.mark.parametrize("extra", [{"prompt": "x"}, {"source": "x", "id": 3}, {"input": ""}])
def test_further_keys_do_no_harm(tokenizer: Tokenizer, extra: dict[str, object]) -> None:
    plain = SFTDataset(ROWS[:1], tokenizer, "alpaca")[0]["input_ids"]
    assert torch.equal(SFTDataset([{**ROWS[0], **extra}], tokenizer, "alpaca")[0]["input_ids"], plain)


def test_chat_is_the_tokenizers_own_template_up_to_the_end_token(tokenizer: Tokenizer) -> None:
    row = {**ROWS[0], "sys_prompt": "Be brief."}
    sample = SFTDataset([row], tokenizer, "chat")[0]
    prompt = "<s>[system]Be brief.\n[user]Say one.\n[assistant]"
    assert text_of(tokenizer, sample["input_ids"]) == f"{prompt}one</s>"
    assert text_of(tokenizer, sample["labels"][sample["labels"] != -100]) == "one</s>"


def test_a_transform_sees_each_row_once_and_leaves_it_as_it_is(tokenizer: Tokenizer) -> None:
    rows = [{"inputs": "Say one.", "targets": "one"}]
    dataset = SFTDataset(
        rows, tokenizer, Plain(), transform=lambda row: {"instruction": row.pop("inputs"), "output": row.pop("targets")}
    )
    assert torch.equal(dataset[0]["input_ids"], SFTDataset(ROWS[:1], tokenizer, Plain())[0]["input_ids"])
    assert rows == [{"inputs": "Say one.", "targets": "one"}]

"""Conversations from files: what is learned, cut, left out, cached, split, and used to pretrain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.data import Conversations, SFTModule
from litgpt.data.sft.formats import Conversation, Row
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer
from tests.paths import ROOT


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def dialog(*answers: str, **more: Any) -> dict[str, Any]:
    return {"messages": [m for a in answers for m in (turn("user", f"Say {a}."), turn("assistant", a, **more))]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(module: SFTModule, tokenizer: Tokenizer, limit: int | None = None) -> tuple[Any, list[str]]:
    said: list[str] = []
    module.log = said.append
    module.connect(tokenizer, max_seq_length=limit)
    module.prepare_data()
    module.setup()
    return module, said


def shown(tokenizer: Tokenizer, sample: dict[str, torch.Tensor]) -> str:
    """A sample with what is learned in brackets."""
    text, on = "", False
    for token, label in zip(sample["input_ids"].tolist(), sample["labels"].tolist(), strict=True):
        if (label >= 0) != on:
            text += "⟧" if on else "⟦"
        on = label >= 0
        text += tokenizer.processor.id_to_token(token)
    return text + "⟧" * on


def samples(tokenizer: Tokenizer, tmp_path: Path, rows: list[dict[str, Any]], **arguments: Any) -> list[str]:
    limit = arguments.pop("limit", None)
    file = write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "val.jsonl", [dialog("v")])
    module, _ = prepared(Conversations(path=tmp_path, **arguments), tokenizer, limit)
    assert file in module.files()[0]
    return [shown(tokenizer, sample) for sample in module.train_dataset]


def test_the_assistants_turns_are_learned_and_what_ends_them(tokenizer: Tokenizer, tmp_path: Path) -> None:
    expected = "<s>[user]Say one.\n[assistant]⟦one</s>⟧\n[user]Say two.\n[assistant]⟦two</s>⟧"
    assert samples(tokenizer, tmp_path, [dialog("one", "two")]) == [expected]


def test_all_formats_stand_in_one_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"prompt": "q", "completion": "a"},
        {"text": "Once."},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    ]
    assert samples(tokenizer, tmp_path, rows) == [
        "<s>[user]Add.\n\n1 2\n[assistant]⟦3</s>⟧",
        "<s>[user]q\n[assistant]⟦a</s>⟧",
        "⟦<s>Once.</s>⟧",
        "<s>[user]q\n[assistant]⟦a</s>⟧",
    ]


def test_keys_can_be_renamed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"q": "x", "a": "y"}]
    write(tmp_path / "val.jsonl", rows)
    file = write(tmp_path / "train.jsonl", rows)
    module = Conversations(path=file, val_path=tmp_path / "val.jsonl", columns={"q": "prompt", "a": "completion"})
    found, _ = prepared(module, tokenizer)
    assert shown(tokenizer, found.train_dataset[0]) == "<s>[user]x\n[assistant]⟦y</s>⟧"


def test_a_template_of_ones_own_is_used_and_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from litgpt.prompts import save_prompt_style

    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    (tmp_path / "data").mkdir()
    (found,) = samples(tokenizer, tmp_path / "data", [dialog("one")], chat_template=tmp_path / "own.jinja")
    assert found == "u:Say one.</s>a:⟦one</s>⟧"
    module, _ = prepared(Conversations(path=tmp_path / "data", chat_template=tmp_path / "own.jinja"), tokenizer)
    save_prompt_style(module.prompt_style, tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text().startswith("{% for m in messages %}{{ m.role[0] }}")


# ---------------------------------------------------------------------------------------------------- too long

LONG = dialog("one", "twenty-two", "three")
TURN = "<s>[user]Say one.\n[assistant]one</s>\n[user]Say twenty-two.\n[assistant]"
"""Of one token a character, but for the two special ones."""
LENGTH = len(TURN) - len("<s></s>") + 2


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, "[user]Say three.\n[assistant]⟦three</s>⟧"),
        (LENGTH + 4, "[user]Say twenty-two.\n[assistant]⟦twe</s>⟧"),  # within an answer: its end token stays
        (LENGTH + 11, "[user]Say twenty-two.\n[assistant]⟦twenty-two</s>⟧"),
        (LENGTH + 20, "[user]Say twenty-two.\n[assistant]⟦twenty-two</s>⟧"),  # within a question: it teaches nothing
        (LENGTH + 1, "[assistant]⟦one</s>⟧"),  # where only an end token would have room
        (LENGTH - 9, "[assistant]⟦one</s>⟧"),
    ],
)
def test_a_long_conversation_is_cut_where_it_still_teaches(
    tokenizer: Tokenizer, tmp_path: Path, limit: int | None, expected: str
) -> None:
    (found,) = samples(tokenizer, tmp_path, [LONG], limit=limit)
    assert found.endswith(expected)
    assert limit is None or len(found.replace("<s>", "<").replace("</s>", ">")) - 2 * found.count("⟦") <= limit


def test_long_conversations_can_be_dropped_and_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [LONG, dialog("one"), LONG])
    write(tmp_path / "val.jsonl", [dialog("v")])
    module, said = prepared(Conversations(path=tmp_path, too_long="drop"), tokenizer, 60)
    assert len(module.train_dataset) == 1 and module.train_dataset.n_dropped == 2
    assert "2 training samples are left out: longer than 60 tokens (train.max_seq_length)." in said


def test_samples_with_nothing_to_learn_are_told_and_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", [dialog("one"), dialog("two", weight=0), dialog("three", train=False)])
    write(tmp_path / "val.jsonl", [dialog("v")])
    for _ in range(2):  # the second time from the cache
        module, said = prepared(Conversations(path=tmp_path), tokenizer)
        assert len(module.train_dataset) == 1
        assert any("2 training samples" in s and f"{file}, line 2 is the first" in s for s in said)
    everything, _ = prepared(Conversations(path=tmp_path, mask_prompt=False), tokenizer)
    assert len(everything.train_dataset) == 3


def test_only_unlearned_samples_are_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [dialog("two", weight=0)] * 3)
    with pytest.raises(LitGPTError, match="No sample has anything to learn"):
        prepared(Conversations(path=file), tokenizer)


# ------------------------------------------------------------------------------------------------------- cache


def no_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    from litgpt.data.sft import encoding

    monkeypatch.setattr(encoding.Encoder, "encode", lambda *_: pytest.fail("tokenized again"))


def test_the_second_run_reads_the_cache(
    tokenizer: Tokenizer, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.jsonl", [dialog(str(number)) for number in range(20)])
    first, _ = prepared(Conversations(path=file), tokenizer)
    before = [sample["labels"].tolist() for sample in first.train_dataset]
    no_encoding(monkeypatch)
    again, _ = prepared(Conversations(path=file.rename(tmp_path / "b.jsonl")), tokenizer)
    assert [sample["labels"].tolist() for sample in again.train_dataset] == before
    other_limits, _ = prepared(Conversations(path=tmp_path / "b.jsonl", seed=1, mask_prompt=False), tokenizer, 30)
    assert len(other_limits.train_dataset) == 19
    assert len(list((cache / "tokens").iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [dict(prompt_style="chatml"), dict(turns="last"), dict(columns={"messages": "conversations"})],
)
def test_what_changes_tokens_is_tokenized_anew(
    tokenizer: Tokenizer, tmp_path: Path, cache: Path, change: dict[str, Any]
) -> None:
    file = write(tmp_path / "a.jsonl", [dialog("one", "two")] * 3)
    prepared(Conversations(path=file), tokenizer)
    prepared(Conversations(path=file, **change), tokenizer)
    assert len(list((cache / "tokens").iterdir())) == 2


def test_another_content_is_tokenized_anew(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [dialog("one")] * 3)
    prepared(Conversations(path=file), tokenizer)
    write(file, [dialog("six")] * 3)
    changed, _ = prepared(Conversations(path=file), tokenizer)
    assert "six" in shown(tokenizer, changed.train_dataset[0])


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_the_cache_can_be_turned_off(
    tokenizer: Tokenizer, tmp_path: Path, cache: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.jsonl", [dialog("one")] * 3)
    if by == "environment":
        monkeypatch.setenv("LITGPT_CACHE", "off")
    off = Path("off") if by == "argument" else None
    module, _ = prepared(Conversations(path=file, cache_dir=off), tokenizer)
    assert len(module.train_dataset) == 2 and not cache.exists()


def test_bad_data_leaves_no_half_cache(tokenizer: Tokenizer, tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "a.jsonl", [*[dialog(str(number)) for number in range(2000)], {"oops": 1}])
    with pytest.raises(LitGPTError, match=r"a\.jsonl, line 2001: no known format"):
        prepared(Conversations(path=file), tokenizer)
    assert not (cache / "tokens").exists()


def test_half_a_character_is_told_with_its_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [dialog("one"), dialog("\ud83d"), dialog("two")])
    with pytest.raises(LitGPTError, match=r"a\.jsonl, line 2: The text holds .* half a character"):
        prepared(Conversations(path=file), tokenizer)


KILLED = """
import sys, time
from pathlib import Path
from litgpt.data import Conversations
from litgpt.data.sft import encoding
from litgpt.tokenizer import Tokenizer
add, added = encoding.TokenWriter.add, []
def slowly(writer, ids):
    add(writer, ids)
    added.append(ids)
    if len(added) == 100:
        writer.file.flush()
        print("half", flush=True)
        time.sleep(60)
encoding.TokenWriter.add = slowly
module = Conversations(path=Path(sys.argv[1]))
module.connect(Tokenizer(sys.argv[2]))
module.prepare_data()
"""


def test_a_killed_process_leaves_no_half_cache(tokenizer: Tokenizer, tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "a.jsonl", [dialog(str(number)) for number in range(200)])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(file), str(tokenizer.checkpoint_dir)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert not list((cache / "tokens").glob("*.tokens"))
    module, _ = prepared(Conversations(path=file), tokenizer)
    assert len(module.train_dataset) + len(module.val_dataset) == 200
    assert len(list((cache / "tokens").iterdir())) == 1  # what the killed one left is gone


PREPARED = """
import sys
from pathlib import Path
from litgpt.data import Conversations
from litgpt.tokenizer import Tokenizer
module = Conversations(path=Path(sys.argv[1]))
module.connect(Tokenizer(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
module.prepare_data()
print(sum(len(shard) for shard in module.shards([module.path])))
"""


def test_two_processes_at_once_make_one_file(tokenizer: Tokenizer, tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "a.jsonl", [dialog(str(number)) for number in range(500)])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PREPARED, str(file), str(tokenizer.checkpoint_dir)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:  # type: ignore[call-overload]
        both = (one, other)
        assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
        for process in both:
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.communicate()[0] for process in both] == ["500\n"] * 2
    assert len(list((cache / "tokens").iterdir())) == 1


class Shouting(SFTModule):
    """A module of the user's own."""

    def __init__(self, path: Path, loud: bool) -> None:
        super().__init__(prompt_style="default")
        self.path, self.loud = path, loud

    def files(self) -> tuple[list[Path], list[Path]]:
        return [self.path], []

    def conversation(self, row: Row) -> Conversation:
        answer = str(row["a"]).upper() if self.loud else row["a"]
        return Conversation([turn("user", row["q"]), turn("assistant", answer)])

    def options(self) -> dict[str, Any]:
        return {"loud": self.loud}


def test_a_module_of_ones_own_says_where_rows_come_from_and_what_they_say(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"q": "x", "a": "y"}] * 3)
    for loud, expected in ((True, "xY</s>"), (False, "xy</s>")):
        module, _ = prepared(Shouting(file, loud), tokenizer)
        assert shown(tokenizer, module.train_dataset[0]).replace("⟦", "").replace("⟧", "") == f"<s>{expected}"


# -------------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "Give data.path .* or data.repo_id"),
        ({"path": "a", "repo_id": "b/c"}, "one of them"),
        ({"path": "a", "val_split": "test"}, "data.val_path"),
        ({"repo_id": "b/c", "val_path": "a", "val_split": "test"}, "exclude each other"),
        ({"path": "a", "val_split_fraction": 1.5}, "between 0 and 1"),
        ({"path": "a", "chat_template": "nowhere.jinja"}, "nowhere.jinja is no chat template"),
        ({"path": "a", "turns": "first"}, "data.turns is all or last"),
        ({"path": "a", "prompt_style": "chatt"}, "Unknown prompt style"),
    ],
)
def test_what_cannot_be_is_told_at_once(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LitGPTError, match=complaint):
        Conversations(**arguments)


def test_folders_that_hold_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(LitGPTError, match="no file to train on"):
        prepared(Conversations(path=tmp_path), tokenizer)
    with pytest.raises(LitGPTError, match="no data file or folder"):
        prepared(Conversations(path=tmp_path / "nowhere"), tokenizer)


def test_a_tokenizer_without_a_template_will_do_for_text(stories260k: Path, tmp_path: Path) -> None:
    plain = Tokenizer(stories260k)
    module, _ = prepared(Conversations(path=write(tmp_path / "a.jsonl", [{"text": "Once."}] * 3)), plain)
    assert plain.decode(module.train_dataset[0]["input_ids"]) == "Once."
    with pytest.raises(LitGPTError, match="line 1: .* has no chat template"):
        prepared(Conversations(path=write(tmp_path / "b.jsonl", [dialog("a")])), plain)


def test_pretraining_reads_blocks_of_all_samples(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"text": f"Tale {number}."} for number in range(20)]
    write(tmp_path / "a.jsonl", rows[:10]), write(tmp_path / "b.jsonl", rows[10:])
    module = Conversations(path=tmp_path, val_split_fraction=0.2)
    module.pretraining = True
    found, said = prepared(module, tokenizer, 8)
    stream = "".join(f"<s>Tale {number}.</s>" for number in range(20))
    block = shown(tokenizer, found.val_dataset[0]).strip("⟦⟧")
    assert stream.endswith(shown(tokenizer, found.val_dataset[len(found.val_dataset) - 1]).strip("⟦⟧"))
    assert block in stream and all(len(sample["input_ids"]) == 9 for sample in found.train_dataset)
    assert any("20.0% of them for validation" in sentence for sentence in said)


def test_the_last_answer_has_a_question_to_show(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [dialog("one", "two"), {"text": "Once."}])
    write(tmp_path / "val.jsonl", [dialog("v")])
    module, _ = prepared(Conversations(path=tmp_path), tokenizer)
    assert module.train_dataset.question(0) == (
        "Say two.",
        "<s>[user]Say one.\n[assistant]one</s>\n[user]Say two.\n[assistant]",
    )
    assert module.train_dataset.question(1) is None


def test_pretraining_keeps_the_share_to_validate_on_from_the_ends_of_many_files(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for number, count in enumerate((40, 2, 1)):
        rows = [{"prompt": f"{number} {row}", "completion": "yes"} for row in range(count)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    module = Conversations(path=tmp_path, val_split_fraction=0.3)
    module.pretraining = True
    module.connect(tokenizer, 1, 8)
    module.prepare_data()
    module.setup()

    def targets(dataset: Any) -> int:
        return sum(int((dataset[index]["labels"] != -100).sum()) for index in range(len(dataset)))

    train, val = targets(module.train_dataset), targets(module.val_dataset)
    assert val / (train + val) == pytest.approx(0.3, abs=0.03)


THINKS = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and (m.reasoning_content or loop.last) %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}~{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}{% endif %}"
)
"""As Qwen 3's: an answer without reasoning has an empty block, which the prompt has where thinking is turned off."""


def test_what_the_template_writes_of_itself_is_learned_unless_told_otherwise(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(THINKS)
    thought = dialog("4")
    thought["messages"][1]["reasoning_content"] = "2 + 2"
    off = {**dialog("5"), "chat_template_kwargs": {"enable_thinking": False}}
    rows = [dialog("3"), thought, off]
    asked = [f"[user]Say {n}.~[assistant]" for n in (3, 4, 5)]

    def learned(**arguments: Any) -> list[str]:
        return samples(tokenizer, tmp_path, rows, chat_template=template, **arguments)

    empty, thinks = "<think></think>", f"{asked[1]}⟦<think>2 + 2</think>4~</s>⟧"
    assert learned() == [f"{asked[0]}⟦{empty}3~</s>⟧", thinks, f"{asked[2]}{empty}⟦5~</s>⟧"]
    masked = [f"{asked[0]}{empty}⟦3~</s>⟧", thinks, f"{asked[2]}{empty}⟦5~</s>⟧"]
    assert learned(mask_template=True) == masked
    given = {"enable_thinking": False}
    assert learned(chat_template_kwargs=given)[0] == masked[0]
    rows[2]["chat_template_kwargs"]["enable_thinking"] = True
    assert learned(chat_template_kwargs=given)[2] == f"{asked[2]}⟦{empty}5~</s>⟧"  # a row's own word wins


def test_what_a_template_is_told_of_all_rows_is_checked(tmp_path: Path) -> None:
    for given in ({"messages": 1}, [1]):
        with pytest.raises(LitGPTError, match=r"data\.chat_template_kwargs"):
            Conversations(path=tmp_path, chat_template_kwargs=given)  # type: ignore[arg-type]
    with pytest.raises(LitGPTError, match="give one"):
        Conversations(path=tmp_path, mask_template=True, mask_prompt=False)

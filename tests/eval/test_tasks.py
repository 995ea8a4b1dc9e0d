"""The tasks that need a file alone, beside the slow way to their numbers: one plain forward pass a text."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
import yaml

from litgpt.errors import LitGPTError
from litgpt.eval.built_in import run_tasks, split_tasks
from litgpt.eval.models import Answering, Windows
from litgpt.eval.results import draw, table, write
from litgpt.eval.tasks import Settings, last_number, normalized, solution
from tests.eval.conftest import QUESTIONS
from tests.generate.folder import TEXT


@torch.no_grad()
def logprobs_of(model, tokens) -> torch.Tensor:
    """Of each token after the first, given all before it."""
    logits = model.inference_model.model(torch.tensor([tokens]))[0, :-1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def encode(model, text) -> list[int]:
    return model.tokenizer.encode_ids(text)


def found_by(task, model, **settings) -> dict[str, float]:
    return run_tasks([task], model, Settings(**settings))["results"][task]


# ------------------------------------------------------------------------------------------------------ perplexity


def test_perplexity_of_a_text_within_the_context(model, files):
    found = found_by(f"perplexity:{files / 'texts.jsonl'}", model)
    texts = [TEXT, "Llamas eat grass."]
    assert len(encode(model, TEXT)) < model.context
    total = sum(float(logprobs_of(model, [model.prefix, *encode(model, text)]).sum()) for text in texts)
    n_tokens, n_bytes = sum(len(encode(model, text)) for text in texts), sum(len(text.encode()) for text in texts)
    assert (found["n_tokens,none"], found["n_bytes,none"]) == (n_tokens, n_bytes)
    assert found["loss,none"] == pytest.approx(-total / n_tokens, rel=1e-5)
    assert found["perplexity,none"] == pytest.approx(math.exp(-total / n_tokens), rel=1e-4)
    assert found["bits_per_byte,none"] == pytest.approx(-total / n_bytes / math.log(2), rel=1e-5)


@pytest.mark.parametrize(("size", "stride"), [(10, 10), (10, 3), (10, 1), (7, None)])
def test_windows_predict_every_token_once_with_as_much_context_as_they_have(model, files, size, stride):
    found = found_by(f"perplexity:{files / 'text.txt'}", model, windows=Windows(size, stride))
    tokens = [model.prefix, *encode(model, TEXT)]
    step, total = stride or size, 0.0
    for number in range(1, len(tokens)):
        # the end of the window that predicts it: the first one has `size`, each other `step` more
        end = min(len(tokens) - 1, size + max(0, math.ceil((number - size) / step)) * step)
        total += float(logprobs_of(model, tokens[max(0, end - size) : number + 1])[-1])
    assert found["loss,none"] == pytest.approx(-total / (len(tokens) - 1), rel=1e-5)


def test_windows_that_make_no_sense_are_refused():
    for windows in (Windows(20), Windows(5, 6), Windows(5, 0)):
        with pytest.raises(LitGPTError, match="the model's context is 10"):
            windows.over([1, 2, 3], 0, 10)


# ---------------------------------------------------------------------------------------------- choices and matches


def naive_choice(model, row, before="") -> tuple[int, int]:
    sums, by_character = [], []
    for choice in row["choices"]:
        context = encode(model, f"{before}Question: {row['question']}\nAnswer:")
        whole = encode(model, f"{before}Question: {row['question']}\nAnswer: {choice}")
        sums.append(float(logprobs_of(model, whole)[len(context) - 1 :].sum()))
        by_character.append(sums[-1] / len(choice))
    return sums.index(max(sums)), by_character.index(max(by_character))


def test_choices_are_the_likeliest(model, files):
    found = found_by(f"choice:{files / 'choice.jsonl'}", model)
    gold = [1, 0, 0, 3]
    naive = [naive_choice(model, row) for row in QUESTIONS]
    assert found["acc,none"] == sum(a == g for (a, _), g in zip(naive, gold, strict=True)) / 4
    assert found["acc_norm,none"] == sum(b == g for (_, b), g in zip(naive, gold, strict=True)) / 4
    p = found["acc,none"]
    assert found["acc_stderr,none"] == pytest.approx(math.sqrt(p * (1 - p) / 3))


def test_examples_are_the_same_before_every_other_question(model, files):
    chosen = random.Random(7).sample(range(4), 1)[0]
    row = QUESTIONS[chosen]
    right = row["choices"][[1, 0, 0, 3][chosen]]
    others = [
        (one, gold) for number, (one, gold) in enumerate(zip(QUESTIONS, [1, 0, 0, 3], strict=True)) if number != chosen
    ]
    naive = [naive_choice(model, one, f"Question: {row['question']}\nAnswer: {right}\n\n")[0] == g for one, g in others]
    results = run_tasks([f"choice:{files / 'choice.jsonl'}"], model, Settings(num_fewshot=1, seed=7))
    (found,) = results["results"].values()
    assert found["acc,none"] == sum(naive) / 3
    assert [*results["n-samples"].values()] == [{"original": 4, "effective": 3}]


class Parrot:
    """A model that says what it is told to."""

    name, context = "parrot", None

    def __init__(self, *said: str) -> None:
        self.said, self.asked = said, []

    def answer(self, prompts, how):
        self.asked += list(zip(prompts, how, strict=True))
        return list(self.said[: len(prompts)])

    def chat_prompt(self, messages):
        return json.dumps(messages)


def test_matches_overlook_case_spaces_and_a_full_stop(files):
    found = found_by(f"match:{files / 'match.jsonl'}", Parrot(" a city", "grass and hay"))
    assert found["exact_match,none"] == 0.5


def test_solutions_are_compared_by_their_number(files):
    task = f"match:{files / 'gsm8k.jsonl'}"
    found = found_by(task, Parrot("So #### 2.", "That makes $1,000.00 a year."))
    assert (found["exact_match,strict-match"], found["exact_match,flexible-extract"]) == (0.5, 1.0)
    assert found_by(task, Parrot("#### 2", "#### 1000"))["exact_match,strict-match"] == 1.0
    assert found_by(task, Parrot("none", "1000 or 1001"))["exact_match,flexible-extract"] == 0.0


def test_free_answers_can_be_asked_in_a_chat_with_examples_as_turns(files):
    parrot = Parrot("#### 2")
    found_by(f"match:{files / 'gsm8k.jsonl'}", parrot, num_fewshot=1, chat=True, max_new_tokens=9)
    ((prompt, how),) = parrot.asked
    assert [turn["role"] for turn in json.loads(prompt)] == ["user", "assistant", "user"]
    assert how == Answering(9)


def test_answers_are_those_of_the_engine_alone(model):
    prompts = ["Llamas eat", "Paris is a", "The quick brown"]
    texts = model.answer(prompts, [Answering(5), Answering(7, ("e",)), Answering(3)])
    for prompt, text, n, stop in zip(prompts, texts, (5, 7, 3), ("", "e", ""), strict=True):
        engine = model.inference_model.engine(1)
        ids = engine.submit(encode(model, prompt), Answering().sampling, model.inference_model.stops, n).result()
        alone = model.tokenizer.decode(ids)
        assert text == (alone.split(stop)[0] if stop else alone)


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("#### 1,234", "1234", "1234"),
        ("... #### -3.50 and 9", "-3.5", "-3.5"),
        ("between 3 and $4.", None, "4"),
        ("nothing", None, None),
        ("10.0", None, "10"),
        ("100", None, "100"),
    ],
)
def test_numbers_of_answers(text, strict, flexible):
    assert (solution(text), last_number(text)) == (strict, flexible)


def test_what_counts_as_the_same_answer():
    assert normalized(" The\n Dog. ") == "the dog"


@pytest.mark.parametrize(
    ("task", "rows", "sentence"),
    [
        ("choice", [{"choices": ["a", "b"], "answer": 0}], "line 1: There is no what is asked"),
        ("choice", [{"question": "x", "choices": ["a"], "answer": 0}], "at least two texts"),
        ("choice", [{"question": "x", "choices": ["a", "b"], "answer": "c"}], "none of the 2 choices"),
        ("choice", [{"question": "x", "choices": ["a", "b"], "answer": True}], "none of the 2 choices"),
        ("choice", [{"question": "x", "choices": ["a", "b"]}], "There is no an answer"),
        ("choice", [{"question": 1, "choices": ["a", "b"], "answer": 0}], "must be a text"),
        ("match", [{"question": "x", "answer": ["a"]}], "must be a text or a number"),
        ("match", [], "has no samples"),
        ("perplexity", [{"content": "x"}], "no text under the key"),
        ("perplexity", [{"text": ""}], "no text to predict"),
    ],
)
def test_rows_that_make_no_sense_are_named(tmp_path, model, task, rows, sentence):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(LitGPTError, match=sentence):
        found_by(f"{task}:{file}", model)


def test_names_of_tasks(files):
    choice = f"choice:{files / 'choice.jsonl'}"
    assert split_tasks(f"hellaswag, {choice},mmlu") == ([choice], ["hellaswag", "mmlu"])
    for tasks, sentence in (
        ("chioce:x", "Closest: choice"),
        ("choice:x.jsonl", "There is no 'x.jsonl'"),
        ("choice", "There is no ''"),
        (f"{choice},{choice}", "there twice"),
        (" ,", "There is no task"),
    ):
        with pytest.raises(LitGPTError, match=sentence):
            split_tasks(tasks)


# ------------------------------------------------------------------------------------------------------------ CORE


def write_core(folder, rows) -> None:
    (folder / "eval_data").mkdir()
    kinds = {"mc": "multiple_choice", "schema": "schema", "lm": "language_modeling"}
    tasks = [
        dict(
            label=name,
            dataset_uri=f"{name}.jsonl",
            num_fewshot=[n],
            icl_task_type=kinds[name],
            continuation_delimiter=" ",
        )
        for name, n in (("mc", 1), ("schema", 0), ("lm", 2))
    ]
    (folder / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": tasks}))
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nmc,25\nschema,50\nlm,0\n")
    for name in kinds:
        (folder / "eval_data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows[name])))


CORE_ROWS = {
    "mc": [
        {"query": q["question"], "choices": q["choices"], "gold": g}
        for q, g in zip(QUESTIONS, (1, 0, 0, 3), strict=True)
    ],
    "schema": [
        {"context_options": ["The fox", "The lazy dog"], "continuation": "jumps over it", "gold": 0},
        {"context_options": ["Llamas", "A city"], "continuation": "eat hay", "gold": 0},
        {"context_options": ["A girl", "Hay there"], "continuation": "is eaten", "gold": 1},
    ],
    "lm": [{"context": f"{word} and ", "continuation": word} for word in ("dog", "fox", "hay", "girl")],
}


def naive_core(model) -> dict[str, float]:
    """As nanochat has it: whole prompts, and losses between two positions."""
    found = {}
    for name, shots in (("mc", 1), ("schema", 0), ("lm", 2)):
        rows = list(CORE_ROWS[name])
        random.Random(1337).shuffle(rows)
        hits = 0
        for number, row in enumerate(rows):
            others = [other for other in range(len(rows)) if other != number]
            shown = [rows[other] for other in random.Random(1234 + number).sample(others, shots)]
            if name == "mc":
                head = "".join(f"{one['query']} {one['choices'][one['gold']]}\n\n" for one in shown)
                texts = [f"{head}{row['query']} {choice}" for choice in row["choices"]]
            elif name == "schema":
                texts = [f"{context} {row['continuation']}" for context in row["context_options"]]
            else:
                head = "".join(f"{one['context'].strip()} {one['continuation']}\n\n" for one in shown)
                texts = [f"{head}{row['context'].strip()}", f"{head}{row['context'].strip()} {row['continuation']}"]
            ids = [[model.prefix, *model.tokenizer.encode_ids(text, bos=False)] for text in texts]
            if name == "lm":
                with torch.no_grad():
                    best = model.inference_model.model(torch.tensor([ids[1]]))[0].argmax(-1).tolist()
                hits += best[len(ids[0]) - 1 : -1] == ids[1][len(ids[0]) :]
                continue
            length, direction = min(map(len, ids)), 1 if name == "mc" else -1
            rows_of = [text[::direction] for text in ids]
            same = next((i for i in range(length) if len({text[i] for text in rows_of}) > 1), length)
            cuts = [same if name == "mc" else len(text) - same for text in ids]
            losses = [float(-logprobs_of(model, text)[cut - 1 :].mean()) for text, cut in zip(ids, cuts, strict=True)]
            hits += losses.index(min(losses)) == row["gold"]
        found[name] = hits / len(rows)
    return found


def test_core_is_what_nanochat_measures(model, tmp_path):
    write_core(tmp_path, CORE_ROWS)
    found = found_by(f"core:{tmp_path}", model)
    naive = naive_core(model)
    assert {name: found[f"{name},acc"] for name in naive} == naive
    centered = [(naive[name] - chance) / (1 - chance) for name, chance in (("mc", 0.25), ("schema", 0.5), ("lm", 0.0))]
    assert found["core,none"] == pytest.approx(sum(centered) / 3)


def test_a_folder_that_is_no_core_is_refused(model, tmp_path):
    write_core(tmp_path, {**CORE_ROWS, "schema": [{"context_options": ["a"], "continuation": "b", "gold": 1}]})
    with pytest.raises(LitGPTError, match="a row of schema has context_options, continuation, gold"):
        found_by(f"core:{tmp_path}", model)
    (tmp_path / "core.yaml").write_text("icl_tasks: [{label: mc}]")
    with pytest.raises(LitGPTError, match="is no folder with CORE's tasks"):
        found_by(f"core:{tmp_path}", model)


# --------------------------------------------------------------------------------------------------------- results


def test_results_are_written_shown_and_drawn_whatever_the_numbers(tmp_path):
    rows = {"alias": "a$b_", "acc,none": 0.5, "acc_stderr,none": math.nan, "loss,none": math.inf, "n_tokens,none": 3}
    results = {
        "results": {"a": rows, "b": {"alias": "b", "bits_per_byte,none": 1.25}},
        "n-samples": {"a": {"effective": 4}},
    }
    write(results, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["results"]["a"]["acc_stderr,none"] is None
    lines = table(results).splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:]] == ["acc", "loss", "bits_per_byte"]
    assert draw(results, tmp_path / "r.png", "$") and (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"

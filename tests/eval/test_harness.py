"""lm-eval's tasks by our models: its own `hf` model gives the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError
from litgpt.eval.models import Answering, LocalModel

pytest.importorskip("lm_eval", reason="needs lm-eval (pip install 'litgpt[eval]')")
pytestmark = pytest.mark.filterwarnings("default")  # its packages have some of their own

TASKS = {
    "four": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
num_fewshot: 1
fewshot_split: test
fewshot_config: {sampler: first_n}
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "long": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "free": """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}
ROWS = [
    {
        "question": "What is the capital of France?",
        "choices": ["Rome", "Paris", "Berlin, I think", "Oslo"],
        "answer": 1,
    },
    {
        "question": "What colour is the sky on a clear day?",
        "choices": ["blue", "green", "red", "as the sea"],
        "answer": 0,
    },
    {"question": "How many legs has a spider?", "choices": ["four", "six", "eight", "a hundred"], "answer": 2},
]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.json").write_text("\n".join(map(json.dumps, ROWS)))
    data = json.dumps({"test": str(folder / "rows.json")})
    for name, settings in TASKS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {data}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(head + settings.lstrip())
    return folder


def theirs(folder: Path, tasks: Path, length: int) -> dict[str, dict[str, float]]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(str(folder), dtype="float32", device="cpu", batch_size=2, max_length=length)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(lm, tasks=[*TASKS], task_manager=manager, bootstrap_iters=0)
    return found["results"], {name: [s["filtered_resps"] for s in rows] for name, rows in found["samples"].items()}


def numbers(found: dict[str, object]) -> dict[str, float]:
    return {name: value for name, value in found.items() if isinstance(value, float) and "stderr" not in name}


@pytest.mark.slow
def test_the_numbers_are_those_of_lm_evals_own_model(smollm2: Path, tasks: Path, tmp_path: Path, monkeypatch):
    from litgpt.__main__ import main

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    expected, said = theirs(smollm2, tasks, 8192)
    flags = ["--tasks", ",".join(TASKS), "--include_path", str(tasks), "--dtype", "float32", "--out_dir", str(tmp_path)]
    assert main(["evaluate", str(smollm2), *flags]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    for name in TASKS:
        assert numbers(found["results"][name]) == pytest.approx(numbers(expected[name]), rel=1e-4)
        for ours, other in zip(found["samples"][name], said[name], strict=True):
            flat, wanted = (
                [x for row in rows for x in (row if isinstance(row, list | tuple) else [row])]
                for rows in (ours["filtered_resps"], other)
            )
            assert all(
                str(a) == str(b) if isinstance(b, str) else float(a) == pytest.approx(float(b), abs=2e-3)
                for a, b in zip(flat, wanted, strict=True)
            )


def test_a_task_can_be_asked_in_the_models_style(folder, tasks):
    from litgpt.eval.harness import HarnessModel, HarnessSettings, run_harness

    model = LocalModel(InferenceModel.load(folder, "cpu", "32-true"), "tiny")
    found = run_harness(["free"], model, HarnessSettings(limit=2, include_path=tasks, chat=True))
    assert found["samples"]["free"][0]["arguments"][0][0].startswith("<|im_start|>user\nQuestion: What is")
    with pytest.raises(LitGPTError, match="lm-eval has no task 'fre'"):
        run_harness(["fre"], model, HarnessSettings(include_path=tasks))
    assert HarnessModel(model).tokenizer_name == "tiny"


def test_what_a_task_asks_of_answers():
    from litgpt.eval.harness import answering

    assert answering({"until": "\n", "max_gen_toks": 7, "do_sample": False, "temperature": 0.7}, 1) == Answering(
        7, ("\n",)
    )
    drawn = answering({"until": ["a", ""], "temperature": 0.5, "top_p": 0.9, "max_tokens": 3}, 1)
    assert (drawn.stop, drawn.sampling.temperature, drawn.sampling.top_p, drawn.sampling.seed) == (("a",), 0.5, 0.9, 1)
    with pytest.raises(LitGPTError, match="unknown here: num_beams"):
        answering({"num_beams": 4}, 1)

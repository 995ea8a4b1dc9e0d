"""`litgpt evaluate` as its users run it, on a folder, on a server, and as a setting of a training run."""

from __future__ import annotations

import json
import sys

import pytest

from litgpt.__main__ import main
from litgpt.args import EvalArgs
from litgpt.errors import LitGPTError
from litgpt.eval.built_in import run_tasks
from litgpt.eval.evaluate import convert_and_evaluate
from litgpt.eval.models import Windows
from litgpt.eval.served import ServedModel
from litgpt.eval.tasks import Settings
from litgpt.finetune import lora
from litgpt.training.metrics.loggers import read_metrics
from tests.deploy.served import make_service, running
from tests.finetune.test_finetune import run as finetune


def test_the_command_prints_a_table_and_writes_results_and_a_picture(folder, files, model, capsys):
    tasks = f"choice:{files}/choice.jsonl,perplexity:{files}/texts.jsonl"
    assert main(["evaluate", str(folder), "--tasks", tasks, "--dtype", "float32", "--limit", "0.5"]) == 0
    results = json.loads((folder / "evaluate" / "results.json").read_text())
    alone = run_tasks(tasks.split(","), model, Settings(limit=0.5))
    for task, found in alone["results"].items():
        same = {k: v for k, v in found.items() if isinstance(v, float) and v == v}
        assert {name: results["results"][task][name] for name in same} == pytest.approx(same, rel=1e-5)
    assert results["n-samples"][tasks.partition(",")[0]] == {"original": 4, "effective": 2}
    assert results["config"]["model"] == str(folder)
    printed = capsys.readouterr().out
    assert "acc_norm" in printed and "bits_per_byte" in printed and "windows of 128 tokens" in printed
    assert (folder / "evaluate" / "results.png").is_file()


def test_results_go_where_they_are_asked_for(folder, files, tmp_path):
    flags = [
        "--out_dir",
        str(tmp_path / "out"),
        "--save_filepath",
        str(tmp_path / "mine.json"),
        "--batch_size",
        "auto:3",
    ]
    assert (
        main(["evaluate", str(folder), "--tasks", f"match:{files}/match.jsonl", *flags, "--max_new_tokens", "3"]) == 0
    )
    assert (tmp_path / "mine.json").is_file() and not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (dict(batch_size=0), "batch_size is 0; it must be 1 or more"),
        (dict(batch_size="many"), "batch_size is 'many'"),
        (dict(limit=0), "limit is 0"),
        (dict(dtype="int3"), "dtype is 'int3'; it is one of float32"),
        (dict(num_fewshot=-1), "num_fewshot 0 or more"),
        (dict(num_fewshot=4), "num_fewshot is 4, and there are 4 samples"),
        (dict(max_new_tokens=0), "max_new_tokens must be 1 or more"),
        (dict(api_key="x"), "api_key is for servers"),
        (dict(tasks="no_such"), "lm-eval"),
    ],
)
def test_flags_that_make_no_sense_leave_nothing_behind(folder, files, tmp_path, flags, sentence):
    flags = {"tasks": f"choice:{files}/choice.jsonl", **flags}
    with pytest.raises(LitGPTError, match=sentence):
        convert_and_evaluate(folder, out_dir=tmp_path / "out", **flags)
    assert not (tmp_path / "out").exists()


def test_without_lm_eval_the_list_is_of_our_tasks(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["evaluate", "list"]) == 0
    printed = capsys.readouterr().out
    assert "choice:PATH" in printed and "pip install 'litgpt[eval]'" in printed


def test_lm_evals_tasks_need_lm_eval(folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "litgpt.eval.harness", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="lm-eval is not installed"):
        convert_and_evaluate(folder, tasks="hellaswag")


# --------------------------------------------------------------------------------------------------------- servers


@pytest.fixture(scope="module")
def address(model):
    with running(make_service(model.inference_model, keys=["secret"])) as address:
        yield address


def test_a_served_model_is_measured_as_the_same_one_here(address, model, files):
    served = ServedModel(address, api_key="secret")
    choice, match = f"choice:{files}/choice.jsonl", f"match:{files}/match.jsonl"
    settings = Settings(max_new_tokens=5)
    assert (
        run_tasks([choice, match], served, settings)["results"]
        == run_tasks([choice, match], model, settings)["results"]
    )
    pairs = [("What do llamas eat?", " hay"), ("Paris", " is a city")]
    for here, there in zip(model.loglikelihood(pairs), served.loglikelihood(pairs), strict=True):
        assert there.logprob == pytest.approx(here.logprob, abs=1e-3)
        assert (there.greedy, there.n_tokens) == (here.greedy, here.n_tokens)


def test_a_server_predicts_windows_of_a_text_but_for_its_first_token(address, model, files):
    text, windows = (files / "text.txt").read_text(), Windows(9, 4)
    (found,) = ServedModel(f"{address}/v1/", "tiny", "secret").rolling([text], windows)
    ids = model.tokenizer.encode_ids(text)
    scores = model.score(windows.over(ids[1:], ids[0], model.context), "")
    assert found.n_tokens == len(ids) - 1
    assert found.logprob == pytest.approx(sum(score.logprob for score in scores), rel=1e-4)


def test_the_command_takes_an_address(address, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    task = f"choice:{files}/choice.jsonl"
    assert main(["evaluate", f"{address}/v1", "--tasks", task, "--api_key", "secret"]) == 0
    results = (tmp_path / "out" / "evaluate" / "results.json").read_text()
    assert json.loads(results)["config"]["model"] == f"tiny at {address}/v1" and "secret" not in results
    assert main(["evaluate", f"{address}/v1", "--tasks", task, "--dtype", "float32"]) == 1
    assert "a server has its own" in capsys.readouterr().err


def test_what_a_server_says_is_wrong_is_told(address):
    with pytest.raises(LitGPTError, match="status 401"):
        ServedModel(address)
    with pytest.raises(LitGPTError, match="not 'huge'"):
        ServedModel(address, "huge", "secret")
    with pytest.raises(LitGPTError, match="doesn't answer"):
        ServedModel("http://127.0.0.1:9")
    with pytest.raises(LitGPTError, match="max_tokens|context|long"):
        ServedModel(address, api_key="secret").loglikelihood([("Llamas " * 500, "eat")])


# -------------------------------------------------------------------------------------------------------- training


def test_tasks_run_at_each_validation_of_a_training(folder, files, tmp_path, data_file):
    tasks = f"choice:{files}/choice.jsonl,perplexity:{files}/texts.jsonl"
    out = finetune(lora.setup, folder, data_file, tmp_path / "out", eval=dict(tasks=tasks, tasks_limit=3))
    rows = read_metrics(next((out / "logs" / "csv").glob("version_*")) / "metrics.csv")
    found = [row for row in rows if "choice_choice/acc" in row]
    assert [row["step"] for row in found] == [2, 4]
    assert all(set(row) >= {"choice_choice/acc_norm", "perplexity_texts/bits_per_byte"} for row in found)
    convert_and_evaluate(out / "final", tasks=tasks, dtype="float32", limit=3, out_dir=tmp_path / "evaluated")
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())["results"]
    expected = results[tasks.partition(",")[2]]["bits_per_byte,none"]
    assert found[-1]["perplexity_texts/bits_per_byte"] == pytest.approx(expected, rel=1e-3)
    assert "choice_choice/acc" in (out / "report.html").read_text()
    assert "tasks" in (out / "final" / "hyperparameters.yaml").read_text()


def test_tasks_are_checked_before_training(folder, tmp_path, data_file):
    for tasks, sentence in (
        ("choice:none.jsonl", "There is no 'none.jsonl'"),
        ("hellaswag", "can't run during training"),
    ):
        with pytest.raises(LitGPTError, match=sentence):
            finetune(lora.setup, folder, data_file, tmp_path / "out", eval=dict(tasks=tasks))
    assert not (tmp_path / "out").exists()
    with pytest.raises(LitGPTError, match="eval.tasks_limit must be at least 1"):
        EvalArgs(tasks_limit=0)

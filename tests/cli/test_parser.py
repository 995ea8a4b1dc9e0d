"""The command line: what it accepts, what it hands to a command, and what it says when it cannot."""

from __future__ import annotations

import http.server
import json
import os
import re
import resource
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from litgpt import __main__ as entry
from litgpt.args import EvalArgs, TrainArgs, hyperparameters
from litgpt.cli.parser import parse
from litgpt.config import Config
from litgpt.data import JSON, DataModule
from litgpt.errors import LitGPTError, UsageError
from tests.paths import GOLDEN

TOKEN = "hf_thisIsASecret"


def command(
    checkpoint_dir: Path,
    out_dir: Path = Path("out"),
    quantize: Literal["bnb.nf4", "bnb.int8"] | None = None,
    devices: int | str = 1,
    resume: bool | Literal["auto"] | Path = False,
    top_k: int | None = 50,
    model_config: Config | None = None,
    data: DataModule | None = None,
    train: TrainArgs = TrainArgs(epochs=5),
    eval: EvalArgs = EvalArgs(interval=100),
    optimizer: str | dict[str, Any] = "AdamW",
    access_token: str | None = None,
) -> None:
    """Do what a training command does with its arguments.

    Args:
        checkpoint_dir: Where the model is.
    """
    print(json.dumps(hyperparameters(locals())))


def given(*arguments: str) -> dict[str, Any]:
    """What the command gets for these arguments."""
    return parse("finetune", command, arguments)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line whose `finetune` is the command above; returns exit code, standard output and error."""
    monkeypatch.setitem(entry.COMMANDS, "finetune", (f"{__name__}:command", "Finetune."))

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = entry.main(arguments)
        except SystemExit as exit:
            code = int(exit.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


# ---------------------------------------------------------------------------------------------------- start-up


def fresh(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Runs `litgpt` in a new process; also returns its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "litgpt", *arguments], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loaded_by(*arguments: str) -> set[str]:
    """The top-level modules that a command line has imported when it ends."""
    code = (
        "import json, sys\nfrom litgpt.__main__ import main\n"
        f"try:\n    main({list(arguments)})\nexcept SystemExit:\n    pass\n"
        "print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_lists_the_commands_in_litgpts_order():
    done, _ = fresh("--help")
    golden = list(json.loads((GOLDEN / "commands.json").read_text()))
    assert done.returncode == 0
    assert done.stdout.startswith("usage: litgpt ")
    rows = re.findall(r"^  (\w+(?: \w+)?)  ", done.stdout.partition("Available subcommands:\n")[2], re.MULTILINE)
    assert [name for name in rows if name in golden] == golden


@pytest.mark.parametrize("arguments", [["--help"], ["finetune_lroa"]], ids=" ".join)
def test_what_needs_no_command_answers_at_once_and_imports_nothing(arguments):
    assert min(fresh(*arguments)[1] for _ in range(3)) <= 0.3
    assert not loaded_by(*arguments) & {"torch", "jsonargparse", "yaml"}


@pytest.mark.parametrize("name", entry.COMMANDS)
def test_help_of_a_command_imports_no_torch_and_shows_no_token_of_the_environment(name):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "litgpt", *name.split(), "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": TOKEN},
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert TOKEN not in done.stdout + done.stderr
    assert done.stdout.startswith(f"usage: litgpt {name} ")
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "lightning", "numpy", "litserve", "huggingface_hub", "matplotlib"}


def test_version(run):
    assert run("--version")[1].startswith("litgpt ")


# ------------------------------------------------------------------------------------------------ what it accepts


def test_required_parameters_are_positional_and_the_rest_keep_their_defaults():
    values = given("org/name")
    assert values["checkpoint_dir"] == Path("org/name")
    assert values["train"] == TrainArgs(epochs=5) and values["eval"] == EvalArgs(interval=100)
    assert (values["out_dir"], values["data"], values["optimizer"]) == (Path("out"), None, "AdamW")


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        (["--resume", "true"], "resume", True),
        (["--resume", "auto"], "resume", "auto"),
        (["--resume", "out/step-000100"], "resume", Path("out/step-000100")),
        (["--top_k", "null"], "top_k", None),
        (["--devices", "auto"], "devices", "auto"),
        (["--devices=2"], "devices", 2),
        (["--quantize", "bnb.nf4"], "quantize", "bnb.nf4"),
    ],
)
def test_values_take_the_type_of_their_parameter(arguments, name, expected):
    value = given("ck", *arguments)[name]
    assert value == expected and type(value) is type(expected)


def test_groups_are_nested_or_read_from_a_file(folder):
    (folder / "train.yaml").write_text("max_steps: 7\nmin_lr: 1e-5\n")
    train = given("ck", "--train", "train.yaml", "--train.max_seq_length", "64")["train"]
    assert (train.max_steps, train.min_lr, train.max_seq_length, train.epochs) == (7, 1e-5, 64, 5)


def test_a_configuration_fills_positionals_too_and_later_flags_override_it(folder):
    (folder / "run.yaml").write_text(
        "checkpoint_dir: ck\ntrain: {epochs: 9, max_steps: 3}\neval: {evaluate_example: 2}\n"
        "data: {class_path: litgpt.data.JSON, init_args: {json_path: a.json, mask_prompt: true}}\n"
    )
    values = given("--config", "run.yaml", "--train.epochs", "2", "--data.seed", "3")
    assert values["checkpoint_dir"] == Path("ck")
    assert (values["train"].epochs, values["train"].max_steps) == (2, 3)
    assert values["eval"].evaluate_example == 2
    assert isinstance(values["data"], JSON)
    assert (values["data"].json_path, values["data"].mask_prompt, values["data"].seed) == (Path("a.json"), True, 3)


def test_a_configuration_comes_from_a_url_too():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"checkpoint_dir: from-afar\ntrain: {epochs: 4}\n"
            self.send_response(200 if self.path == "/run.yaml" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        values = given("--config", f"{place}/run.yaml")
        with pytest.raises(UsageError, match="Not Found"):
            given("--config", f"{place}/other.yaml")
        server.shutdown()
    assert (values["checkpoint_dir"], values["train"].epochs) == (Path("from-afar"), 4)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "JSON", "--data.json_path", "a.json"],
        ["--data=litgpt.data.JSON", "--data.json_path=a.json"],
        ["--data", "litgpt.data.json_data.JSON", "--data.init_args.json_path", "a.json"],
        ["--data", '{"class_path": "JSON", "init_args": {"json_path": "a.json"}}'],
        ["--config", "data.yaml"],
        ["--config", "short.yaml", "--data.json_path", "a.json"],
    ],
)
def test_a_data_module_is_chosen_by_name_or_path(folder, arguments):
    (folder / "data.yaml").write_text("data: {class_path: JSON, init_args: {json_path: a.json}}")
    (folder / "short.yaml").write_text("data: JSON")
    data = given("ck", *arguments)["data"]
    assert type(data) is JSON and data.json_path == Path("a.json")


class OwnData(DataModule):
    """A data module outside of the package."""

    def __init__(self, lines: int = 3) -> None:
        self.lines = lines

    def setup(self, stage: str = "") -> None: ...


def test_a_data_module_of_ones_own_is_chosen_by_its_dotted_path():
    data = given("ck", "--data", f"{__name__}.OwnData", "--data.lines", "5")["data"]
    assert isinstance(data, OwnData) and data.lines == 5


def test_choosing_a_data_module_imports_no_other():
    code = (
        "import sys\nfrom tests.cli.test_parser import given\n"
        "given('ck', '--data', 'JSON', '--data.json_path', 'x')\n"
        "print(*(name for name in sys.modules if name.startswith('litgpt.data.')))"
    )
    root = GOLDEN.parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert "litgpt.data.json_data" in done.stdout.split()
    assert "litgpt.data.text_files" not in done.stdout.split()


def test_types_of_a_data_module_are_checked():
    with pytest.raises(UsageError, match=r"--data.val_split_fraction: half is not a number"):
        given("ck", "--data", "JSON", "--data.json_path", "x", "--data.val_split_fraction", "half")


OPTIMIZER = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4, "betas": [0.9, 0.95]}}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--optimizer", "SGD"], "SGD"),
        (["--optimizer", "AdamW", "--optimizer.lr", "1e-4"], {"class_path": "AdamW", "init_args": {"lr": 1e-4}}),
        (["--optimizer.lr", "1e-4"], {"class_path": "AdamW", "init_args": {"lr": 1e-4}}),
        (["--optimizer.lr=1e-4", "--optimizer=SGD"], {"class_path": "SGD", "init_args": {"lr": 1e-4}}),
        (
            ["--optimizer", "torch.optim.SGD", "--optimizer.init_args.lr", "1", "--optimizer.nesterov", "true"],
            {"class_path": "torch.optim.SGD", "init_args": {"lr": 1, "nesterov": True}},
        ),
        (
            ["--optimizer", json.dumps(OPTIMIZER)],
            OPTIMIZER,
        ),
        (["--config", "run.yaml"], OPTIMIZER),
        (
            ["--config", "run.yaml", "--optimizer.lr", "1e-3"],
            {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "betas": [0.9, 0.95]}},
        ),
        (["--optimizer.lr", "1e-3", "--config", "run.yaml"], OPTIMIZER),
        (
            ["--config", "run.yaml", "--optimizer", "SGD", "--optimizer.lr", "1"],
            {"class_path": "SGD", "init_args": {"lr": 1}},
        ),
        (["--config", "lr.yaml"], {"class_path": "AdamW", "init_args": {"lr": 1e-4}}),
    ],
)
def test_an_optimizer_keeps_its_class_and_its_arguments(folder, arguments, expected):
    (folder / "run.yaml").write_text(yaml.safe_dump({"optimizer": OPTIMIZER}))
    (folder / "lr.yaml").write_text("optimizer: {lr: 1e-4}")
    assert given("ck", *arguments)["optimizer"] == expected


def test_a_model_config_is_given_as_a_file(tmp_path):
    asked = Config(n_layer=3, n_embd=64, n_head=4)
    asked.save(tmp_path)
    config = given("ck", "--model_config", str(tmp_path / "model_config.yaml"), "--model_config.n_layer", "2")
    assert config["model_config"] == replace(asked, n_layer=2)


def test_a_model_config_is_given_field_by_field():
    config = given("ck", "--model_config.n_layer", "3", "--model_config.n_embd", "64", "--model_config.n_head", "4")
    assert (config["model_config"].n_layer, config["model_config"].head_size) == (3, 16)


# ------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize("how", ["flag", "yaml"])
def test_an_access_token_reaches_the_command_but_not_what_is_written(folder, run, how):
    (folder / "token.yaml").write_text(f"access_token: {TOKEN}")
    arguments = ["--access_token", TOKEN] if how == "flag" else ["--config", "token.yaml"]
    assert given("ck", *arguments)["access_token"] == TOKEN
    code, printed, _ = run("finetune", "ck", *arguments, "--print_config")
    assert code == 0 and "access_token: null" in printed and TOKEN not in printed
    code, printed, _ = run("finetune", "ck", *arguments)
    assert code == 0 and TOKEN not in printed


def test_print_config_is_a_configuration(folder, run):
    _, printed, _ = run("finetune", "ck", "--optimizer.lr", "1e-3", "--train.max_steps", "4", "--print_config")
    (folder / "again.yaml").write_text(printed)
    again = given("--config", "again.yaml")
    assert again == given("ck", "--optimizer.lr", "1e-3", "--train.max_steps", "4")


def test_hyperparameters_are_a_configuration(folder):
    arguments = ["ck", "--data", "JSON", "--data.json_path", "x.json", "--optimizer.lr", "1e-3", "--devices", "auto"]
    before = given(*arguments)
    (folder / "hyperparameters.yaml").write_text(yaml.safe_dump(hyperparameters(before)))
    assert hyperparameters(given("--config", "hyperparameters.yaml")) == hyperparameters(before)


# ------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["finetune_lroa"], "Unknown command 'finetune_lroa'. Closest: finetune_lora"),
        (["--verbose"], "Unknown option '--verbose'"),
        (["finetune"], "needs CHECKPOINT_DIR"),
        (["finetune", "ck", "--lora_rank", "4"], "has no flag --lora_rank"),
        (["finetune", "ck", "--out_dri", "x"], "no flag --out_dri. Closest: out_dir"),
        (["finetune", "ck", "--train.epoch", "3"], "no flag --train.epoch. Closest: train.epochs"),
        (["finetune", "ck", "-x"], "has no flag -x"),
        (["finetune", "ck", "more"], "Too many arguments (more)"),
        (["finetune", "--checkpoint_dir", "ck"], "`litgpt finetune CHECKPOINT_DIR`"),
        (["finetune", "ck", "--train.epochs", "many"], "--train.epochs: many is not a whole number or null."),
        (["finetune", "ck", "--train.packing", "yse"], "--train.packing: yse is not true or false."),
        (["finetune", "ck", "--train.epochs"], "--train.epochs needs a value: a whole number or null."),
        (
            ["finetune", "ck", "--quantize", "bnb.nf5"],
            "bnb.nf5 is not one of bnb.nf4, bnb.int8 or null. Closest: bnb.nf4",
        ),
        (["finetune", "ck", "--data", "JSN"], "Unknown data module 'JSN'. Closest: JSON"),
        (["finetune", "ck", "--data", "litgpt.data.Jason"], "Closest: JSON"),
        (["finetune", "ck", "--data", "no.such.Module"], "cannot be imported"),
        (["finetune", "ck", "--data", "os.PathLike"], "not a subclass of litgpt.data.DataModule"),
        (["finetune", "ck", "--data", "JSON"], "--data needs --data.json_path"),
        (
            ["finetune", "ck", "--data", "JSON", "--data.json_pth", "x"],
            "JSON has no argument 'json_pth'. Closest: json_path",
        ),
        (["finetune", "ck", "--data.json_path", "x"], "needs --data NAME before it"),
        (["finetune", "ck", "--data.help", "JSN"], "Closest: JSON"),
        (["finetune", "ck", "--model_config.n_layr", "3"], "Closest: model_config.n_layer"),
        (["finetune", "ck", "--model_config.n_layer", "x"], "--model_config.n_layer: x is not a whole number"),
        (["finetune", "ck", "--optimizer.lr"], "--optimizer.lr needs a value"),
        (["finetune", "ck", "--config", "absent.yaml"], "absent.yaml: No such file or directory. There is no recipe"),
        (["finetune", "ck", "--config", "broken.yaml"], "broken.yaml: line 2 is not valid YAML"),
        (["finetune", "ck", "--config", "list.yaml"], "a configuration is `name: value` lines"),
        (["finetune", "ck", "--config", "keys.yaml"], "no argument 'tran'. Closest: train"),
        (["finetune", "ck", "--config", "fields.yaml"], "train has no argument 'epoch'. Closest: epochs"),
        (["finetune", "ck", "--config", "value.yaml"], "--train.epochs: many is not a whole number or null."),
        (["finetune", "ck", "--config", "data.yaml"], "JSON has no argument 'path'"),
        (["finetune", "ck", "--train", "absent.yaml"], "absent.yaml: No such file"),
        (["finetune", "ck", "--train", "epoch.yaml"], "train has no argument 'epoch'. Closest: epochs"),
        (["finetune", "ck", "--train", "list.yaml"], "--train takes `name: value` lines, not ["),
        (["finetune", "--config", "short.yaml"], "needs CHECKPOINT_DIR"),
        (["finetune", "ck", "--data", "JSON", "--data.json_path"], "--data.json_path needs a value"),
        (["finetune", "ck", "--config"], "--config needs a value"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_line_that_cannot_be_understood_gets_one_sentence(folder, run, arguments, sentence):
    for name, text in {
        "broken": "train: [\n",
        "list": "- 1",
        "keys": "tran: {}",
        "fields": "train: {epoch: 1}",
        "value": "train: {epochs: many}",
        "epoch": "epoch: 1",
        "short": "train: {epochs: 1}",
        "data": "data: {class_path: JSON, init_args: {path: x}}",
    }.items():
        (folder / f"{name}.yaml").write_text(text)
    code, printed, error = run(*arguments)
    assert (code, printed) == (2, "")
    assert error.startswith("litgpt: ") and error.count("\n") == 1
    assert sentence in error


@pytest.mark.parametrize("text", ["?", "3:", "2026-13-45", "*x", "- -", "{", "<<: 1", "@x", "`", "%"])
def test_a_text_over_which_yaml_stumbles_is_a_text(folder, run, text):
    if text != "- -":
        assert given(text)["checkpoint_dir"] == Path(text)
    for flag in ("--data", "--train.epochs", "--train", "--config", "--optimizer", "--devices"):
        code, printed, error = run("finetune", "ck", flag, text)
        if code != 0 or flag not in ("--devices", "--optimizer"):
            assert (code, printed) == (2, "") and error.startswith("litgpt: ") and error.count("\n") == 1, flag
            assert "operand" not in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["--train.micro_batch_size", "0"],
        ["--data", "JSON", "--data.json_path", "x", "--data.prompt_style", "no-such-style"],
    ],
    ids=" ".join,
)
def test_a_value_that_a_class_refuses_is_a_users_mistake(run, arguments):
    code, _, error = run("finetune", "ck", *arguments)
    assert code == 1 and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (LitGPTError("No such folder."), 1, "litgpt: No such folder.\n"),
        (UsageError("Unknown class."), 2, "litgpt: Unknown class.\n"),
        (KeyboardInterrupt(), 130, "\n"),  # ends the line of the ^C
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_how_a_command_can_end(monkeypatch, run, raised, code, told):
    def failing(checkpoint_dir: Path) -> None:
        raise raised

    monkeypatch.setattr(sys.modules[__name__], "command", failing)
    assert run("finetune", "ck") == (code, "", told)


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "litgpt", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")

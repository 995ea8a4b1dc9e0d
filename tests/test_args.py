from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import typing
from pathlib import Path

import pytest

from litgpt import data as data_modules
from litgpt.args import EvalArgs, LogArgs, TrainArgs, arguments_of, hyperparameters, inherits, portable
from litgpt.errors import LitGPTError
from tests.paths import GOLDEN

TABLE = json.loads((GOLDEN / "args.json").read_text())


@pytest.mark.parametrize("group", [TrainArgs, EvalArgs, LogArgs], ids=lambda group: group.__name__)
def test_fields_have_litgpt_types_and_defaults(group):
    values, hints = group(), typing.get_type_hints(group)
    for name, (hint, default) in TABLE[group.__name__].items():
        assert getattr(values, name) == default, name
        assert hints[name] == eval(hint), name


@pytest.mark.parametrize("group", [TrainArgs, EvalArgs, LogArgs], ids=lambda group: group.__name__)
def test_every_field_says_what_it_is(group):
    source = Path(__import__("litgpt.args").args.__file__).read_text()
    body = source[source.index(f"class {group.__name__}") :]
    for field in dataclasses.fields(group):
        after = body[body.index(f"    {field.name}:") :].split("\n", 2)[1]
        assert after.startswith('    """'), f"{group.__name__}.{field.name} has no docstring"


# devices, hosts -> samples a device, micro-batches a step, warm-up micro-batches (what LitGPT answers)
@pytest.mark.parametrize(
    ("train", "devices", "hosts", "expected"),
    [
        (TrainArgs(), 1, 1, (64, 16, 500)),
        (TrainArgs(), 2, 2, (16, 4, 400)),
        (TrainArgs(global_batch_size=16, micro_batch_size=3), 2, 1, (8, 2, 200)),
        (TrainArgs(lr_warmup_steps=None, lr_warmup_fraction=0.1), 2, 2, (16, 4, 34)),
        (TrainArgs(lr_warmup_steps=None), 1, 1, (64, 16, 0)),
        (TrainArgs(lr_warmup_steps=0), 1, 1, (64, 16, 0)),
        (TrainArgs(lr_warmup_steps=None, lr_warmup_fraction=0.0), 1, 1, (64, 16, 0)),
    ],
)
def test_batches_and_warmup_are_counted_as_in_litgpt(train, devices, hosts, expected):
    counted = (
        train.batch_size(devices, hosts),
        train.gradient_accumulation_iters(devices, hosts),
        train.warmup_iters(devices, hosts, max_iters=500, train_dataloader=range(333)),
    )
    assert counted == expected


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TrainArgs(lr_warmup_fraction=0.1), "exclude each other"),
        (lambda: TrainArgs(lr_warmup_steps=None, lr_warmup_fraction=1.5), "between 0 and 1, not 1.5"),
        (lambda: TrainArgs(micro_batch_size=0), "train.micro_batch_size must be at least 1, not 0"),
        (lambda: TrainArgs(max_steps=-1), "train.max_steps must be at least 0, not -1"),
        (lambda: TrainArgs(global_batch_size=4).batch_size(8), "less than the 8 devices"),
        (lambda: TrainArgs(global_batch_size=2).gradient_accumulation_iters(1), "lower it to 2"),
        (lambda: EvalArgs(interval=0), "eval.interval must be at least 1, not 0"),
        (lambda: EvalArgs(evaluate_example="last"), "not 'last'"),
    ],
)
def test_impossible_values_are_refused_in_one_sentence(make, sentence):
    with pytest.raises(LitGPTError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


def test_example_given_as_text_becomes_an_index():
    assert EvalArgs(evaluate_example="7").evaluate_example == 7


class Source:
    """Something a subclass of is chosen on the command line."""


class Chosen(Source):
    def __init__(self, path: Path, style: Source | None = None, access_token: str | None = None) -> None:
        self.path, self.style, self.access_token = path, style, access_token


class Style(Source):
    pass


def test_hyperparameters_are_plain_without_nulls_and_secrets():
    written = hyperparameters(
        {
            "checkpoint_dir": Path("a/b"),
            "precision": None,
            "access_token": "hf_secret",
            "data": Chosen(Path("x.json"), Style(), "hf_secret"),
            "train": TrainArgs(max_steps=3),
            "optimizer": {"class_path": "AdamW", "init_args": {"betas": (0.9, 0.95), "fused": None}},
        }
    )
    assert "hf_secret" not in repr(written)
    assert written["checkpoint_dir"] == "a/b"
    assert "precision" not in written
    assert written["data"] == {
        "class_path": f"{__name__}.Chosen",
        "init_args": {"path": "x.json", "style": {"class_path": f"{__name__}.Style"}},
    }
    assert written["train"]["max_steps"] == 3 and "epochs" not in written["train"]
    assert written["optimizer"] == {"class_path": "AdamW", "init_args": {"betas": [0.9, 0.95]}}


def test_hyperparameters_name_a_class_by_its_public_path():
    from litgpt.data import JSON

    assert hyperparameters({"data": JSON(Path("x.json"))})["data"]["class_path"] == "litgpt.data.JSON"


def base(model: str, rate: float = 1.0, steps: int = 2, seed: int = 3) -> None:
    """Trains.

    Args:
        model: What to train.
        rate: How fast.
        steps: How long.
        seed: Of the random numbers.
    """


given: list[dict] = []


@inherits(base)
def command(steps: int = 5, more: str | None = None, rate: float = 0.5, **inherited: typing.Any) -> None:
    """Trains something else.

    Args:
        steps: How long, at most.
        more: Besides.
    """
    given.append(arguments_of(command, locals()))


def test_a_command_inherits_what_it_does_not_state():
    parameters = inspect.signature(command).parameters
    assert {name: entry.default for name, entry in parameters.items() if name != "model"} == {
        "steps": 5,
        "more": None,
        "rate": 0.5,
        "seed": 3,
    }
    assert [*parameters] == ["model", "steps", "more", "rate", "seed"]
    assert parameters["seed"].annotation is int and parameters["more"].annotation == str | None
    assert "    steps: How long, at most.\n    more: Besides.\n    rate: How fast.\n" in command.__doc__


def test_a_command_gets_what_it_inherits_in_the_order_of_its_signature():
    command("tiny", 7, seed=4)
    assert [*given.pop().items()] == [("model", "tiny"), ("steps", 7), ("more", None), ("rate", 0.5), ("seed", 4)]
    with pytest.raises(TypeError, match="unexpected keyword argument 'step'"):
        command("tiny", step=7)


DATA = json.loads((GOLDEN / "data_modules.json").read_text())
COMMANDS = json.loads((GOLDEN / "commands.json").read_text())


@pytest.mark.parametrize(
    "command", ["finetune.lora", "finetune.full", "finetune.adapter", "finetune.adapter_v2", "pretrain"]
)
@pytest.mark.parametrize("module", DATA)
def test_what_is_written_at_defaults_is_a_configuration_of_litgpt(command, module):
    setup = importlib.import_module(f"litgpt.{command}").setup
    kind = getattr(data_modules, module)
    needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    data = kind(**dict.fromkeys(needed, Path("x")))
    given = {
        p.name: Path("y") if p.default is p.empty else p.default for p in inspect.signature(setup).parameters.values()
    }
    own = {name: value for name, value in given.items() if not name.startswith("lora_")}  # which the method knows
    written = portable(hyperparameters({**own, "data": data}), data)
    known = COMMANDS[command.replace(".", "_")]
    assert written.keys() <= (COMMANDS[known] if isinstance(known, str) else known).keys()
    for group, fields in (("train", "TrainArgs"), ("eval", "EvalArgs"), ("log", "LogArgs")):
        assert written[group].keys() <= TABLE[fields].keys()
    assert written["data"].get("init_args", {}).keys() <= DATA[module].keys()
    assert written["train"]["epochs"] == given["train"].epochs, "a null that is none of the command's defaults counts"


def test_what_litgpt_does_not_know_is_written_where_it_says_something():
    train = TrainArgs(epochs=None, max_steps=3, packing=False, keep_last=2)
    data = data_modules.JSON(Path("x"), cache_dir=Path("cache"), seed=3)
    written = portable(hyperparameters({"train": train, "data": data, "resume": "auto"}), data)
    assert written["train"] == {
        **{name: getattr(train, name) for name in TABLE["TrainArgs"]},
        "packing": False,
        "keep_last": 2,
    }
    assert {"cache_dir": "cache", "seed": 3}.items() <= written["data"]["init_args"].items()
    assert written["resume"] == "auto"

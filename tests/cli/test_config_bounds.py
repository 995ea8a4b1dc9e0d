"""A configuration from elsewhere is read within bounds."""

from __future__ import annotations

import pytest

from litgpt.cli.config_files import load_yaml, read_config
from litgpt.cli.parser import parse
from litgpt.errors import UsageError
from litgpt.finetune import lora

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ALIASES, "stand for too much"),
        ("a: &a [*a]", "levels deep"),
        ("a: &a {b: *a}", "levels deep"),
        ("[" * 100 + "]" * 100, "levels deep"),
        ("[" * 20_000, "levels deep"),
        (f"a: [{'1, ' * 110_000}]", "stand for too much"),
    ],
    ids=["aliases", "itself", "itself in a mapping", "levels", "open", "values"],
)
def test_a_configuration_that_stands_for_too_much_is_refused_at_once(text, said):
    with pytest.raises(UsageError, match=said) as error:
        load_yaml(text, "a.yaml")
    assert len(str(error.value)) < 200


def test_aliases_may_be_used():
    assert load_yaml("a: &a [1]\nb: [*a, *a]", "a.yaml") == {"a": [1], "b": [[1], [1]]}


def test_a_file_without_end_is_refused():
    with pytest.raises(UsageError, match="larger than"):
        read_config("/dev/zero")


@pytest.mark.parametrize("value", ["5", "[1]", "true"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: VALUE", "train takes `name: value` lines"),
        ("train: {class_path: TrainArgs, init_args: VALUE}", "init_args are `name: value` lines"),
        ("optimizer: {class_path: AdamW, init_args: VALUE}", "init_args are `name: value` lines"),
        ("data: {class_path: JSON, init_args: VALUE}", "init_args are `name: value` lines"),
    ],
)
def test_arguments_are_lines_with_names(tmp_path, text, said, value):
    file = tmp_path / "a.yaml"
    file.write_text(text.replace("VALUE", value))
    with pytest.raises(UsageError, match=said):
        parse("finetune_lora", lora.setup, ["x", "--config", str(file)])

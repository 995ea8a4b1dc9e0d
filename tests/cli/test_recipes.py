"""The recipes of `config_hub`: LitGPT's values less its faults, what each needs, and the commands."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from litgpt.__main__ import COMMANDS, main
from litgpt.args import hyperparameters
from litgpt.checkpoint.writer import save_state
from litgpt.cli.parser import parse
from litgpt.cli.recipe_files import Recipe, all_recipes, config_hub, recipe_names
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.training.planner.args import PlanArgs
from tests.paths import GOLDEN
from tests.tiny_tokenizer import SIZE, write_tokenizer

RECIPES = {recipe.name: recipe for recipe in all_recipes()}
LITGPTS = [name for name in json.loads((GOLDEN / "recipes.json").read_text()) if name.endswith(".yaml")]

MENDED: dict[str, dict[str, tuple[Any, Any]]] = {
    # these never left warm-up: it was longer than the run
    "finetune/gemma-2b/full.yaml": {"train.lr_warmup_steps": (100, 5)},
    "finetune/phi-2/full.yaml": {"train.lr_warmup_steps": (200, 10)},
    "finetune/stablelm-base-alpha-3b/full.yaml": {"train.lr_warmup_steps": (1000, 24)},
    "finetune/tiny-llama/full.yaml": {"train.lr_warmup_steps": (1000, 6)},
    # these wrote into another recipe's folder
    "finetune/gemma-7b/lora.yaml": {"out_dir": ("out/finetune/qlora-gemma-7b", "out/finetune/lora-gemma-7b")},
    "finetune/mistral-7b-v0.2/lora.yaml": {
        "out_dir": ("out/finetune/lora-mistral-7b", "out/finetune/lora-mistral-7b-v0.2")
    },
    "finetune/mistral-7b-v0.2/qlora.yaml": {
        "out_dir": ("out/finetune/qlora-mistral-7b", "out/finetune/qlora-mistral-7b-v0.2")
    },
}
"""LitGPT's recipe → key → its value, which is a fault, and ours."""
AT_ONCE = {*MENDED, "finetune/phi-3/qlora.yaml", *(name for name in LITGPTS if name.startswith("pretrain/"))}
"""Those that the fast tests compare."""
SLOW = [pytest.mark.slow]


# ---------------------------------------------------------------------------------------------------------- values


def setup_of(command: str) -> Any:
    module, function = str(COMMANDS[command][0]).split(":")
    return getattr(import_module(module), function)


def flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with what stands there."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def parsed(command: str, *arguments: str) -> dict[str, Any]:
    """What a command gets, as dotted keys; null is as good as no key."""
    values = hyperparameters(parse(command, setup_of(command), arguments))
    return {key: value for key, value in flat(values) if value is not None and value != {}}


def litgpts(name: str) -> dict[str, Any]:
    """One of LitGPT's own YAML files, nested again from its difference to the commonest values."""
    golden = json.loads((GOLDEN / "recipes.json").read_text())
    values = {**golden[name.partition("/")[0]], **golden[name]}
    for absent in values.pop("-", ()):
        del values[absent]
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *groups, last = key.split(".")
        place = nested
        for group in groups:
            existing = place.get(group)
            place[group] = place = existing if isinstance(existing, dict) else {}
        place.setdefault(last, value)
    return nested


SPELLED = {"data": "data.class_path", "data.init_args.prompt_style": "data.init_args.prompt_style.class_path"}
"""Keys of LitGPT's YAML that hold a name → where the class of that name stands."""


def spelled(key: str, value: Any) -> Any:
    """A value of LitGPT's YAML as the parser hands it on: a name is a class, `4e-4` a number."""
    if key in SPELLED:
        return {"alpaca": "litgpt.prompts.Alpaca"}.get(value, f"litgpt.data.{value}")
    number = isinstance(value, str) and value.replace("e-", "").isdigit()
    return None if value == {} else float(value) if number else value


@pytest.mark.parametrize(
    "name", [name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.slow) for name in LITGPTS]
)
def test_litgpts_recipe_means_the_same_here_and_ours_the_same_but_for_its_faults(name, tmp_path):
    ours = RECIPES[name.removesuffix(".yaml")]
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(litgpts(name)))
    theirs = parsed(ours.command, "--config", str(tmp_path / "theirs.yaml"))
    for key, value in flat(litgpts(name)):
        assert theirs.get(SPELLED.get(key, key)) == spelled(key, value), key
    mine = parsed(ours.command, "--config", str(ours.path))
    differing = {key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)}
    mended = MENDED.get(name, {})
    assert {key: (theirs.get(key), mine.get(key)) for key in differing} == mended


def test_every_recipe_of_litgpts_is_there():
    assert {name.removesuffix(".yaml") for name in LITGPTS} <= RECIPES.keys() and len(LITGPTS) == 46


@cache
def defaults(command: str, data: str | None) -> dict[str, Any]:
    """What a command gets where nothing is said but the class of its data, with what that needs."""
    needed = {"JSON": ["--data.json_path", "x"], "TextFiles": ["--data.train_data_path", "x"]}
    needed |= {module: ["--data.path", "x"] for module in ("Preferences", "Prompts", "Conversations")}
    name = str(data).rpartition(".")[2]
    return parsed(command, "x", *(["--data", name, *needed.get(name, [])] if data else []))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=str)
def test_a_recipe_says_what_differs_and_why(recipe):
    text = recipe.path.read_text(encoding="utf-8")
    given = yaml.safe_load(text)
    data = given["data"] if isinstance(given["data"], str) else given["data"]["class_path"]
    default = defaults(recipe.command, data)
    resolved = parsed(recipe.command, "--config", str(recipe.path))
    said = [key for key, _ in flat(given) if not key.startswith(("model_config.", "optimizer.class_path", "data"))]
    said += [SPELLED.get(key, key) for key, _ in flat(given) if key.startswith("data.init_args.")]
    assert [key for key in said if resolved.get(key) == default.get(key)] == []
    lines = [line for line in text.partition("\n\n")[2].splitlines() if line.strip()]
    sizes = given.get("model_config", {})
    silent = [line for line in lines if "#" not in line and not line.endswith(":")]
    assert [line for line in silent if line.split(":")[0].strip() not in sizes] == []


def test_no_two_recipes_write_into_one_folder():
    folders = [yaml.safe_load(recipe.path.read_text())["out_dir"] for recipe in RECIPES.values()]
    assert len(set(folders)) == len(folders)


def test_every_file_of_the_hub_is_a_recipe():
    hub = config_hub()
    found = {path.relative_to(hub).with_suffix("").as_posix() for path in hub.rglob("*.yaml")}
    assert {name for name in found if not name.startswith("demo/")} == set(recipe_names()) == set(RECIPES)


# -------------------------------------------------------------------------------------------------- what they need


def model_of(recipe: Recipe) -> Config:
    """The model that a recipe trains."""
    values = yaml.safe_load(recipe.path.read_text())
    if "model_config" in values:
        return Config(**values["model_config"])
    return Config.from_name(Path(values.get("checkpoint_dir") or values["model_name"]).name)


def by_layer(config: Config) -> dict[str, list[Any]]:
    """The fields that have a value for each layer."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {key: value for key, value in fields.items() if isinstance(value, list) and len(value) == config.n_layer}


def with_layers(config: Config, layers: int, **sizes: Any) -> Config:
    """The same model of so many layers, and other sizes."""
    few = {name: values[:layers] for name, values in by_layer(config).items()}
    return dataclasses.replace(config, n_layer=layers, **few, **sizes)


def period(config: Config) -> int:
    """After how many layers they repeat."""
    kinds = list(zip(*by_layer(config).values(), strict=True)) or [()] * config.n_layer
    return next(n for n in range(1, len(kinds) + 1) if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))


def planned_gb(recipe: Recipe, config: Config, folder: Path) -> float:
    """What `litgpt plan` finds for a recipe with another model, in GB."""
    from litgpt.training.planner.planner import HEADROOM, LIBRARIES, make_plan

    folder.mkdir()
    write_tokenizer(folder)
    config.save(folder)
    (folder / "lit_model.pth").write_bytes(b"no weights")
    values = parse(recipe.command, setup_of(recipe.command), ["--config", str(recipe.path)])
    values |= {"model_config": config} if recipe.command == "pretrain" else {"checkpoint_dir": folder}
    plan = make_plan(recipe.command, values, PlanArgs(peak_tflops=1.0))
    if recipe.card_gb is None:
        return plan.needed / 1e9
    return (HEADROOM["cuda"] * plan.estimate.memory.peak + LIBRARIES["cuda"]) / 1e9


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=str)
def test_a_recipe_fits_the_card_it_claims(recipe):
    assert recipe.card_gb is None or recipe.planned_gb <= recipe.card_gb
    cards = [card for card in CARDS if card >= recipe.planned_gb]
    assert recipe.card_gb is None or recipe.card_gb == cards[0], "a smaller card would do"


CARDS = (8, 16, 24, 48, 80, 141, 192)
"""GB of the GPUs that there are."""


PLANNED = random.Random(11).sample(sorted(RECIPES), 6)
"""Recipes whose plan is made anew: one takes up to a minute."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANNED)
def test_what_a_recipe_claims_is_what_the_planner_finds(name, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("litgpt.training.loss.CACHED_BYTES", 2**40)  # logits in one piece, as on a GPU
    found = planned_gb(RECIPES[name], model_of(RECIPES[name]), tmp_path / "model")
    assert found == pytest.approx(RECIPES[name].planned_gb, rel=0.05, abs=0.1)


# ---------------------------------------------------------------------------------------------------------- two steps

SEED = 20
"""Of the third of the recipes that is run."""
THIRD = sorted(random.Random(SEED).sample(sorted(RECIPES), -(-len(RECIPES) // 3)))


def shrunk(config: Config) -> Config:
    """The same kind of model, tiny."""
    sizes: dict[str, Any] = dict(n_embd=64, n_head=4, head_size=16, intermediate_size=64, block_size=512)
    sizes |= dict(n_query_groups=min(config.n_query_groups or 4, 2), vocab_size=SIZE, padded_vocab_size=128)
    if config.n_expert:
        sizes |= dict(n_expert=4, n_expert_per_token=2, moe_intermediate_size=64)
    return with_layers(config, max(2, period(config)), **sizes)


def write_model(config: Config, folder: Path) -> None:
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    config.save(folder)
    torch.manual_seed(0)
    save_state(folder / "lit_model.pth", GPT(config).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", THIRD)
def test_a_recipe_runs_two_steps(name, tmp_path, monkeypatch):
    """By its name, with a tiny model where its own would be, and data where the download would put it."""
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES[name]
    given = yaml.safe_load(recipe.path.read_text())
    config = shrunk(model_of(recipe))
    samples = [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}."} for n in range(200)]
    flags = ["--devices", "1", "--train.max_steps", "2", "--train.save_interval", "null", "--eval.max_iters", "1"]
    if recipe.command == "pretrain":
        (tmp_path / "text.txt").write_text("".join(sample["output"] for sample in samples) * 20)
        write_model(config, tmp_path / "model")
        flags += ["--model_config", "model/model_config.yaml", "--logger_name", "csv", "--train.max_seq_length", "32"]
        if isinstance(given["data"], str):  # a data set to be downloaded or prepared
            flags += ["--tokenizer_dir", "model", "--data", "TextFiles"]
        flags += ["--data.train_data_path", "text.txt"]
    else:
        place = given["checkpoint_dir"].removeprefix("checkpoints/")
        write_model(config, tmp_path / "checkpoints" / place)
        (tmp_path / "data" / "alpaca2k").mkdir(parents=True)
        (tmp_path / "data" / "alpaca2k" / "alpaca2k_data_cleaned_archive.json").write_text(json.dumps(samples))
        (tmp_path / "my_data.jsonl").write_text("\n".join(map(json.dumps, samples)))
        asked = [{"prompt": each["instruction"], "answer": each["output"]} for each in samples]
        pairs = [{"prompt": each["prompt"], "chosen": each["answer"], "rejected": "No."} for each in asked]
        (tmp_path / "my_questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
        (tmp_path / "my_pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
        if "teacher" in given:
            flags += ["--teacher", f"checkpoints/{place}"]
        flags += ["--eval.max_new_tokens", "2"]
    assert main([recipe.command, "--config", name, *flags]) == 0
    final = tmp_path / given["out_dir"] / "final"
    whole = ("pretrain", "finetune_full", "finetune_distill")
    weights = "lit_model.pth" if recipe.command in whole else "lit_model.pth.lora"
    assert (final / weights).is_file()
    logged = next((tmp_path / given["out_dir"] / "logs" / "csv").rglob("metrics.csv")).read_text()
    assert [line for line in logged.splitlines() if line][1:], "no step was logged"


# ------------------------------------------------------------------------------------------------------- the commands


def test_the_list_has_every_recipe_with_what_it_needs(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", *sorted(RECIPES)]
    for line, recipe in zip(lines[1:], RECIPES.values(), strict=True):
        assert recipe.command in line and recipe.device in line and recipe.title in line


def test_the_list_can_be_of_what_fits(capsys):
    assert main(["recipes", "--memory_gb", "8", "--name", "Llama"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines and all("llama" in line.lower() and "1 GPU of 8 GB" in line for line in lines)
    assert main(["recipes", "--name", "nothing"]) == 1
    assert "There is no recipe with 'nothing' in the name" in capsys.readouterr().err


def test_what_is_shown_is_all_values_and_a_recipe(capsys, tmp_path):
    name = "finetune/phi-2/qlora"
    with pytest.raises(SystemExit) as ended:
        main(["recipes", "show", "phi-2/qlora"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"# {RECIPES[name].title}\n#   litgpt finetune_lora --config {name}\n")
    assert "lora_alpha: 16" in shown
    (tmp_path / "shown.yaml").write_text(shown)
    assert parsed("finetune_lora", "--config", str(tmp_path / "shown.yaml")) == parsed(
        "finetune_lora", "--config", name
    )


@pytest.mark.parametrize(("given", "file"), [([], "phi-2-lora.yaml"), (["new/mine.yaml"], "new/mine.yaml")])
def test_a_copy_is_the_recipe_and_overwrites_nothing(given, file, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "cp", "finetune/phi-2/lora", *given]) == 0
    assert f"litgpt finetune_lora --config {file}" in capsys.readouterr().out
    assert (tmp_path / file).read_bytes() == RECIPES["finetune/phi-2/lora"].path.read_bytes()
    (tmp_path / file).write_text("mine")
    assert main(["recipes", "cp", "finetune/phi-2/lora", *given]) == 1
    assert f"{file} is there already" in capsys.readouterr().err and (tmp_path / file).read_text() == "mine"


@pytest.mark.parametrize("name", ["finetune/phi-2/lora", "phi-2/lora", "config_hub/finetune/phi-2/lora.yaml"])
def test_a_recipe_is_a_configuration_by_its_name(name, tmp_path, monkeypatch):
    path = RECIPES["finetune/phi-2/lora"].path
    monkeypatch.chdir(tmp_path)
    found = parsed("finetune_lora", "--config", name, "--train.epochs", "7")
    assert found == {**parsed("finetune_lora", "--config", str(path)), "train.epochs": 7}


def test_a_file_wins_over_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phi-2").mkdir()
    (tmp_path / "phi-2" / "lora").write_text("checkpoint_dir: mine")
    assert parsed("finetune_lora", "--config", "phi-2/lora")["checkpoint_dir"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["recipes", "show", "phi-2/lor"], 1, "There is no recipe 'phi-2/lor'. Closest: finetune/phi-2/lora"),
        (["recipes", "show", "lora"], 1, "may be any of the recipes finetune/"),
        (["recipes", "cp", "../../secret"], 1, "There is no recipe '../../secret'."),
        (["recipes", "cp"], 2, "It is `litgpt recipes cp NAME [DEST]`"),
        (["recipes", "show", "a", "b"], 2, "It is `litgpt recipes show NAME`"),
        (["recipes", "copy", "phi-2/lora"], 2, "Unknown command 'recipes copy'. Closest: recipes cp"),
        (["finetune_lora", "--config", "phi-2/lor"], 2, "Closest: finetune/phi-2/lora"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_name_that_is_none_is_told_with_the_closest(arguments, code, sentence, capsys):
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1

"""The recipes of `config_hub`: where they lie, how they are found by name, and what their first lines say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from litgpt.errors import LitGPTError, UnknownNameError, closest, quoted

PACKAGE = Path(__file__).parents[1]
KINDS = ("finetune", "pretrain")
"""Folders of `config_hub` whose recipes have names."""
HEADER = re.compile(
    r"# (?P<title>.+)\n#   litgpt (?P<command>\w+) --config (?P<name>\S+).*\n(?:#.*\n)*?"
    r"# Needs: (?P<device>a CPU|(?P<count>\d+) GPUs? of (?P<card>\d+) GB) \((?P<planned>[\d.]+) GB planned\)\.\n"
)
"""The first lines of a recipe: what it does, the command that takes it, what it needs."""


@dataclass(frozen=True)
class Recipe:
    """A YAML file for one command, with what its first lines say."""

    name: str
    """Its path in `config_hub`, without `.yaml`."""
    path: Path
    title: str
    command: str
    device: str
    """What it runs on, in words."""
    card_gb: int | None
    """Memory of one GPU, in GB; None: it runs on a CPU."""
    planned_gb: float
    """What `litgpt plan` finds for one device, in GB of 10^9 bytes."""
    cards: int = 1
    """GPUs."""

    def __str__(self) -> str:
        return self.name

    def fits_one(self, memory_gb: float) -> bool:
        """Whether it runs on one GPU of so much memory, or without any."""
        return self.card_gb is None or (self.cards == 1 and self.card_gb <= memory_gb)


@cache
def config_hub() -> Path:
    """The folder of recipes: inside an installed package, beside the one of a source tree."""
    inside = PACKAGE / "config_hub"
    return inside if inside.is_dir() else PACKAGE.parent / "config_hub"


def recipe_names() -> list[str]:
    """The names of all recipes, sorted."""
    hub = config_hub()
    return sorted(
        path.relative_to(hub).with_suffix("").as_posix() for kind in KINDS for path in hub.glob(f"{kind}/**/*.yaml")
    )


def recipe_path(name: str) -> Path:
    """The file of a recipe: `finetune/phi-2/lora`, `phi-2/lora` where that is one only, or `config_hub/….yaml`.

    Raises:
        UnknownNameError: There is no recipe of that name, or more than one.
    """
    known = recipe_names()
    asked = name.removeprefix("./").removeprefix("config_hub/").removesuffix(".yaml")
    found = [one for one in known if one == asked] or [one for one in known if one.endswith(f"/{asked}")]
    if len(found) > 1:
        raise UnknownNameError(f"{quoted(name)} may be any of the recipes {', '.join(found)}: give one of these.")
    if not found:
        short = {one.partition("/")[2]: one for one in known}
        hint = closest(asked, known) or closest(asked, short)
        raise UnknownNameError(f"There is no recipe {quoted(name)}.{hint} See `litgpt recipes`.")
    return config_hub() / f"{found[0]}.yaml"


def read_recipe(path: Path) -> Recipe:
    """What the first lines of a recipe say.

    Raises:
        LitGPTError: They are not as a recipe's have to be.
    """
    match = HEADER.match(path.read_text(encoding="utf-8"))
    if match is None:
        raise LitGPTError(f"{path} does not begin as a recipe does: see its siblings.")
    return Recipe(
        name=path.relative_to(config_hub()).with_suffix("").as_posix(),
        path=path,
        title=match["title"],
        command=match["command"],
        device=match["device"],
        card_gb=int(match["card"]) if match["card"] else None,
        planned_gb=float(match["planned"]),
        cards=int(match["count"] or 1),
    )


def all_recipes() -> Iterator[Recipe]:
    """Every recipe, by name."""
    for name in recipe_names():
        yield read_recipe(config_hub() / f"{name}.yaml")

"""Writes the skeleton of a family's file: `python -m tests.new_family SOURCE [FILE]`.

SOURCE is a folder with a config.json, ORG/NAME on the hub, or a `model_type` of transformers. tutorials/add_a_family.md
says what is left to do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from litgpt.errors import LitGPTError
from litgpt.families import FAMILIES
from litgpt.families.base import Drop, Family, spelled

ALL_LAYERS = re.compile(r"\.\d+\.")
SKELETON = '''"""{title}: {nearest}, but for … (a link to its paper or page)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import {module}
from litgpt.families.base import Same, changed


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    # Keys that {nearest} doesn't read; each becomes a setting of Config, or is taken out because it means nothing:
    # {unread}
    return {{**{module}.{constant}.from_hf(left)}}


def to_hf(config: Any) -> dict[str, Any]:
    return {{**{module}.{constant}.to_hf(config)}}


FAMILY = replace(
    {module}.{constant},
    name={name!r},
    architectures=({architecture!r},),
    model_type={name!r},
    rows={{}},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        {module}.{constant}.rules(None),
{rules}        without={without!r},
    ),
    prompt_styles=(),
    hf_defaults={defaults!r},
)
'''


def their_config(source: str) -> Any:
    """What transformers makes of a folder, a repository, or a model type alone."""
    import transformers

    if source in transformers.CONFIG_MAPPING:
        return transformers.CONFIG_MAPPING[source]()
    return transformers.AutoConfig.from_pretrained(source)


def their_modules(config: Any) -> tuple[str, set[str]]:
    """The class of a model, and its modules with parameters of their own; `{i}` in the place of a layer."""
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    names = (name.rpartition(".")[0] for name in model.state_dict())
    return type(model).__name__, {ALL_LAYERS.sub(".{i}.", name) for name in names}


def modules_of(family: Family) -> dict[str, tuple[str, ...]]:
    """Their modules that each of ours is made of, of a family whose table is the same for all sizes."""
    found = {}
    with suppress(AttributeError, TypeError):  # a table that asks the config
        for rule in family.rules(None):
            if not isinstance(rule, Drop) and "{e}" not in str(rule):
                theirs = spelled(rule, 0).theirs  # type: ignore[union-attr]
                names = theirs if isinstance(theirs, tuple) else (theirs,)
                found[str(rule.ours)] = tuple(ALL_LAYERS.sub(".{i}.", name) for name in names)
    return found


def nearest(modules: set[str], name: str) -> Family:
    """The family here with the most modules of the same names, and the fewest others."""

    def distance(family: Family) -> int:
        theirs = {module for parts in modules_of(family).values() for module in parts}
        return len(modules ^ theirs) if theirs else 1_000_000

    return min((family for family in FAMILIES if family.model_type != name), key=distance)


def unread(family: Family, said: Mapping[str, Any]) -> list[str]:
    """Keys that a family doesn't know, in the order in which it refuses them."""
    left, keys = dict(said), []
    for _ in said:
        try:
            family.read_hf(left)
        except LitGPTError as error:
            found = re.search(r"`(\w+)`", str(error))
            if not found or found[1] not in left:
                break
            keys.append(f"{found[1]} = {left.pop(found[1])!r}")
        else:
            break
    return keys


def place(family: Family) -> tuple[str, str]:
    """The module and the name that a family has in it."""
    import importlib
    import pkgutil

    import litgpt.families as room

    for info in pkgutil.iter_modules(room.__path__):
        for name, value in vars(importlib.import_module(f"litgpt.families.{info.name}")).items():
            if value is family:
                return info.name, name
    raise AssertionError(family.name)


def skeleton(source: str) -> str:
    """The file's content."""
    config = their_config(source)
    architecture, modules = their_modules(config)
    kin = nearest(modules, config.model_type)
    module, constant = place(kin)
    known = modules_of(kin)
    missing = sorted(modules - {name for parts in known.values() for name in parts})
    gone = tuple(ours for ours, parts in known.items() if not set(parts) & modules and ours != "lm_head")
    defaults = {
        key: value
        for key, value in type(config)().to_dict().items()
        if key in kin.hf_defaults or (key in ("head_dim", "num_key_value_heads", "tie_word_embeddings") and value)
    }
    base = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0)
    if base != 10000.0:
        defaults["rope_theta"] = base
    return SKELETON.format(
        title=architecture.removesuffix("ForCausalLM"),
        nearest=kin.name,
        module=module,
        constant=constant,
        name=config.model_type,
        architecture=architecture,
        unread="; ".join(unread(kin, config.to_dict())) or "none",
        rules="".join(
            f"        Same({name!r}, {name!r}),  # the second is to be our module's name\n" for name in missing
        ),
        without=gone,
        defaults=defaults,
    )


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print(__doc__, file=sys.stderr)
        return 2
    name = re.sub(r"\W", "_", their_config(arguments[0]).model_type)
    file = Path(arguments[1]) if len(arguments) > 1 else Path("litgpt", "families", f"{name}.py")
    if file.exists():
        print(f"{file} exists; name another file.", file=sys.stderr)
        return 1
    file.write_text(skeleton(arguments[0]), encoding="utf-8")
    print(f"{file} is written. What is left to do says tutorials/add_a_family.md.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

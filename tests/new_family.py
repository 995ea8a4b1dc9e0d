"""Writes the skeleton of a family's file: `python -m tests.new_family SOURCE [FILE]`.

SOURCE is a folder with a config.json, ORG/NAME on the hub, or a `model_type` of transformers. tutorials/add_a_family.md
says what is left to do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.families import FAMILIES
from litgpt.families.base import Drop, Family, Rule, spelled
from litgpt.families.composites import NOT_TEXT, RENAMES
from tests.tiny import CASES

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
    weights={head}changed(
        {module}.{constant}.rules({argument}),
        # The second name is to be our module's.
{rules}        without={without},
    ),
    prompt_styles=(),
    hf_defaults={{
{defaults}    }},
)
'''


def their_config(source: str) -> Any:
    """What transformers makes of a folder, a repository, or a model type alone."""
    import transformers

    if source in transformers.CONFIG_MAPPING:
        return transformers.CONFIG_MAPPING[source]()
    return transformers.AutoConfig.from_pretrained(source)


def their_model(config: Any) -> Any:
    """Their model of a configuration, on `meta`; one that sees as well, where they have no other."""
    import transformers

    kinds = (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText)
    kind = next((kind for kind in kinds if type(config) in kind._model_mapping), kinds[0])
    with torch.device("meta"):
        return kind.from_config(config)


def their_modules(config: Any) -> tuple[str, set[str]]:
    """The class of a model, and its modules with parameters of their own as its files name them, which may be others
    than in memory; `{i}` in the place of a layer. Of one that sees as well: those of its text."""
    from transformers.core_model_loading import revert_weight_conversion

    model = their_model(config)
    state = model.state_dict()
    with suppress(Exception):  # some conversions can't be undone without values
        state = revert_weight_conversion(model, state)
    table = {name: name for name in state if not name.startswith(NOT_TEXT)}
    for name in table:
        table[name] = next((new + name[len(old) :] for old, new in RENAMES if name.startswith(old)), name)
    return type(model).__name__, {ALL_LAYERS.sub(".{i}.", name.rpartition(".")[0]) for name in table.values()}


def rules_of(family: Family) -> Sequence[Rule]:
    """A family's table; of one whose table asks for the sizes, that of its case in `tests.tiny`."""
    with suppress(AttributeError, TypeError):
        return family.rules(None)
    import transformers

    for name, settings in CASES.values():
        if getattr(transformers, name).model_type in (family.model_type, *family.inside):
            said = getattr(transformers, name)(**settings).to_dict()
            with suppress(LitGPTError):
                return family.rules(Config.from_hf({**said, "architectures": list(family.architectures[:1])}))
    return ()


def modules_of(family: Family) -> dict[str, tuple[str, ...]]:
    """Their modules that each of ours is made of."""
    found = {}
    for rule in rules_of(family):
        if not isinstance(rule, Drop) and "{e}" not in str(rule):
            theirs = spelled(rule, 0).theirs  # type: ignore[union-attr]
            names = theirs if isinstance(theirs, tuple) else (theirs,)
            found[ALL_LAYERS.sub(".{i}.", str(rule.ours))] = tuple(ALL_LAYERS.sub(".{i}.", name) for name in names)
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
                keys.append(f"({error})")
                break
            value = repr(left.pop(found[1]))
            keys.append(f"{found[1]} = {value if len(value) < 60 else value[:56] + ' …'}")
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
    text = config.get_text_config()
    architecture, modules = their_modules(config)
    kin = nearest(modules, text.model_type)
    module, constant = place(kin)
    known = modules_of(kin)
    missing = sorted(modules - {name for parts in known.values() for name in parts})
    gone = tuple(ours for ours, parts in known.items() if not set(parts) & modules and ours != "lm_head")
    defaults = {
        key: value
        for key, value in type(text)().to_dict().items()
        if key in kin.hf_defaults or (key in ("head_dim", "num_key_value_heads", "tie_word_embeddings") and value)
    }
    rope = type(text)().to_dict().get("rope_parameters") or {}
    if rope.get("rope_theta", 10000.0) != 10000.0:
        defaults["rope_theta"] = rope["rope_theta"]
    if any(isinstance(value, dict) for value in rope.values()):  # each kind of layer has its own
        defaults["rope_parameters"] = rope
    return SKELETON.format(
        title=architecture.removesuffix("ForCausalLM"),
        nearest=kin.name,
        module=module,
        constant=constant,
        name=text.model_type,
        head="lambda config: " if callable(kin.weights) else "",
        argument="config" if callable(kin.weights) else "None",
        architecture=architecture,
        unread="\n    # ".join(unread(kin, text.to_dict())) or "none",
        rules="".join(f"        Same({name!r}, {name!r}),\n" for name in missing),
        without="()" if not gone else "(\n" + "".join(f'            "{name}",\n' for name in gone) + "        )",
        defaults="".join(f"        {key!r}: {value!r},\n" for key, value in defaults.items()),
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

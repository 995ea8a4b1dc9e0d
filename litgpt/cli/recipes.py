"""`litgpt recipes`, `recipes show` and `recipes cp`: the YAML files that come with litgpt."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

from litgpt.cli.parser import parse
from litgpt.cli.plan import COMMANDS
from litgpt.cli.recipe_files import Recipe, all_recipes, read_recipe, recipe_path
from litgpt.errors import ExistingFileError, LitGPTError, UsageError, file_error, one_line, quoted


def list_recipes(name: str | None = None, memory_gb: float | None = None) -> list[Recipe]:
    """List the recipes that come with litgpt, with the command that takes each, what it needs and what it does.

    `litgpt COMMAND --config NAME` runs one, `litgpt recipes show NAME` prints all its values, `litgpt recipes cp NAME`
    copies it to be changed.

    Args:
        name: Only those whose name or title contains this.
        memory_gb: Only those that run on one GPU of so many GB.

    Raises:
        LitGPTError: There are none.

    Example:
        litgpt recipes --memory_gb 24
    """
    found = [
        recipe
        for recipe in all_recipes()
        if (name is None or name.lower() in f"{recipe.name} {recipe.title}".lower())
        and (memory_gb is None or recipe.fits_one(memory_gb))
    ]
    if not found:
        named = f" with {quoted(name)} in the name" if name is not None else ""
        card = f" for one GPU of {memory_gb:g} GB" if memory_gb is not None else ""
        raise LitGPTError(f"There is no recipe{named}{card}; `litgpt recipes` lists all.")
    rows = [("NAME", "COMMAND", "NEEDS", "WHAT IT DOES")]
    rows += [(recipe.name, recipe.command, recipe.device, recipe.title) for recipe in found]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)) + f"  {row[3]}")
    return found


def show(*arguments: str) -> None:
    """Print all values of a recipe, those that it leaves at their defaults too.

    usage: litgpt recipes show NAME

    The output is a recipe itself. `litgpt recipes` lists the names.

    Args:
        arguments: The name.
    """
    if (given := _arguments(show, arguments, most=1)) is None:
        return
    recipe = read_recipe(recipe_path(given[0]))
    print(f"# {recipe.title}\n#   litgpt {recipe.command} --config {recipe.name}")
    setup = import_module(COMMANDS[recipe.command]).setup
    parse(recipe.command, setup, ["--config", str(recipe.path), "--print_config"])


def cp(*arguments: str) -> None:
    """Copy a recipe into a file of your own.

    usage: litgpt recipes cp NAME [DEST]

    DEST is a file or a folder; without it the file lies here, named for the recipe. `litgpt recipes` lists the names.

    Args:
        arguments: The name, and where to.
    """
    if (given := _arguments(cp, arguments, most=2)) is None:
        return
    recipe = read_recipe(recipe_path(given[0]))
    copy = Path(given[1] if len(given) > 1 else ".").expanduser()
    if copy.is_dir():
        copy /= f"{'-'.join(recipe.name.split('/')[1:])}.yaml"
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with copy.open("xb") as file:
            file.write(recipe.path.read_bytes())
    except FileExistsError:
        raise ExistingFileError(
            f"{copy} is there already; give another place: `litgpt recipes cp NAME DEST`."
        ) from None
    except OSError as error:
        raise file_error(error, f"{copy} cannot be written: {one_line(error)}.") from error
    print(f"Copied to {copy}. Run it: litgpt {recipe.command} --config {copy}")


def _arguments(command: object, given: tuple[str, ...], most: int) -> tuple[str, ...] | None:
    """The positional arguments of a command, one at least; None where help was asked for, and is printed.

    Raises:
        UsageError: There are none, too many, or flags.
    """
    summary, usage, more, *_ = (inspect.getdoc(command) or "").split("\n\n")
    if any(argument in ("-h", "--help") for argument in given):
        print("\n\n".join((usage, summary, more)))
        return None
    if not 1 <= len(given) <= most or any(argument.startswith("-") for argument in given):
        raise UsageError(f"It is `{usage.removeprefix('usage: ')}`; `litgpt recipes` lists the names.")
    return given

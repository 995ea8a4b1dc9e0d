"""From a command's signature to its command line: flags, YAML, overrides, and one sentence for every mistake.

jsonargparse does the parsing. Before it does, the command line is read once here, so that a class named in it is
imported (and no other), `--optimizer NAME --optimizer.lr X` keeps its class, and unknown names are refused in one
sentence.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import typing
from argparse import SUPPRESS, ArgumentError
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from litgpt import data
from litgpt.args import SECRETS
from litgpt.cli.config_files import is_url, load_yaml, located, read_config
from litgpt.cli.help import help_text
from litgpt.cli.nanogpt_config import read_nanogpt_config
from litgpt.cli.signature import Parameter, describe, literals, parameters_of, resolve_annotations, takes_anything
from litgpt.cli.spellings import ARGUMENTS, spelled_here
from litgpt.cli.words import looks_like_flag, split_flags
from litgpt.errors import LitGPTError, UsageError, closest, quoted

ADAMW_RATE = 1e-3
"""What torch's AdamW takes where nothing is said."""
CONFIG_HELP = "Path or URL of a YAML file with any of the arguments, or the name of one of `litgpt recipes`."


def reads_the_command_line(command: Callable[..., Any]) -> bool:
    """Whether a command takes its arguments as they were typed: its signature is `*arguments`."""
    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(command).parameters.values())


def parse(name: str, command: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The arguments to call `command` with; prints and exits on `--help` and `--print_config`.

    Raises:
        UsageError: The command line cannot be understood.
    """
    parameters = parameters_of(command)
    parser = build_parser(name, command)
    command_line = CommandLine(name, parameters)
    prepared = command_line.prepare(arguments)
    parser.overrides = {name: spec.with_rate() for name, spec in command_line.specs.items()}
    try:
        values = parser.instantiate(with_home(parser.parse_args(prepared), command_line))
    except LitGPTError:
        raise
    except (ArgumentError, TypeError, ValueError) as error:
        raise mistake_behind(error) or UsageError(explain(str(error), command_line)) from None
    chosen = {name: spec.value for name, spec in command_line.specs.items()}
    return {parameter: values[parameter] for parameter in parameters} | chosen


def with_home(parsed: Namespace, command_line: CommandLine) -> Namespace:
    """Puts the user's folder in the place of `~` in every path: a shell does so only at the start of a word, and
    neither in `--out_dir=~/x` nor in YAML."""
    for key in list(parsed.keys()):
        parameter = command_line.parameter_at(key)
        is_path = parameter is not None and Path in parameter.alternatives
        if is_path or key.startswith("data.init_args."):
            parsed[key] = expanded(parsed[key])
    return parsed


def expanded(value: Any) -> Any:
    """A path with the user's folder for `~`; of a list or a dictionary, every text that begins like one."""
    if isinstance(value, dict):
        return {name: expanded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [expanded(entry) for entry in value]
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value


def mistake_behind(error: BaseException | None) -> LitGPTError | None:
    """The `LitGPTError` that made the parser fail, where a class or group refused its arguments."""
    while error is not None and not isinstance(error, LitGPTError):
        error = error.__cause__ or error.__context__
    return error


# ---------------------------------------------------------------------------------------------------- the parser


class CommandParser(ArgumentParser):
    """A parser of `command` whose `--print_config` shows no secret, and `overrides` (name -> value) in place of what it
    parsed."""

    overrides: dict[str, Any] = {}
    command: Callable[..., Any] | None = None

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        if self.command is None:  # a group's own, or a class's
            return super().format_help(*args, **kwargs)
        return help_text(self.prog.removeprefix("litgpt "), self, self.command)

    def dump(self, namespace: Namespace, *args: Any, **kwargs: Any) -> str:
        shown = namespace.clone()
        for key in list(shown.keys()):
            if key.rpartition(".")[2] in SECRETS:
                shown[key] = None
        for name, value in self.overrides.items():
            shown[name] = value
        return super().dump(shown, *args, **kwargs)


def build_parser(name: str, command: Callable[..., Any]) -> CommandParser:
    """The parser of a command: parameters without a default are positional, groups nested (`--train.epochs`)."""
    # A `class_path` in a free dictionary (an optimizer, a run's metadata) is data, nothing to import and call.
    set_parsing_settings(docstring_parse_attribute_docstrings=True, instantiate_subclass_spec_in_any=False)
    resolve_annotations(command)
    description = (inspect.getdoc(command) or "").partition("\n\n")[0]
    parser = CommandParser(prog=f"litgpt {name}", description=description, exit_on_error=False)
    parser.command = command
    parser.add_argument("--config", action="config")
    if name == "pretrain":
        parser.add_argument("--nanogpt_config", default=SUPPRESS, help="see `help.OWN`")
    parser.add_function_arguments(command, as_group=False, as_positional=True)
    if any(parameter.is_data for parameter in parameters_of(command).values()):
        parser.epilog = (
            f"Names for --data: {', '.join(data.MODULES)}, or the dotted path of a class of your own. "
            f"`litgpt {name} --data.help NAME` shows the arguments of one."
        )
    return parser


# -------------------------------------------------------------------------- one reading of the command line


class CommandLine:
    """Reads a command line from left to right and prepares it for the parser."""

    def __init__(self, name: str, parameters: Mapping[str, Parameter]) -> None:
        self.name = name
        self.parameters = parameters
        self.data_class: type | None = None
        self.specs = {p.name: ClassSpec(p.default) for p in parameters.values() if p.is_class_spec}

    def prepare(self, arguments: Sequence[str]) -> list[str]:
        """The command line to hand to the parser.

        Raises:
            UsageError: It names a flag, key or class that does not exist.
        """
        prepared: list[str] = []
        words: list[str] = []
        for flag, value, tokens in split_flags(arguments, self.is_switch, self.word_list is not None):
            head = flag.partition(".")[0]
            if head in self.specs:
                self.read_class_spec(flag, value)
                continue
            if flag == "nanogpt_config" and self.name == "pretrain":
                place = self.needed(flag, value)
                text = json.dumps(read_nanogpt_config(place))
                self.read_config(text, place)
                tokens = [f"--config={text}"]
            elif flag == "config":
                place = located(self.needed(flag, value))
                text = read_config(place)
                self.read_config(text, place)
                tokens = [f"--config={text if is_url(place) else expanded(place)}"]
            elif flag:
                self.check_flag(flag, value)
                tokens = self.with_group_read(flag, value) or tokens
            elif looks_like_flag(tokens[0]):
                raise UsageError(f"`litgpt {self.name}` has no flag {tokens[0]}. See `litgpt {self.name} --help`.")
            elif self.word_list:
                words += [token for token in tokens if token not in ("--", "-h")]
                tokens = [token for token in tokens if token == "-h"]
            prepared += tokens
        return [*prepared, *self.as_list(words)]

    @property
    def word_list(self) -> Parameter | None:
        """The parameter that takes all words without a flag: a list that stands first."""
        first = next(iter(self.parameters.values()), None)
        return first if first and any(typing.get_origin(part) is list for part in first.alternatives) else None

    def as_list(self, words: Sequence[str]) -> list[str]:
        """The words without a flag as the one value that the parser takes for them."""
        if not words or self.word_list is None:
            return []
        value = json.dumps(words)
        return [value] if self.word_list.required else [f"--{self.word_list.name}={value}"]

    def needed(self, flag: str, value: str | None) -> str:
        """The value of a flag that is not there by itself.

        Raises:
            UsageError: There is none.
        """
        if value is None:
            parameter = self.parameter_at(flag)
            kind = f": {describe(parameter.hint)}" if parameter else ""
            raise UsageError(f"--{flag} needs a value{kind}. See `litgpt {self.name} --help`.")
        return value

    def check_flag(self, flag: str, value: str | None) -> None:
        """Refuses an unknown flag (given without its dashes); imports the class that `--data` names."""
        head, _, rest = flag.partition(".")
        if flag in ("help", "print_config"):
            return
        parameter = self.parameters.get(head)
        if parameter is None or (parameter.required and not rest):
            raise UsageError(self.unknown_flag(flag))
        if parameter.is_data:
            self.check_data_flag(rest, value)
        elif parameter.group and not rest and value:
            self.check_fields(parameter, load_yaml(read_config(value), value), value)
        elif rest:
            nested = parameters_of(parameter.group) if parameter.group else {}
            if rest.partition(".")[0] not in {*nested, "help"}:
                raise UsageError(self.unknown_flag(flag))
        if rest != "help":
            self.needed(flag, value)

    def with_group_read(self, flag: str, value: str | None) -> list[str] | None:
        """`--model_config FILE` with the file's content in its place: the parser opens none for a group that may be
        null. None for any other flag."""
        parameter = self.parameters.get(flag)
        if parameter is None or not parameter.group or not value:
            return None
        return [f"--{flag}={json.dumps(load_yaml(read_config(value), value))}"]

    def check_data_flag(self, rest: str, value: str | None) -> None:
        """`--data NAME`, `--data.help NAME` and `--data.ARGUMENT VALUE`."""
        if rest in ("", "class_path", "help"):
            if value is not None:
                self.data_class = self.data_class_of(value)
            return
        if self.data_class is None:
            raise UsageError(f"--data.{rest} needs --data NAME before it. Names: {', '.join(data.MODULES)}.")
        self.check_init_args([rest.removeprefix("init_args.").partition(".")[0]], f"litgpt {self.name}")

    def check_init_args(self, names: Sequence[str], where: str) -> None:
        """Refuses arguments that the chosen data module does not take."""
        if self.data_class is None or takes_anything(self.data_class):
            return
        known = inspect.signature(self.data_class).parameters
        for name in names:
            if name not in known:
                raise UsageError(
                    f"{where}: {self.data_class.__name__} has no argument {quoted(name)}.{closest(name, known)} "
                    f"See `litgpt {self.name} --data.help {self.data_class.__name__}`."
                )

    def data_class_of(self, value: str) -> type | None:
        """The class that the value of `--data` names: a name, a dotted path, a file, or `{class_path: …}`."""
        if value.endswith((".yaml", ".yml", ".json")):
            value = read_config(value)
        spec = load_yaml(value, "--data")
        if isinstance(spec, dict):
            self.read_data_spec(spec, "--data")
            return self.data_class
        return import_data_class(spec) if isinstance(spec, str) else None

    def read_data_spec(self, spec: Any, where: str) -> None:
        """Imports the class of `data: NAME` or `data: {class_path: NAME, init_args: {…}}`."""
        if isinstance(spec, str):
            self.data_class = import_data_class(spec)
        elif isinstance(spec, dict):
            if isinstance(spec.get("class_path"), str):
                self.data_class = import_data_class(spec["class_path"])
            self.check_init_args(list(init_args_of(spec, where)), where)

    def read_class_spec(self, flag: str, value: str | None) -> None:
        """`--optimizer NAME` and `--optimizer.ARGUMENT VALUE`."""
        head, _, rest = flag.partition(".")
        loaded = load_yaml(self.needed(flag, value), f"--{flag}")
        if rest in ("", "class_path"):
            self.specs[head].choose(loaded)
        else:
            name = rest.removeprefix("init_args.")
            self.check_spelling(head, name, f"`litgpt {self.name}` has no flag --{flag}. Here it is --")
            self.specs[head].set(name, loaded)

    def check_spelling(self, head: str, name: str, refusal: str) -> None:
        """Refuses an argument of a class (`optimizer`) under a name that other tools give it."""
        ours = spelled_here(f"{head}.{name}", self, ()).removeprefix(f"{head}.")
        if ours != name and ours in ARGUMENTS:
            raise UsageError(f"{refusal}{head}.{ours}.")

    def read_config(self, text: str, where: str) -> None:
        """Checks the keys of a configuration, imports the data module it names, and remembers its optimizer."""
        config = load_yaml(text, where)
        if not isinstance(config, dict):
            raise UsageError(f"{where}: a configuration is `name: value` lines, not {quoted(config)}.")
        for name, value in config.items():
            parameter = self.parameters.get(name)
            if parameter is None:
                hint = self.unknown_key(str(name), self.parameters)
                raise UsageError(f"{where}: `litgpt {self.name}` has no argument {quoted(name)}.{hint}")
            if parameter.is_data:
                self.read_data_spec(value, where)
            elif name in self.specs:
                self.specs[name].replace(value)
                for argument in self.specs[name].arguments:
                    refusal = f"{where}: {name} has no argument {quoted(argument)}. Here it is "
                    self.check_spelling(name, str(argument), refusal)
            elif parameter.group and not isinstance(value, str | None):
                self.check_fields(parameter, value, where)

    def check_fields(self, parameter: Parameter, given: Any, where: str) -> None:
        """Refuses keys of a group that are not fields of its dataclass."""
        if not isinstance(given, dict):
            raise UsageError(f"{where}: --{parameter.name} takes `name: value` lines, not {quoted(given)}.")
        known = parameters_of(parameter.group) if parameter.group else {}
        given = init_args_of(given, where) if "class_path" in given else given
        for name in given:
            if name not in known:
                hint = self.unknown_key(str(name), known, f"{parameter.name}.")
                raise UsageError(f"{where}: {parameter.name} has no argument {quoted(name)}.{hint}")

    def is_switch(self, flag: str) -> bool:
        """Whether a flag takes true or false, so that it may stand alone for true."""
        parameter = self.parameter_at(flag)
        return parameter is not None and parameter.hint is bool

    def parameter_at(self, key: str) -> Parameter | None:
        """The parameter at a dotted name: of the command, of a group, or of the chosen data module."""
        head, _, rest = key.partition(".")
        parameter = self.parameters.get(head)
        if not rest or parameter is None:
            return parameter
        nested = self.data_class if parameter.is_data else parameter.group
        return parameters_of(nested).get(rest.removeprefix("init_args.")) if nested else None

    def unknown_flag(self, flag: str) -> str:
        known = self.known_flags
        ours = flag if flag in self.parameters else spelled_here(flag, self, [*known, *self.parameters])
        parameter = self.parameters.get(ours)
        if parameter and parameter.required:
            return f"{ours} is given without a flag: `litgpt {self.name} {ours.upper()}`."
        hint = (
            f" Here it is --{ours}."
            if ours
            else closest(flag, [*known, "config", "nanogpt_config", "print_config", "help", "json", "quiet"])
        )
        return f"`litgpt {self.name}` has no flag --{flag}.{hint} See `litgpt {self.name} --help`."

    @cached_property
    def known_flags(self) -> list[str]:
        """All flags, without dashes, but those of data modules and optimizers."""
        known = [name for name, parameter in self.parameters.items() if not parameter.required]
        for name, parameter in self.parameters.items():
            known += [f"{name}.{field}" for field in (parameters_of(parameter.group) if parameter.group else ())]
        return known

    def __contains__(self, flag: object) -> bool:
        """Whether there can be such a flag, or positional argument."""
        head, _, rest = str(flag).partition(".")
        parameter = self.parameters.get(head)
        if parameter is None or not rest:
            return parameter is not None
        return head in self.specs or parameter.is_data or flag in self.known_flags

    def unknown_key(self, key: str, known: Iterable[str], above: str = "") -> str:
        """What a key of a configuration may have been meant as."""
        ours = spelled_here(f"{above}{key}", self, self.known_flags)
        return f" Here it is {ours}." if ours and ours != f"{above}{key}" else closest(key, known)


class ClassSpec:
    """A class and its arguments (`--optimizer`), gathered from YAML and flags; the later one wins."""

    def __init__(self, default: Any) -> None:
        self.class_path = "AdamW"
        self.arguments: dict[str, Any] = {}
        self.from_flags: dict[str, Any] = {}
        if isinstance(default, str | dict):
            self.replace(default)

    @property
    def value(self) -> str | dict[str, Any]:
        """The class name alone when it has no arguments, else `class_path` and `init_args`."""
        arguments = {**self.arguments, **self.from_flags}
        return {"class_path": self.class_path, "init_args": arguments} if arguments else self.class_path

    def with_rate(self) -> str | dict[str, Any]:
        """The value with the learning rate that AdamW has where nothing is said."""
        if self.class_path.rpartition(".")[2] != "AdamW":
            return self.value
        arguments = {"lr": ADAMW_RATE, **self.arguments, **self.from_flags}
        return {"class_path": self.class_path, "init_args": arguments}

    def choose(self, value: Any) -> None:
        """`--optimizer VALUE`: another class drops the YAML's arguments, not those of flags."""
        if isinstance(value, dict):
            self.replace(value)
            return
        if str(value).rpartition(".")[2] != self.class_path.rpartition(".")[2]:
            self.arguments = {}
        self.class_path = str(value)

    def set(self, name: str, value: Any) -> None:
        """`--optimizer.NAME VALUE`."""
        self.from_flags[name] = value

    def replace(self, value: Any) -> None:
        """A YAML's `optimizer:`; a dictionary without `class_path` holds arguments of the class chosen so far."""
        if isinstance(value, dict) and "class_path" not in value:
            self.arguments = {**self.arguments, **self.from_flags, **value}
        elif isinstance(value, dict):
            self.class_path, self.arguments = (
                str(value["class_path"]),
                {**init_args_of(value, str(value["class_path"]))},
            )
        else:
            self.class_path, self.arguments = str(value), {}
        self.from_flags = {}


def init_args_of(spec: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The arguments of a class that is chosen by its `class_path`.

    Raises:
        UsageError: They are something else.
    """
    found = spec.get("init_args") or {}
    if not isinstance(found, dict):
        raise UsageError(f"{where}: init_args are `name: value` lines, not {quoted(found)}.")
    return found


def import_data_class(name: str) -> type:
    """The data module called `name` in `litgpt.data`, or found at a dotted path.

    Raises:
        UsageError: There is none.
    """
    module, _, attribute = name.rpartition(".")
    if module in ("", "litgpt.data"):
        if attribute not in data.MODULES:
            known = ", ".join(data.MODULES)
            raise UsageError(
                f"Unknown data module {quoted(name)}.{closest(attribute, data.MODULES) or f' Known: {known}.'}"
            )
        module = "litgpt.data"
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--data {name}: cannot be imported ({error}).") from error
    if not (isinstance(found, type) and issubclass(found, data.DataModule)):
        raise UsageError(f"--data {name}: not a subclass of litgpt.data.DataModule.")
    if inspect.isfunction(found.__init__):
        resolve_annotations(found.__init__)
    return found


# --------------------------------------------------------------------------- the parser's errors in our words


def explain(message: str, command_line: CommandLine) -> str:
    """One sentence for what the parser complains about."""
    name, parameters = command_line.name, command_line.parameters
    see = f"See `litgpt {name} --help`."
    keys = re.findall(r'[Kk]ey "([\w.]+)"', message)
    if match := re.search(r"arguments are required: ([\w., ]+)", message):
        if keys:
            return f"--{keys[0]} needs {', '.join(f'--{keys[0]}.{part}' for part in match[1].split(', '))} too. {see}"
        return f"`litgpt {name}` needs {match[1].upper()}. {see}"
    if match := re.search(r"^unrecognized arguments: (.*)", message):
        positional = " ".join(parameter.name.upper() for parameter in parameters.values() if parameter.required)
        return f"Too many arguments ({match[1]}): it is `litgpt {name} {positional}`, all else by --flags. {see}"
    key = keys[0] if keys else ""
    if len(keys) > 1 and keys[-1] != key and not keys[-1].startswith(f"{key}."):
        key = f"{key}.{keys[-1]}"
    parameter = command_line.parameter_at(key)
    value = re.search(r"(?:Given|Got) value: (?:NestedArg\(key='[^']*', val='(.*)'\)|(.*))", message)
    if parameter and value and key.rpartition(".")[2] not in SECRETS:
        given = value[1] or value[2]
        options = [option for option in literals(parameter.hint) if isinstance(option, str)]
        return f"--{key}: {given} is not {describe(parameter.hint)}.{closest(given, options)}"
    lines = [line.strip(" -") for line in message.splitlines() if "Given value" not in line]
    return f"{' '.join(line for line in lines if line)[:300].rstrip('.')}. {see}"

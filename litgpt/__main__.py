"""The `litgpt` command: finds the one asked for, imports only that, and turns a user's mistake into one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from litgpt.cli.commands import COMMANDS
from litgpt.errors import LitGPTError, UsageError, closest, quoted


def overview() -> str:
    """What `litgpt --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    rows = [f"  {name:<{width}}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        (
            "usage: litgpt COMMAND [options]",
            "",
            "Pretrain, finetune, run and serve language models.",
            "",
            "Available subcommands:",
            *rows,
            "",
            "Options:",
            f"  {'-h, --help':<{width}}Show this help and exit; after a command, what it takes.",
            f"  {'--version':<{width}}Show the version and exit.",
            "",
        )
    )


def split_command(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The name of the command, of one word or two, and what follows it."""
    begins_two = {name.partition(" ")[0] for name in COMMANDS if " " in name}
    words = 2 if arguments[0] in begins_two and not "".join(arguments[1:2]).startswith("-") else 1
    return " ".join(arguments[:words]), arguments[words:]


def target_of(name: str) -> str:
    """The `module:function` that runs the command `name`.

    Raises:
        UsageError: There is no such command.
    """
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        raise UsageError(f"Unknown {kind} {quoted(name)}.{closest(name, COMMANDS)} See `litgpt --help`.")
    return COMMANDS[name][0]


def dispatch(arguments: Sequence[str]) -> None:
    """Runs one command line, given without the program's name."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(), end="")
    elif arguments[0] == "--version":
        from litgpt import __version__

        print(f"litgpt {__version__}")
    else:
        name, rest = split_command(arguments)
        target = target_of(name)
        from litgpt.cli.run import run

        run(name, target, rest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (`sys.argv` without the program's name if None) and returns the exit code.

    0 is success, 1 a user's mistake, 2 a command line that cannot be understood, 130 an interruption.
    """
    try:
        dispatch(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except LitGPTError as error:
        print(f"litgpt: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(file=sys.stderr)  # ends the line that ^C stands in
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`); what is still buffered must not raise again when Python closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())

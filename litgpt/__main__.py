"""The `litgpt` command: finds the one asked for, imports only that, and turns a user's mistake into one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from litgpt.errors import LitGPTError, UsageError, closest, quoted

COMMANDS: dict[str, tuple[str | None, str]] = {
    "download": ("litgpt.scripts.download:download", "Download weights or tokenizer data from the Hugging Face Hub."),
    "chat": ("litgpt.chat.base:main", "Chat with a model."),
    "finetune": ("litgpt.finetune.lora:setup", "Finetune a model with LoRA (the same as finetune_lora)."),
    "finetune_lora": ("litgpt.finetune.lora:setup", "Finetune a model with LoRA."),
    "finetune_full": ("litgpt.finetune.full:setup", "Finetune all weights of a model."),
    "finetune_adapter": ("litgpt.finetune.adapter:setup", "Finetune a model with LLaMA-Adapter."),
    "finetune_adapter_v2": ("litgpt.finetune.adapter_v2:setup", "Finetune a model with LLaMA-Adapter V2."),
    "pretrain": ("litgpt.pretrain:setup", "Pretrain a model, from scratch or from a checkpoint."),
    "generate": ("litgpt.generate.base:main", "Generate text from a prompt."),
    "generate_full": ("litgpt.generate.full:main", "Generate text with a fully finetuned model."),
    "generate_adapter": ("litgpt.generate.adapter:main", "Generate text with a model finetuned with LLaMA-Adapter."),
    "generate_adapter_v2": (
        "litgpt.generate.adapter_v2:main",
        "Generate text with a model finetuned with LLaMA-Adapter V2.",
    ),
    "generate_sequentially": (
        "litgpt.generate.sequentially:main",
        "Generate text with the layers spread over several devices.",
    ),
    "generate_speculatively": (
        "litgpt.generate.speculatively:main",
        "Generate text with a small model that drafts for a large one.",
    ),
    "generate_tp": ("litgpt.generate.tp:main", "Generate text with every layer split over several devices."),
    "convert_to_litgpt": (
        "litgpt.scripts.convert_to_litgpt:convert_to_litgpt",
        "Convert a Hugging Face folder to a LitGPT checkpoint.",
    ),
    "convert_from_litgpt": (
        "litgpt.scripts.convert_from_litgpt:convert_from_litgpt",
        "Convert a LitGPT checkpoint to a Hugging Face folder.",
    ),
    "convert_pretrained_checkpoint": (
        "litgpt.scripts.convert_pretrained_checkpoint:convert_pretrained_checkpoint",
        "Strip a pretraining checkpoint of its training state.",
    ),
    "merge_lora": ("litgpt.scripts.merge_lora:merge_lora", "Merge LoRA weights into the model they were trained on."),
    "evaluate": (None, "Evaluate a model on benchmark tasks."),
    "serve": ("litgpt.deploy.serve:run_server", "Serve a model over HTTP."),
    "validate": ("litgpt.scripts.validate:validate", "Check that a checkpoint folder is complete and consistent."),
    "plan": ("litgpt.cli.plan:plan", "Tell what a training command will take, before it runs."),
    "recipes": ("litgpt.cli.recipes:list_recipes", "List the recipes that come with litgpt, with what each needs."),
    "recipes show": ("litgpt.cli.recipes:show", "Print all values of a recipe."),
    "recipes cp": ("litgpt.cli.recipes:cp", "Copy a recipe into a file of your own."),
    "data preview": (
        "litgpt.scripts.data_preview:data_preview",
        "Show what a model would learn from data: samples, lengths, what is cut.",
    ),
    "prepare_starcoder": ("litgpt.data.prepare_starcoder:prepare", "Tokenize StarCoder's files for pretraining."),
    "prepare_slimpajama": ("litgpt.data.prepare_slimpajama:prepare", "Tokenize SlimPajama's files for pretraining."),
    "demo": ("litgpt.demo:demo", "Pretrain, finetune and talk with a small model in a few minutes."),
}
"""Command -> `module:function` (None: not built yet) and a one-line summary. LitGPT's come first, in its order."""


def overview() -> str:
    """What `litgpt --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    rows = [
        f"    {name:<{width}}{summary}{'' if target else ' (not built yet)'}"
        for name, (target, summary) in COMMANDS.items()
    ]
    return "\n".join(
        (
            "usage: litgpt [-h] [--version] {" + ",".join(COMMANDS) + "} ...",
            "",
            "Pretrain, finetune, run and serve language models.",
            "",
            "options:",
            f"    {'-h, --help':<{width}}Show this help message and exit.",
            f"    {'--version':<{width}}Show the version and exit.",
            "",
            "subcommands:",
            "  For more details of each subcommand, add it as an argument followed by --help.",
            "",
            "  Available subcommands:",
            *rows,
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
        LitGPTError: The command is planned but not built.
    """
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        raise UsageError(f"Unknown {kind} {quoted(name)}.{closest(name, COMMANDS)} See `litgpt --help`.")
    target = COMMANDS[name][0]
    if target is None:
        raise LitGPTError(f"`litgpt {name}` is not built yet; `litgpt --help` lists the commands that are.")
    return target


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
        from litgpt.cli.parser import run

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

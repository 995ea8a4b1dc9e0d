"""`litgpt plan COMMAND …`: what a training command will take, before it runs and without its weights.

It reads the command line of another command, so it stands beside the one that reads them all.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from litgpt.args import inherits
from litgpt.cli.parser import parse
from litgpt.errors import UsageError, closest, quoted
from litgpt.training.planner.args import PlanArgs

COMMANDS = {
    "pretrain": "litgpt.pretrain",
    "finetune": "litgpt.finetune.lora",
    "finetune_lora": "litgpt.finetune.lora",
    "finetune_full": "litgpt.finetune.full",
    "finetune_adapter": "litgpt.finetune.adapter",
    "finetune_adapter_v2": "litgpt.finetune.adapter_v2",
    "finetune_dpo": "litgpt.finetune.dpo",
    "finetune_distill": "litgpt.finetune.distill",
    "finetune_grpo": "litgpt.finetune.grpo",
}
"""Commands that can be planned → the modules with their `setup`."""

USAGE = f"""usage: litgpt plan COMMAND [the arguments of COMMAND] [--plan.ARGUMENT VALUE ...]

Tell what a training command will take, before running it and without loading weights: parameters, memory by part,
whether it fits and what to change if it doesn't, computing, time, checkpoint sizes.

COMMAND is one of {", ".join(COMMANDS)}.
`litgpt plan COMMAND --help` shows all arguments.
"""


def plan(*arguments: str) -> dict[str, Any] | None:
    """Tell what a training command will take, before it runs and without loading weights.

    Args:
        arguments: The name of the command and its arguments; among them `--plan.*`, see `PlanArgs`.

    Raises:
        UsageError: The command line can't be understood.
        LitGPTError: The command could not run.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return None
    name, *rest = arguments
    if name not in COMMANDS:
        raise UsageError(
            f"`litgpt plan` knows no command {quoted(name)}.{closest(name, COMMANDS)} See `litgpt plan --help`."
        )
    planned = inherits(_added)(import_module(COMMANDS[name]).setup)
    values = parse(f"plan {name}", planned, rest)
    options = values.pop("plan")
    from litgpt.training.planner.planner import as_numbers, format_lines, make_plan

    made = make_plan(name, values, options)
    for line in format_lines(made):
        print(line)
    return as_numbers(made)


def _added(plan: PlanArgs = PlanArgs()) -> None:
    """What every planned command has besides its own arguments.

    Args:
        plan: What the plan is to assume.
    """

"""Rewards of answers: functions of the user's own, and those that are built in.

A reward takes all answers of a step by name, as TRL's do: `prompts` and `completions`, a text each, and every column of
the data (`answer` among them) as a list; it returns a number for each.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litgpt.engine.structured import Grammar
from litgpt.errors import LitGPTError, MissingFileError, UsageError, one_line, quoted
from litgpt.tokenizer import Tokenizer

Function = Callable[..., Sequence[Any]]
BUILT_IN = ("exact_match", "regex:PATTERN", "json_schema:FILE", "code", "reward_model:FOLDER")
CODE_SECONDS = 10
CODE_BYTES = 2**30
"""Memory of a program that an answer is."""
CODE_AT_ONCE = 2
FENCED = re.compile(r"```(?:python|py)?\s*\n(.*?)```", re.DOTALL)
MARKED = (
    re.compile(r"\\boxed\{([^{}]*)\}"),
    re.compile(r"<answer>(.*?)</answer>", re.DOTALL),
    re.compile(r"####\s*([^\n]+)"),
)
"""Where a longer answer says what it comes to."""


@dataclass(frozen=True)
class Reward:
    """A reward by name, and what it counts."""

    name: str
    function: Function
    weight: float = 1.0

    def of(self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, list[Any]]) -> list[float]:
        """The reward of each answer.

        Raises:
            LitGPTError: The function takes other arguments, fails, or returns anything but a finite number for each.
        """
        given = {"prompts": list(prompts), "completions": list(completions), **columns}
        self._check_arguments(given)
        try:
            found = self.function(**given)
        except LitGPTError:
            raise
        except (Exception, SystemExit) as error:
            raise LitGPTError(f"The reward {self.name} fails{place_of(error)}: {one_line(error)}.") from error
        values = list(found) if isinstance(found, Sequence) or hasattr(found, "__iter__") else []
        try:
            rewards = [float(value) for value in values]
        except (TypeError, ValueError):
            rewards = []
        if len(rewards) != len(completions) or not all(map(math.isfinite, rewards)):
            raise LitGPTError(
                f"The reward {self.name} returns {quoted(found)}; it has to return {len(completions)} finite numbers, "
                "one for each of `completions`."
            )
        return rewards

    def _check_arguments(self, given: Mapping[str, list[Any]]) -> None:
        try:
            inspect.signature(self.function).bind(**given)
        except ValueError:  # something built in, that doesn't say what it takes
            return
        except TypeError as error:
            raise LitGPTError(
                f"The reward {self.name} can't be called with {', '.join(given)} ({error}); it has to take `prompts`, "
                "`completions` and `**columns`, all by name."
            ) from None


def place_of(error: BaseException) -> str:
    """Where in the user's file an error comes from."""
    trace, last = error.__traceback__, ""
    while trace is not None:
        last = f" in line {trace.tb_lineno} of {Path(trace.tb_frame.f_code.co_filename).name}"
        trace = trace.tb_next
    return last


def rewards_of(
    specs: str | Sequence[str] | None,
    weights: Sequence[float] | None,
    tokenizer: Tokenizer,
    open_model: Callable[[str], Function],
) -> list[Reward]:
    """The rewards that `--reward` names; `open_model` makes one of a reward model's folder.

    Raises:
        LitGPTError: One can't be found or loaded.
    """
    named = [specs] if isinstance(specs, str) else list(specs or ())
    if not named:
        raise UsageError(f"Give --reward: FILE.py:FUNCTION, or {', '.join(BUILT_IN)}.")
    if weights is not None and (len(weights) != len(named) or not all(map(math.isfinite, weights))):
        raise UsageError(f"--reward_weights has {len(weights)} numbers for {len(named)} rewards; give one for each.")
    return [
        Reward(_short(spec), _function(spec, tokenizer, open_model), weight)
        for spec, weight in zip(named, weights or [1.0] * len(named), strict=True)
    ]


def _short(spec: str) -> str:
    """A reward's name in logs."""
    return spec.rpartition(":")[2] if ".py:" in spec else spec.partition(":")[0]


def _function(spec: str, tokenizer: Tokenizer, open_model: Callable[[str], Function]) -> Function:
    if ".py:" in spec:
        return loaded(spec)
    name, _, given = spec.partition(":")
    if name == "exact_match" and not given:
        return exact_match
    if name == "code" and not given:
        return code
    if name == "regex" and given:
        return regex(given)
    if name == "json_schema" and given:
        return json_schema(given, tokenizer)
    if name == "reward_model" and given:
        return open_model(given)
    raise UsageError(f"There is no reward {quoted(spec)}; it is FILE.py:FUNCTION, or {', '.join(BUILT_IN)}.")


def loaded(spec: str) -> Any:
    """The function `NAME` of `FILE.py:NAME`, or a class, of which an object is made.

    Raises:
        LitGPTError: There is none, or the file can't be run.
    """
    place, _, name = spec.rpartition(":")
    file = Path(place).expanduser()
    if not file.is_file():
        raise MissingFileError(f"There is no file {file} with {quoted(name)}.")
    found = importlib.util.spec_from_file_location(f"litgpt_own_{file.stem}", file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        function = getattr(module, name, None)
        if inspect.isclass(function):
            function = function()
    except LitGPTError:
        raise
    except SyntaxError as error:  # whose text tells where
        raise LitGPTError(f"{file} can't be run: {one_line(error)}.") from error
    except (Exception, SystemExit) as error:
        raise LitGPTError(f"{file} can't be run{place_of(error)}: {one_line(error)}.") from error
    if not callable(function):
        raise LitGPTError(f"{file} has no function {quoted(name)}.")
    return function


def _answers(columns: Mapping[str, list[Any]], reward: str) -> list[Any]:
    if "answer" not in columns:
        raise LitGPTError(f"The reward {reward} compares with the right answer: the data has no column `answer`.")
    return columns["answer"]


def told(text: str) -> str:
    """What an answer comes to: what it marks as such, by \\boxed{…}, <answer>…</answer> or ####, or all of it."""
    for mark in MARKED:
        if found := mark.findall(text):
            return str(found[-1]).strip()
    return text.strip()


def exact_match(prompts: Sequence[str], completions: Sequence[str], **columns: list[Any]) -> list[float]:
    """1 where an answer comes to the right one, but for white space around it."""
    right = _answers(columns, "exact_match")
    return [float(told(text) == told(str(answer))) for text, answer in zip(completions, right, strict=True)]


def regex(pattern: str) -> Function:
    """1 where a regular expression is found in the answer; `^` and `$` hold it to all of it.

    Raises:
        LitGPTError: It is none.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UsageError(f"--reward regex:{quoted(pattern)} is no regular expression ({error}).") from None

    def matches(prompts: Sequence[str], completions: Sequence[str], **columns: list[Any]) -> list[float]:
        return [float(compiled.search(text) is not None) for text in completions]

    return matches


def json_schema(schema: str, tokenizer: Tokenizer) -> Function:
    """1 where an answer is JSON that keeps to a schema, which stands in a file, or as such.

    Raises:
        LitGPTError: There is none.
    """
    grammar = Grammar.of(tokenizer, schema)
    assert grammar is not None

    def keeps(prompts: Sequence[str], completions: Sequence[str], **columns: list[Any]) -> list[float]:
        found = []
        for text in completions:
            try:
                compact = json.dumps(json.loads(text), ensure_ascii=False)
            except (ValueError, RecursionError):
                found.append(0.0)
                continue
            found.append(float(grammar.accepts(tokenizer.encode_ids(compact, bos=False))))
        return found

    return keeps


def code(prompts: Sequence[str], completions: Sequence[str], **columns: list[Any]) -> list[float]:
    """1 where the program in an answer, its first fenced block or all of it, runs through the tests in the column
    `tests`, or prints what stands in `answer`."""
    tests, right = columns.get("tests"), columns.get("answer")
    if tests is None and right is None:
        raise LitGPTError("The reward code needs a column `tests` (Python), or `answer` (what the program prints).")

    def run(at: int) -> float:
        found = FENCED.search(completions[at])
        program = found.group(1) if found else completions[at]
        if tests is not None and tests[at] is not None:
            return float(run_program(f"{program}\n\n{tests[at]}\n")[0])
        assert right is not None
        ended, printed = run_program(program)
        return float(ended and printed.strip() == str(right[at]).strip())

    with ThreadPoolExecutor(CODE_AT_ONCE) as threads:
        return list(threads.map(run, range(len(completions))))


def run_program(program: str, seconds: int = CODE_SECONDS) -> tuple[bool, str]:
    """Runs Python code in a process of its own, in an empty folder without environment variables; its time, memory and
    files are limited. That keeps accidents away, not attackers: what must not be harmed should not be reachable.

    Returns:
        Whether it ended well, and the first 64 KB that it printed.
    """

    import resource  # Windows has none

    def limit() -> None:
        for what, most in (
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_AS, CODE_BYTES),
            (resource.RLIMIT_FSIZE, 2**20),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(what, (most, most))

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as out:
        file = Path(folder) / "answer.py"
        file.write_text(program, encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", file.name],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            preexec_fn=limit,
            start_new_session=True,
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False, ""
        finally:
            _end(process)
        out.seek(0)
        return process.returncode == 0, out.read(2**16).decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process with all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

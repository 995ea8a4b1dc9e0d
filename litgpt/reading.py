"""Files that somebody else made: each is read whole and within bounds, or refused in one sentence."""

from __future__ import annotations

import json
import pickletools
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from litgpt.errors import FileError, LitGPTError, MissingFileError, escaped, one_line, quoted

MAX_JSON_BYTES = 100_000_000
"""The largest that are published are indexes of some 10 MB."""
MAX_TEXT_BYTES = 10_000_000
MAX_YAML_BYTES = 200_000
MAX_YAML_VALUES = 100_000
"""In one file; what an alias stands for counts each time."""
MAX_DEPTH = 64
"""Lists and tables inside each other."""
MAX_PATH = 1000
MAX_PATTERN, MAX_REPEATS = 300, 3
SLOW_PATTERN = re.compile(r"\)[*+{]|\\[1-9]|\(\?P=")
"""Repeated groups and references: what makes the time of a regular expression grow without end."""
MAX_PICKLE_BYTES = 200_000_000
MAX_NESTING = 200
"""Values inside each other. Python's `hash` of a tuple that is nested much deeper ends the process."""
ZIP_START = b"PK\x03\x04"
LEGACY_PICKLES = 5
"""A file that is no zip holds so many, one after the other: magic number, protocol, machine, values, storages."""
LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def reading(path: str | Path, fault: str, advice: str = "download it again") -> Iterator[None]:
    """The net at a reader's edge: whatever a parser raises inside becomes one sentence.

    Args:
        path: What is read: a file, or the folder it is in; where it is only known by a name, a text.
        fault: What is said of it where it can't be read (`no tokenizer`).
        advice: What the user can do.

    Raises:
        LitGPTError: There is no such file, it is a pipe or a device, can't be read, or the block fails.
    """
    name = _name(path)
    try:
        if isinstance(path, Path):
            check_plain(path)
        yield
    except LitGPTError:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"There is no file {name}.") from None
    except BaseException as error:
        if not is_failure(error):
            raise
        if isinstance(error, OSError) and error.strerror:
            raise FileError(f"{name} can't be read ({error.strerror}).") from error
        raise LitGPTError(f"{name} is {fault} ({one_line(error)}); {advice}.") from error


def _name(path: str | Path) -> str:
    return escaped(str(path), MAX_PATH)


def is_failure(error: BaseException) -> bool:
    """Whether an error says that something failed, not that the program is to end; Rust's panics are no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def is_plain(path: Path) -> bool:
    """Whether `path` is a file or a folder, or isn't there: nothing that blocks or never ends when it is read."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def check_plain(path: Path) -> None:
    """Raises a LitGPTError where `path` is a pipe, a socket or a device."""
    if not is_plain(path):
        raise LitGPTError(f"{_name(path)} is a pipe or a device, not a file; put a file in its place.")


def read_text(path: Path, fault: str, most: int = MAX_TEXT_BYTES, advice: str = "download it again") -> str:
    """The text of a UTF-8 file of at most `most` bytes; the rest as `reading`."""
    with reading(path, fault, advice), path.open("rb") as file:
        content = file.read(most + 1)
        if len(content) > most:
            raise LitGPTError(f"{_name(path)} is larger than {most // 1000} kB; {advice}.")
        return content.decode("utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        LitGPTError: There is no such file, it is not JSON, or not an object.
    """
    text = read_text(path, "not valid JSON", MAX_JSON_BYTES, "download the checkpoint again")
    with reading(path, "not valid JSON", "download the checkpoint again"):
        content = json.loads(text)
        check_depth(content)
        if LONE_SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()  # raises where one is half a character
    if not isinstance(content, dict):
        raise LitGPTError(f"{_name(path)} holds no JSON object; download the checkpoint again.")
    return content


def optional_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one where there is no file."""
    return read_json(path) if path.exists() else {}


def check_depth(content: Any) -> None:
    """Raises a RecursionError where lists and tables lie too deep inside each other for what works on them."""
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RecursionError
        inside = [value for value in level if isinstance(value, dict | list)]
        level = [item for value in inside for item in (value.values() if isinstance(value, dict) else value)]


@lru_cache(maxsize=1024)
def check_pattern(pattern: str) -> None:
    """Raises a LitGPTError where a regular expression is none, or could take without end to compare with a name."""
    repeats = len(re.findall(r"[*+{]", pattern))
    if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or SLOW_PATTERN.search(pattern):
        raise LitGPTError(
            f"The pattern {quoted(pattern)} takes too long to compare with names; write it with at most {MAX_REPEATS} "
            "repetitions and none of a group."
        )
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise LitGPTError(f"{quoted(pattern)} is no regular expression ({one_line(error)}).") from None


def read_yaml(path: Path, fault: str, advice: str = "download it again") -> Any:
    """The value of a YAML file, without any tag that makes objects.

    Raises:
        LitGPTError: There is no such file, it is not YAML, too large, or its aliases stand for too much.
    """
    import yaml

    text = read_text(path, fault, MAX_YAML_BYTES, advice)
    with reading(path, fault, advice):
        check_yaml(text)
        return yaml.load(text, _yaml_loader())


def _yaml_loader() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_yaml(text: str) -> None:
    """Looks at a YAML text before its values are made.

    Raises:
        RecursionError: It is nested too deeply.
        ValueError: Its aliases stand for too much.
        yaml.YAMLError: It is no YAML.
    """
    import yaml

    depth = 0
    for event in yaml.parse(text, _yaml_loader()):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecursionError
    node = yaml.compose(text, _yaml_loader())
    if node is not None and _values(node, {}, 1) > MAX_YAML_VALUES:
        raise ValueError("its aliases stand for too much")


def _values(node: Any, known: dict[int, int], depth: int) -> int:
    """How many values a YAML node stands for. One that stands in itself is nested without end."""
    if depth > MAX_DEPTH:
        raise RecursionError
    if id(node) not in known:
        children = node.value if isinstance(node.value, list) else []
        nodes = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_values(child, known, depth + 1) for child in nodes)
    return known[id(node)]


def check_pickles(path: Path) -> bool:
    """Whether a file is a zip as torch writes them, else several pickles in a row.

    Raises:
        ValueError: Its records are packed, so that they may be larger than the file, or a pickle has no end.
        RecursionError: A pickle is nested too deeply.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP_START)) != ZIP_START:  # torch asks no more: a zip may be appended to anything
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                check_nesting(file)
            return False
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        if packed or sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its records are packed, as torch never does")
        for record in records:
            if record.filename.endswith("/data.pkl"):
                if record.file_size > MAX_PICKLE_BYTES:
                    raise ValueError(f"its pickle is larger than {MAX_PICKLE_BYTES // 1_000_000} MB")
                with archive.open(record) as file:
                    check_nesting(file)
    return True


def check_nesting(file: IO[bytes]) -> None:
    """Walks through a pickle without making what it says; afterwards the file is at its end.

    Raises:
        RecursionError: Values are nested too deeply.
    """
    stack: list[int | None] = []  # how deep what is on the pickle's stack is nested; None: a mark
    memo: dict[Any, int] = {}
    for code, argument, _ in pickletools.genops(file):
        name = code.name
        if name == "MARK":
            stack.append(None)
        elif "PUT" in name:
            memo[argument] = stack[-1] or 0
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1] or 0
        elif "GET" in name:
            stack.append(memo[argument])
        else:
            taken = _take(stack, [kind.name for kind in code.stack_before])
            grows = "APPEND" in name or "SETITEM" in name or name in ("BUILD", "ADDITEMS")
            depth = max(taken[0], *(1 + part for part in taken[1:]), 0) if grows else 1 + max(taken, default=-1)
            if depth > MAX_NESTING:
                raise RecursionError
            stack += [depth] * len(code.stack_after)


def _take(stack: list[int | None], kinds: list[str]) -> list[int]:
    """Takes off what a code takes, in the order in which it was put there."""
    taken: list[int] = []
    for kind in reversed(kinds):
        if kind == "stackslice":
            while (part := stack.pop()) is not None:
                taken.append(part)
        elif kind != "mark":
            taken.append(stack.pop() or 0)
    return taken[::-1]

"""Breaks valid files: their bytes, the values in them, or what lies in their place."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

DEEP = "<nested deeply>"
NUMBERS = [0, -1, 1, 2, 3, 7, 2**16, 10**6, 2**31, 2**63, 2**64, 10**400, -(10**400), 0.5, -0.5, 1e-9, 1e308]
TEXTS = ["", "x", "0", "\x1b[2J\n\0", "\ud800", "é" * 70000, "/etc/passwd", "../..", "(a+)+$", "{{ 1 // 0 }}", DEEP]
VALUES: list[Any] = [
    *(None, True, False, float("inf"), float("nan"), [], {}, [[]], [None], ["a"] * 1000, {"a": {"b": []}}, {"": ""}),
    *NUMBERS,
    *TEXTS,
]
NAMES = ["", "x", "\x1b[2J", "__class__", "0", "-1", "é" * 70000, "a.b", "num_hidden_layers", "n_layer"]
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A text of 300 bytes that stands for nine to the ninth values."""


def broken_bytes(content: bytes, random: Random) -> bytes:
    """One to three changes of bytes."""
    for _ in range(random.randint(1, 3)):
        at = random.randint(0, len(content))
        near_start = random.randint(0, min(len(content), 400))
        at = random.choice([at, near_start])
        kind = random.randint(0, 7)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + content[at + random.randint(1, 64) :]
        elif kind == 2:
            content = content[:at] + content[at : at + 64] * random.randint(2, 50) + content[at:]
        elif kind == 3:
            content = content[:at] + random.choice([b"\0", b"\xff"]) * 8 + content[at + 8 :]
        elif kind == 4:
            number = random.choice([0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
            content = content[:at] + struct.pack("<Q", number) + content[at + 8 :]
        elif kind == 5:
            content = content[:at] + random.choice([b"[" * 5000, b'{"":' * 5000, b"((" * 5000]) + content[at:]
        else:
            byte = random.randint(0, 255)
            content = content[:at] + bytes([byte]) + content[at + 1 :]
    return content


def broken_value(value: Any, random: Random) -> Any:
    """A copy of a value of lists and tables in which one value is another, is gone, or has another name."""
    if isinstance(value, dict) and value and random.random() < 0.95:
        key = random.choice(sorted(value, key=str))
        kind = random.randint(0, 5)
        if kind == 0:
            return {other: inside for other, inside in value.items() if other != key}
        if kind == 1:
            return {**value, random.choice(NAMES): random.choice(VALUES)}
        return {**value, key: broken_value(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randint(0, len(value) - 1)
        return [*value[:at], broken_value(value[at], random), *value[at + 1 :]]
    return random.choice(VALUES)


def broken_json(content: bytes, random: Random) -> bytes:
    value = json.loads(content)
    for _ in range(random.randint(1, 2)):
        value = broken_value(value, random)
    return json.dumps(value).replace(json.dumps(DEEP), "[" * 3000 + "]" * 3000).encode()


def broken_yaml(content: bytes, random: Random) -> bytes:
    if random.random() < 0.1:
        aliases = ALIASES + random.choice(["", "n_layer: *i\n", "class_path: *i\n", "checkpoint_dir: *i\n"])
        return aliases.encode() + content
    value = broken_value(yaml.safe_load(content), random)
    try:
        text = yaml.safe_dump(value, allow_unicode=random.random() < 0.5)
        return text.replace(DEEP, "[" * 3000 + "]" * 3000).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        return content[: len(content) // 2]


def broken_pickle(content: bytes, random: Random) -> bytes:
    """A file of torch with other keys and values."""
    state = dict(torch.load(io.BytesIO(content), weights_only=True))
    deep: Any = ()
    for _ in range(random.choice([3, 900])):
        deep = (deep,)
    values = [
        *(None, 1, "x", [1], {"a": 1}, deep, torch.tensor(1), torch.zeros(0), torch.zeros(3, dtype=torch.int8)),
        *(torch.zeros(1).expand(2**40), torch.zeros(2, 2).to_sparse(), torch.zeros(3, dtype=torch.complex64)),
        *(torch.zeros(3, device="meta"), torch.nn.Parameter(torch.zeros(3)), torch.tensor([float("nan")])),
    ]
    key = random.choice(sorted(state))
    other = random.choice([key, 5, None, "", "model", deep, "\x1b[2J", (1, 2), True, b"x"])
    kept = state if random.random() < 0.5 else {name: state[name] for name in state if name != key}
    whole: Any = {**kept, other: random.choice(values)}
    whole = random.choice(
        [whole, whole, whole, {"model": whole}, {"state_dict": whole}, [whole], random.choice(values)]
    )
    file = io.BytesIO()
    torch.save(whole, file, _use_new_zipfile_serialization=random.random() < 0.7)
    return file.getvalue()


def broken_safetensors(content: bytes, random: Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = broken_json(content[8 : 8 + length], random)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


BREAKERS = {
    ".json": broken_json,
    ".yaml": broken_yaml,
    ".pth": broken_pickle,
    ".bin": broken_pickle,
    ".ckpt": broken_pickle,
    ".lora": broken_pickle,
    ".safetensors": broken_safetensors,
}


def put_something_else(path: Path, random: Random) -> None:
    """A pipe, a device, a folder, a link to itself, or another kind of file in a file's place."""
    kind = random.randint(0, 6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to("/dev/zero")
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.symlink_to(path)
    elif kind == 4:
        path.write_bytes(gzip.compress(b"{}"))
    elif kind == 5:
        path.write_bytes(random.choice([b"", b"\0" * 1000, b"\xef\xbb\xbf{}", b"[]", b"null", b"PK\3\4", b"1", b'"x"']))


def break_file(path: Path, content: bytes, random: Random) -> None:
    """Puts a broken copy of a file's content in its place."""
    if random.random() < 0.1:
        return put_something_else(path, random)
    breaker = BREAKERS.get(path.suffix)
    if breaker is None or random.random() < 0.4:
        path.write_bytes(broken_bytes(content, random))
    else:
        path.write_bytes(breaker(content, random))

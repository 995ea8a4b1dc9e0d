"""A teacher's best tokens, written once to disk: `manifest.json` and for each data set files of some samples each.

The manifest holds all that decides what is in the files: the teacher's weights, the samples, their length, k and the
temperature. Files are written one after the other, each whole or not at all, so a run that was stopped goes on.

S: samples, N: tokens with a target, k: best tokens.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from litgpt.checkpoint.atomic import atomic_file
from litgpt.errors import LitGPTError, check_token_ids, quoted
from litgpt.reading import read_json
from litgpt.training.batching.packing import GIVEN
from litgpt.training.distill.teachers import Asked, BestTokens, Known
from litgpt.training.loss import IGNORED
from litgpt.training.run import Samples

MANIFEST = "manifest.json"
SAMPLES_PER_FILE = 256
BASE = 2**16
"""A sample's number is two numbers that float32 holds, to this base."""
MAX_K = 4096


@dataclass(frozen=True)
class Manifest:
    """What the files in a folder are of."""

    teacher: str
    """The fingerprint of its weights, or where it is served."""
    train: str
    """The fingerprint of the samples."""
    val: str
    """Likewise; empty: there are none."""
    max_seq_length: int
    """Tokens of a sample at most."""
    top_k: int
    temperature: float
    vocabulary: int
    """Of the student."""
    version: int = 1

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder.

        Raises:
            LitGPTError: There is none, or it is damaged.
        """
        found: Any = read_json(folder / MANIFEST)
        own = {field.name: field.type for field in fields(cls)}
        kinds = {"str": str, "int": int, "float": (int, float)}
        right = isinstance(found, dict) and set(found) == set(own)
        if not right or any(not isinstance(found[name], kinds[str(kind)]) for name, kind in own.items()):  # type: ignore[arg-type]
            raise LitGPTError(f"{folder / MANIFEST} is none of `litgpt distill prepare`; make the folder anew.")
        return cls(**found)

    def check(self, other: Manifest, folder: Path) -> None:
        """Raises a LitGPTError where `other`, which a command asks for, is of something else."""
        ours, theirs = asdict(self), asdict(other)
        for name, value in ours.items():
            if value != theirs[name]:
                what = f"{NAMES.get(name, name)} ({quoted(value)}, now {quoted(theirs[name])})"
                raise LitGPTError(
                    f"{folder} was made for another {what}; run `litgpt distill prepare` into another folder."
                )


NAMES = {"train": "training set", "val": "validation set"}


def is_stored(folder: Path) -> bool:
    """Whether a folder has such files."""
    return (folder / MANIFEST).is_file()


def write(
    folder: Path,
    manifest: Manifest,
    datasets: Mapping[str, Samples],
    ask: Callable[[Sequence[Mapping[str, Any]]], BestTokens],
    on_file: Callable[[str, int, int], None] = lambda name, done, count: None,
) -> int:
    """Writes what a teacher knows of data sets; files that are there already stay.

    Args:
        folder: Is made where it isn't there.
        manifest: What the files are of.
        datasets: By name, `train` and `val`.
        ask: Gives the best tokens for all targets of some samples, `(N, k)`.
        on_file: Called after each file with the data set, and how many of its samples are done, of how many.

    Returns:
        How many samples were asked about.

    Raises:
        LitGPTError: The folder holds something else.
    """
    if (folder / MANIFEST).is_file():
        Manifest.read(folder).check(manifest, folder)
    elif folder.exists() and any(folder.iterdir()):
        raise LitGPTError(f"{folder} has other files in it; give --out_dir a folder of its own.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
    count = 0
    for name, dataset in datasets.items():
        for start, file in files_of(folder, name, len(dataset)):
            end = min(start + SAMPLES_PER_FILE, len(dataset))
            if not file.is_file():
                samples = [dataset[at] for at in range(start, end)]
                found = ask(samples)
                counts = torch.tensor([int((sample["labels"][1:] != IGNORED).sum()) for sample in samples])
                tensors = {"ids": found.ids.int(), "values": found.values.float(), "counts": counts}
                with atomic_file(file) as temporary:
                    save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, temporary)
                count += len(samples)
            on_file(name, end, len(dataset))
    return count


def files_of(folder: Path, name: str, count: int) -> Iterator[tuple[int, Path]]:
    """The first sample and the file of each portion of a data set of so many samples."""
    for number, start in enumerate(range(0, count, SAMPLES_PER_FILE)):
        yield start, folder / f"{name}-{number:05d}.safetensors"


class StoredTeacher:
    """The files in a folder, read where they lie.

    Raises:
        LitGPTError: A file is missing or damaged.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int], vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.files: list[_File] = []
        self.firsts: list[int] = []
        """The number of each file's first sample, through all data sets."""
        self.offsets: dict[str, int] = {}
        count = 0
        for name, size in sizes.items():
            self.offsets[name] = count
            for start, file in files_of(folder, name, size):
                self.firsts.append(count + start)
                self.files.append(_File(file, min(SAMPLES_PER_FILE, size - start)))
            count += size

    def of(self, name: str, dataset: Samples) -> Numbered:
        """A data set whose samples say where they are in the files."""
        return Numbered(dataset, self.offsets[name])

    def ask(self, asked: Asked) -> Known:
        """As `Teacher.ask`."""
        assert asked.given is not None
        found = []
        for (_, targets), (high, low) in zip(asked.sequences(), asked.given[:, -2:].tolist(), strict=True):
            number = int(high) * BASE + int(low)
            at = bisect_right(self.firsts, number) - 1
            found.append(self.files[at].read(number - self.firsts[at], int((targets != IGNORED).sum())))
        largest = max((int(ids.max()) for ids, _ in found if ids.numel()), default=0)
        check_token_ids([largest], self.vocabulary, "What the teacher said")
        device = asked.targets.device
        ids, values = (torch.cat([part[at] for part in found]).to(device) for at in (0, 1))
        return BestTokens(ids.long(), values)


class Numbered:
    """Samples with their numbers, at the end of `given`."""

    def __init__(self, dataset: Samples, offset: int) -> None:
        self.dataset, self.offset = dataset, offset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        number = self.offset + index
        return {**sample, GIVEN: torch.tensor([number // BASE, number % BASE], dtype=torch.float32)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)


class _File:
    """One file, memory-mapped."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        try:
            self._open = safe_open(path, framework="pt")
            counts = self._open.get_tensor("counts")
            self._ids, self._values = (self._open.get_slice(name) for name in ("ids", "values"))
            shapes = [part.get_shape() for part in (self._ids, self._values)]
        except (OSError, SafetensorError) as error:
            raise LitGPTError(
                f"{path} is missing or damaged ({type(error).__name__}); delete it, and `litgpt distill prepare` "
                "makes it again."
            ) from None
        ends = counts.cumsum(0)
        if len(counts) != count or shapes[0] != shapes[1] or shapes[0][0] != int(counts.sum()):
            raise LitGPTError(
                f"{path} is not of these samples; delete it, and `litgpt distill prepare` makes it again."
            )
        self.starts: list[int] = [0, *ends.tolist()]

    def read(self, number: int, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` rows of a sample, `(count, k)` each."""
        start = self.starts[number]
        if count > self.starts[number + 1] - start:
            raise LitGPTError(f"{self.path} has fewer tokens of a sample than are learned; make the folder anew.")
        own = slice(start, start + count)
        return self._ids[own], self._values[own]

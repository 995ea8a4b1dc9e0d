"""Which of a run's `step-*` folders stay, and whose they are.

A folder is deleted only if its state says that this run wrote it and it holds no file that the run didn't write.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from litgpt.checkpoint.atomic import no_empty_folders
from litgpt.errors import LitGPTError
from litgpt.runtime import output_dir, output_path
from litgpt.training.run import Identity
from litgpt.training.state import read_header

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def prune(out_dir: Path, identity: Identity, keep: int) -> list[Path]:
    """Deletes all but the newest `keep` of this run's `step-*` folders in `out_dir`; returns those that went.

    What a process left half deleted when it was killed goes too.
    """
    for left in out_dir.glob(".deleted-step-*"):
        shutil.rmtree(left, ignore_errors=True)
    own = [folder for folder in sorted(out_dir.glob("step-*"), key=_number) if _is_ours(folder, identity)]
    gone = own[: max(0, len(own) - max(1, keep))]
    for folder in gone:
        # Renamed first: nobody ever finds half of it under its name.
        hidden = folder.with_name(f".deleted-{folder.name}")
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    return gone


def _number(folder: Path) -> int:
    digits = folder.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def _is_ours(folder: Path, identity: Identity) -> bool:
    if _number(folder) < 0 or folder.is_symlink() or not folder.is_dir():
        return False
    header = read_header(folder)
    return header is not None and header.run_name == identity.name and set(files_in(folder)) <= {*identity.files}


def files_in(folder: Path) -> list[str]:
    """The paths of all files in a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


@contextmanager
def output_folder(path: Path, *sources: Path | None) -> Iterator[Path]:
    """The folder a run writes to; if the block raises before there is a file in it, it vanishes again.

    Args:
        path: As the user gave it.
        sources: Folders (or files) that the run starts from, if any.

    Raises:
        LitGPTError: It can't be written to, or the run would overwrite what it starts from.
    """
    folder = output_path(path)
    refuse_overwriting(folder, *sources)
    with no_empty_folders(folder), no_empty_folders(folder / "logs"):
        yield output_dir(path)


def refuse_overwriting(out_dir: Path, *sources: Path | None) -> None:
    """Raises a LitGPTError if one of `sources` is `out_dir` or in one of the folders that a run writes there: its end
    would replace the very weights that its updates belong to."""
    written = [out_dir / "final", out_dir / "best", *out_dir.glob("step-*")]
    for source in filter(None, sources):
        place = source.resolve()
        if place == out_dir.resolve() or any(place.is_relative_to(folder.resolve()) for folder in written):
            raise LitGPTError(f"--out_dir {out_dir} would overwrite {source}, which it starts from; give another.")


def left_before(out_dir: Path) -> str:
    """What to say of checkpoints that an earlier run left in `out_dir`; empty: there are none."""
    steps = [folder for folder in out_dir.glob("step-*") if _number(folder) >= 0]
    found = [name for name in ("final", "best") if (out_dir / name).is_dir()]
    found += [f"{len(steps)} step-* folder{'s' * (len(steps) > 1)}"] if steps else []
    if not found:
        return ""
    return (
        f"{out_dir} has {', '.join(found)} of an earlier run: what has the same name is replaced, the rest stays. "
        "--out_dir keeps runs apart, --resume auto goes on with one."
    )


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """While it is open, no other run can claim `folder`: two runs would overwrite each other's checkpoints.

    The claim is a lock on the folder itself, so it ends with the process however that ends. Where the file system
    has no locks, nothing is claimed.

    Raises:
        LitGPTError: Another process has claimed it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LitGPTError(
                f"Another run is writing to {folder}: wait until it has ended, or choose another --out_dir."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # for copies of the handle in forked processes too
        os.close(handle)

"""Writing that is whole or not at all, and what is said when it can't be done."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from litgpt.errors import ExistingFileError, FileError, LitGPTError, file_error


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary name to write a file under; it becomes `path` when the block ends, and vanishes when it raises.

    Raises:
        LitGPTError: The disk is full, or `path` can't be written.
    """
    target = _real_path(path)
    with no_empty_folders(target.parent), explain_os_errors(target):
        if target.is_dir():
            raise ExistingFileError(f"{path} is a folder; give the name of a file to write to.")
        temporary = _temporary(target)
        try:
            temporary.touch()
            yield temporary
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder to fill; it becomes `path` when the block ends, and vanishes when it raises.

    Where `path` is a folder already, its files are replaced one by one; those that the block didn't write stay.

    Raises:
        LitGPTError: The disk is full, or `path` can't be written.
    """
    target = _real_path(path)
    with no_empty_folders(target), explain_os_errors(target):
        if target.exists() and not target.is_dir():
            raise ExistingFileError(f"{path} is a file; give the name of a folder to write to.")
        temporary = _temporary(target, inside=target.is_dir())
        temporary.mkdir()
        _final_folders[temporary] = target
        try:
            yield temporary
            if target.exists():
                for file in sorted(file for file in temporary.rglob("*") if file.is_file()):
                    place = target / file.relative_to(temporary)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(place)
            else:
                temporary.rename(target)
        finally:
            del _final_folders[temporary]
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def no_empty_folders(path: Path) -> Iterator[None]:
    """Removes, when the block raises, the folders on the way to `path` and below it that were not there before and
    hold no file."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder, _, _ in os.walk(made[-1], topdown=False) if made else ():
            with suppress(OSError):
                os.rmdir(folder)
        raise


def require_space(path: str | Path, nbytes: int, what: str) -> None:
    """Raises a LitGPTError if the disk that `path` is (or will be) on has no `nbytes` left for `what`."""
    folder = _real_path(path)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise LitGPTError(
            f"{what} needs {gigabytes(nbytes)} of disk, and {folder} has {gigabytes(free)} left; "
            "free some, or choose a folder on another disk."
        )


def gigabytes(nbytes: float) -> str:
    """`1.23 GB`; small sizes in MB."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.2f} MB"


_final_folders: dict[Path, Path] = {}
"""The temporary folders that are being filled, and what they will be."""


def _final_path(path: Path) -> Path:
    """Where a file will be that is being written into a temporary folder."""
    for temporary, target in reversed(_final_folders.items()):
        if path.is_relative_to(temporary):
            return _final_path(target / path.relative_to(temporary))
    return path


def _real_path(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def _temporary(target: Path, inside: bool = False) -> Path:
    """A name beside (or inside) `target` that is this process's; what dead processes left there is removed."""
    folder = target if inside else target.parent
    folder.mkdir(parents=True, exist_ok=True)
    mine = f".{target.name}.{socket.gethostname()}-"
    for left in folder.iterdir():
        pid = left.name.removeprefix(mine).removesuffix(".part")
        if left.name == f"{mine}{pid}.part" and pid.isdecimal() and not _alive(int(pid)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return folder / f"{mine}{os.getpid()}.part"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def explain_os_errors(target: Path) -> Iterator[None]:
    """Turns what the system says about writing into one sentence."""
    try:
        yield
    except OSError as error:
        target = _final_path(target)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise FileError(
                f"The disk is full: {target} could not be written ({os.strerror(error.errno)}); "
                "free some space, or choose a folder on another disk."
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
            raise file_error(
                error,
                f"{target} can't be written ({os.strerror(error.errno)}); "
                "mend its permissions or choose another folder.",
            ) from None
        raise

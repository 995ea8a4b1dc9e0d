"""Data files from the network: an address, or a data set on the hub."""

from __future__ import annotations

import glob
import hashlib
import http.client
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from litgpt.checkpoint.atomic import explain_os_errors, no_empty_folders, require_space
from litgpt.data.storage.data_files import (
    COMPRESSIONS,
    DATA_SUFFIXES,
    files_below,
    format_suffix,
    is_data,
    is_validation,
    listed,
)
from litgpt.errors import LitGPTError, one_line, quoted

SHARD = re.compile(r"-\d{5}-of-(\d{5})\b")
FOLDERS = ("default", "plain_text", "main", "data", "")
"""Where the files of a data set are, if anywhere else are others."""


def fetch_file(url: str, target: Path) -> None:
    """Downloads `url` to `target` if it isn't there, by the hub's client: with a bar, tried again where it breaks off.

    What arrived of a file before a run ended is kept, and gone on with if the server says by an `ETag` that the file is
    the same.

    Raises:
        LitGPTError: The server refuses, can't be reached, or the file doesn't arrive whole.
    """
    if _is_there(target):
        return
    with no_empty_folders(target.parent), explain_os_errors(target), _explain_http_errors(url, target):
        size, tag = _head(url)
        require_space(target.parent, size or 0, url)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{hashlib.sha256(tag.encode()).hexdigest()[:8]}.incomplete")
        lock = part.with_suffix(".lock")
        try:
            with FileLock(lock):
                if not _is_there(target):  # another process may have fetched it meanwhile
                    _receive(url, part, size, resume=bool(tag))
                    part.replace(target)
                    for left in target.parent.glob(
                        f".{glob.escape(target.name)}.*.incomplete"
                    ):  # of what was there before
                        left.unlink(missing_ok=True)
        finally:
            lock.unlink(missing_ok=True)
            if not tag or (part.is_file() and not part.stat().st_size):
                part.unlink(missing_ok=True)


def _is_there(target: Path) -> bool:
    return target.is_file() and target.stat().st_size > 0


def _head(url: str) -> tuple[int | None, str]:
    """The size of a file in bytes, and what tells its content; None and nothing where the server doesn't say."""
    from huggingface_hub import errors, get_hf_file_metadata

    try:
        found = get_hf_file_metadata(url, token=False)  # a token is the hub's, not any server's
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (405, 501):  # no HEAD here
            return None, ""
        raise
    return found.size, found.etag or ""


def _receive(url: str, part: Path, size: int | None, resume: bool) -> None:
    from huggingface_hub.file_download import http_get

    with part.open("ab" if resume else "wb") as file:
        plain = {"Accept-Encoding": "identity"}  # a part of compressed bytes could not be gone on with
        http_get(url, file, resume_size=file.tell(), headers=plain, expected_size=size)


@contextmanager
def _explain_http_errors(url: str, target: Path) -> Iterator[None]:
    from huggingface_hub import errors

    instead = f"download it in another way and put it at {target}."
    try:
        yield
    except LitGPTError:
        raise
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise LitGPTError(
            f"{url} answers {status} ({http.client.responses.get(status, 'unknown')}); {instead}"
        ) from None
    except Exception as error:
        if type(error).__module__.startswith(("httpx", "httpcore")) or isinstance(error, ValueError):
            reason = one_line(error) or type(error).__name__
            raise LitGPTError(f"{url} can't be downloaded ({reason}); check the network, or {instead}") from None
        if isinstance(error, OSError) and error.errno is None:  # its size is not what the server said
            raise LitGPTError(f"{url} did not arrive whole; try again, or {instead}") from None
        raise


def fetch_data_set(
    repo_id: str, split: str, folder: Path | None = None, subset: str | None = None, access_token: str | None = None
) -> list[Path]:
    """The files of one split of a data set on the hub, downloaded if they aren't there.

    Args:
        repo_id: `ORG/NAME`.
        split: `train`, say.
        folder: Where the files go. None: the hub client's own cache.
        subset: The folder (configuration) within the repository, where there are several.
        access_token: Instead of `HF_TOKEN` or the one that `hf auth login` stored.

    Raises:
        LitGPTError: The repository can't be had, has no such files, or has them in several folders.
    """
    from huggingface_hub import HfApi, snapshot_download

    from litgpt.hub_client import explain_hub_errors, relative_name

    place = folder or Path(repo_id)
    here = _split_files([name.as_posix() for name in files_below(folder)], split, subset) if folder else []
    if folder and here and _is_whole(folder, here):
        return [folder / name for name in here]
    token = access_token or None
    with explain_hub_errors(repo_id, token, place, ()):
        listed = HfApi(token=token).dataset_info(repo_id).siblings or ()
    names = [relative_name(file.rfilename, f"The data set {repo_id}") for file in listed]
    wanted = _split_files(names, split, subset)
    if not wanted:
        raise LitGPTError(_no_split(repo_id, names, split, subset))
    with explain_hub_errors(repo_id, token, place, ()):
        root = snapshot_download(
            repo_id, repo_type="dataset", allow_patterns=wanted, token=token, local_dir=folder, max_workers=4
        )
    missing = [name for name in wanted if not (Path(root) / name).is_file()]
    if missing:
        raise LitGPTError(f"{missing[0]} of {repo_id} did not arrive; run the same command again, the rest is kept.")
    return [Path(root) / name for name in wanted]


def _split_files(names: Sequence[str], split: str, subset: str | None) -> list[str]:
    """The data files of a split: those with its name as a word in theirs, of the first kind that there is."""
    data = [name for name in names if is_data(Path(name))]
    if subset is not None:
        data = [name for name in data if name.startswith(f"{subset}/") or f"/{subset}/" in name]
    for kind in DATA_SUFFIXES:
        own = sorted(name for name in data if format_suffix(Path(name)) == kind)
        found = [name for name in own if _is_of(name, split)]
        if not found and split == "train" and len(own) == 1 and not is_validation(Path(own[0])):
            found = own  # a single file that names no split
        if found:
            return _of_one_folder(found, split)
    return []


def _of_one_folder(names: list[str], split: str) -> list[str]:
    """The files of the folder that is a data set's own; those of a configuration each are not mixed."""
    folders = {
        name: re.split(rf"(^|/){re.escape(split)}/", name.rpartition("/")[0] + "/")[0].strip("/") for name in names
    }
    if len(set(folders.values())) == 1:
        return names
    chosen = next((folder for folder in FOLDERS if folder in folders.values()), None)
    if chosen is None:
        shown = listed(sorted(set(folders.values())))
        raise LitGPTError(
            f"The split {quoted(split)} is there in several folders ({shown}); choose one by data.subset."
        )
    return [name for name in names if folders[name] == chosen]


def _is_whole(folder: Path, names: Sequence[str]) -> bool:
    """Whether a download into `folder` was not broken off."""
    totals = {name: int(found[1]) for name in names if (found := SHARD.search(name))}
    return all(len(totals) == total for total in totals.values()) and not any(folder.rglob("*.incomplete"))


def _is_of(name: str, split: str) -> bool:
    stem = Path(name).name
    for suffix in (*COMPRESSIONS, *DATA_SUFFIXES):
        stem = stem.removesuffix(suffix)
    return re.search(rf"(^|[^A-Za-z0-9]){re.escape(split)}([^A-Za-z0-9_]|_\d|$)", stem) is not None or (
        re.search(rf"(^|/){re.escape(split)}/", name) is not None
    )


def _no_split(repo_id: str, names: Sequence[Any], split: str, subset: str | None) -> str:
    data = [name for name in names if is_data(Path(name))]
    where = f" in {subset}" if subset else ""
    found = f"it has {listed(data, 5)}" if data else f"it has no files of the kinds {', '.join(DATA_SUFFIXES)}"
    return f"The data set {repo_id} has no files of the split {quoted(split)}{where}; {found}."

"""Data files from the network: an address, or a data set on the hub."""

from __future__ import annotations

import http.client
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litgpt.checkpoint.atomic import atomic_file, require_space
from litgpt.data.storage.data_files import (
    COMPRESSIONS,
    DATA_SUFFIXES,
    files_below,
    format_suffix,
    is_data,
    is_validation,
    listed,
)
from litgpt.errors import LitGPTError, quoted

TIMEOUT = 60.0
"""Seconds without an answer, or without another byte, after which a download is given up."""
SHARD = re.compile(r"-\d{5}-of-(\d{5})\b")
FOLDERS = ("default", "plain_text", "main", "data", "")
"""Where the files of a data set are, if anywhere else are others."""


def fetch_file(url: str, target: Path) -> None:
    """Downloads `url` to `target` if it isn't there; what is cut off leaves nothing.

    Raises:
        LitGPTError: The server refuses, can't be reached, or the file doesn't arrive whole.
    """
    if target.is_file() and target.stat().st_size:
        return
    instead = f"download it in another way and put it at {target}."
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, atomic_file(target) as part:
            size = int(answer.headers.get("Content-Length") or 0)
            require_space(target.parent, size, url)
            with part.open("wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
            if size and part.stat().st_size != size:
                raise LitGPTError(
                    f"{url} broke off after {part.stat().st_size} of {size} bytes; try again, or {instead}"
                )
    except LitGPTError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise LitGPTError(f"{url} answers {error.code} ({error.reason}); {instead}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and not isinstance(error, urllib.error.URLError | TimeoutError | ConnectionError):
            raise
        reason = getattr(error, "reason", None) or error
        raise LitGPTError(f"{url} can't be downloaded ({reason}); check the network, or {instead}") from None


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

"""From the Hugging Face Hub, or a mirror (`HF_ENDPOINT`), into a checkpoint folder, by the hub's own client."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from litgpt.checkpoint.atomic import explain_os_errors, require_space
from litgpt.checkpoint.layout import (
    CHECKPOINTS,
    CONFIG_FILES,
    LIT_MODEL,
    TOKENIZER_FILES,
    WEIGHT_INDEXES,
    existing_folder,
    find_checkpoint,
    indexed_files,
    is_weight_file,
)
from litgpt.config import CONFIG_FILE, name_to_config, named_row
from litgpt.errors import LitGPTError, MissingFileError, MissingFolderError, closest, progress, quoted
from litgpt.hub_client import HF_CONFIG_FILE, REPOSITORY_ID, explain_hub_errors, relative_name

TOKENIZER_ONLY = (*TOKENIZER_FILES, HF_CONFIG_FILE, "generation_config.json")
"""What `litgpt download --tokenizer_only` takes: the tokenizer, and the files that say how a text begins and ends."""
COMMIT = re.compile(r"[\w.-]{1,100}")
MAX_FILE_BYTES = 2**50
RESUMABLE_BYTES = 50_000_000
"""Files from this size on are continued by the next run if one is stopped."""


def known_ids() -> list[str]:
    """The repositories of all named sizes, as `ORG/NAME`."""
    ids = (f"{row['hf_config']['org']}/{row['hf_config']['name']}" for row in name_to_config.values())
    return list(dict.fromkeys(ids))


def auto_download(checkpoint_dir: str | Path, access_token: str | None = None) -> Path:
    """The checkpoint folder a user means: one that is there, else a repository, downloaded into `checkpoints/`.

    Raises:
        LitGPTError: There is neither, or the download fails.
    """
    path = Path(checkpoint_dir)
    folder = CHECKPOINTS / path
    if path.exists() or not REPOSITORY_ID.fullmatch(path.as_posix()):
        if not path.exists() and (row := named_row(path.name)):
            hub = row["hf_config"]
            raise MissingFolderError(f"There is no folder {path}; on the hub that model is {hub['org']}/{hub['name']}.")
        return existing_folder(path)
    if not folder.is_dir() or _unfinished(folder):
        progress(f"There is no complete folder {path}: fetching it from the hub to {folder}.")
        fetch(path.as_posix(), folder, access_token)
    return folder


def _unfinished(folder: Path) -> bool:
    """Whether `folder` is a download that was cut off."""
    if not (folder / ".cache" / "huggingface").is_dir():
        return False
    try:
        find_checkpoint(folder)
    except LitGPTError:
        return True
    return False


@dataclass(frozen=True)
class Repository:
    """What a repository on the hub holds."""

    id: str
    commit: str
    sizes: Mapping[str, int]
    """Bytes by file name."""
    token: str | None = None

    def tokenizer_files(self) -> list[str]:
        """The files that a tokenizer needs."""
        return [name for name in TOKENIZER_ONLY if name in self.sizes]

    def config_files(self) -> list[str]:
        """Everything a checkpoint folder needs but its weights."""
        return [name for name in CONFIG_FILES if name in self.sizes]

    def weight_files(self, folder: Path) -> list[str]:
        """The weights, safetensors before pickles; an index is downloaded to `folder` to learn what it names.

        Raises:
            LitGPTError: There are none that can be read here.
        """
        for suffix, index in WEIGHT_INDEXES.items():
            if index in self.sizes:
                self.download([index], folder)
                return [index, *indexed_files(folder / index)]
            single = index.removesuffix(".index.json")
            if single in self.sizes:
                return [single]
            others = [name for name in self.sizes if name.endswith(f".{suffix}") and is_weight_file(name)]
            if others:
                return others
        if LIT_MODEL in self.sizes and CONFIG_FILE in self.sizes:
            return [LIT_MODEL]
        gguf = [name for name in self.sizes if name.endswith(".gguf")]
        instead = (
            f"fetch one of its GGUF files and use its path, {gguf[0]} for instance" if gguf else "choose another one"
        )
        raise MissingFileError(f"The repository {self.id} has no weights as *.safetensors or *.bin; {instead}.")

    def missing(self, names: list[str], folder: Path) -> list[str]:
        """Those of `names` that are not in `folder` at their full size."""
        return [
            name
            for name in names
            if not (folder / name).is_file() or (folder / name).stat().st_size != self.sizes.get(name)
        ]

    def download(self, names: list[str], folder: Path) -> None:
        """Brings files into `folder`; those that are there and current are left alone, a broken connection is resumed.

        Raises:
            LitGPTError: The hub refuses, can't be reached, or a file didn't arrive whole.
        """
        from huggingface_hub import snapshot_download

        with explain_hub_and_disk_errors(self.id, self.token, folder):
            for name in self.missing(names, folder):
                if self.sizes.get(name, 0) >= RESUMABLE_BYTES:
                    self._fetch_in_parts(name, folder)
            snapshot_download(  # the rest, and by their hashes it looks whether large files are what they should be
                self.id, revision=self.commit, local_dir=folder, allow_patterns=names, token=self.token, max_workers=4
            )
        missing = self.missing(names, folder)
        if missing:
            raise LitGPTError(
                f"{missing[0]} of {self.id} did not arrive; run the same command again, the rest is kept."
            )

    def _fetch_in_parts(self, name: str, folder: Path) -> None:
        """Downloads a large file so that a run that is stopped goes on, next time, where it stopped.

        The client itself begins anew then. Files in the hub's chunk store (Xet) are left to it all the same: it fetches
        their chunks in parallel.
        """
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        url = hf_hub_url(self.id, name, revision=self.commit)
        metadata = get_hf_file_metadata(url, token=self.token)
        if metadata.xet_file_data is not None and find_spec("hf_xet") is not None:
            return
        headers = build_hf_headers(token=self.token)
        if urlsplit(metadata.location).netloc != urlsplit(url).netloc:  # a store that is not to see the token
            headers.pop("authorization", None)
        part = folder / ".cache" / "huggingface" / "download" / f"{name}.{(metadata.etag or '')[:16]}.incomplete"
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab", buffering=0) as file:
            http_get(metadata.location, file, resume_size=file.tell(), headers=headers, expected_size=self.sizes[name])
        part.replace(folder / name)


def look_up(repo_id: str, access_token: str | None = None, folder: Path | None = None) -> Repository:
    """Asks the hub what a repository holds.

    Raises:
        LitGPTError: It is not there, gated, or the hub can't be reached.
    """
    if not REPOSITORY_ID.fullmatch(repo_id):
        raise LitGPTError(
            f"{quoted(repo_id)} is no repository; write it as ORG/NAME.{closest(repo_id, known_ids())} "
            "`litgpt download list` shows those known by name."
        )
    from huggingface_hub import HfApi

    token = access_token or None
    with explain_hub_and_disk_errors(repo_id, token, folder or CHECKPOINTS / repo_id):
        info = HfApi(token=token).model_info(repo_id, files_metadata=True)
        where, files = f"The repository {repo_id}", info.siblings or ()
        sizes = {relative_name(file.rfilename, where): _file_size(file.size) for file in files}
        commit = info.sha or "main"
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise ValueError(f"a commit is {quoted(commit)}")
        return Repository(repo_id, commit, sizes, token)


def _file_size(said: object) -> int:
    if not isinstance(said, int | None) or not 0 <= (said or 0) < MAX_FILE_BYTES:
        raise ValueError(f"a file's size is {quoted(said)}")
    return said or 0


def fetch(
    repo_id: str,
    folder: Path,
    access_token: str | None = None,
    tokenizer_only: bool = False,
    converted_width: float = 0.0,
) -> None:
    """Downloads a checkpoint, or its tokenizer, into `folder`, if the disk has room for it.

    Args:
        repo_id: `ORG/NAME`.
        folder: Where the files go.
        access_token: Instead of `HF_TOKEN` or the one that `hf auth login` stored.
        tokenizer_only: No weights.
        converted_width: A conversion will follow, whose file has this many times the weights' size.

    Raises:
        LitGPTError: The repository can't be had, or the disk has no room.
    """
    try:
        _fetch(look_up(repo_id, access_token, folder), folder, tokenizer_only, converted_width)
    finally:
        _drop_if_empty(folder)


def _fetch(repository: Repository, folder: Path, tokenizer_only: bool, converted_width: float) -> None:
    names = repository.tokenizer_files() if tokenizer_only else repository.config_files()
    weights = [] if tokenizer_only else repository.weight_files(folder)
    if not names:
        raise LitGPTError(f"{repository.id} has neither a tokenizer nor a configuration; choose another repository.")
    absent = sorted({*names, *weights} - {*repository.sizes})
    if absent:
        raise MissingFileError(f"{repository.id} is incomplete: its index names {absent[0]}, which it doesn't have.")
    to_come = sum(repository.sizes[name] for name in repository.missing([*names, *weights], folder))
    converted = int(converted_width * sum(repository.sizes[name] for name in weights))
    what = repository.id
    if converted:
        what += " with its conversion (none: `--convert_checkpoint false`)"
    require_space(folder, to_come + converted, what)
    repository.download([*names, *weights], folder)


def _drop_if_empty(folder: Path) -> None:
    """Removes the folder of a download that brought nothing, not even a part to resume from."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    if folder.is_dir() and all(".cache" in file.parts and file.suffix != ".incomplete" for file in files):
        shutil.rmtree(folder)


@contextmanager
def explain_hub_and_disk_errors(repo_id: str, token: str | None, folder: Path) -> Iterator[None]:
    """Turns what the hub's client raises, and what the disk does, into one sentence that says what to do."""
    with explain_hub_errors(repo_id, token, folder, known_ids()), explain_os_errors(folder):
        yield

"""What every talk with the Hugging Face Hub, or a mirror (`HF_ENDPOINT`), has in common: names, and errors in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from litgpt.errors import (
    MAX_QUOTED,
    LitGPTError,
    MissingFileError,
    MissingFolderError,
    closest,
    escaped,
    one_line,
    quoted,
)
from litgpt.reading import is_failure

HF_CONFIG_FILE = "config.json"
CHECKPOINTS = Path("checkpoints")
"""Where `litgpt download` puts folders, and where a path that is none is looked for."""
REPOSITORY_ID = re.compile(r"[\w.-]+/[\w.-]+")
MAX_NAME_BYTES = 255
"""Of each part of a file's name: what file systems take."""
MAX_NAME_PARTS = 16


def relative_name(name: object, where: str) -> str:
    """A file's name that a file or a server gave, once it is known to stay inside the folder that it is joined to.

    Args:
        name: As given; parts stand between `/`.
        where: What gave it, to begin an error with.

    Raises:
        LitGPTError: It is no text, empty, absolute or too long, leads out of the folder (`..`), or has characters that
            names don't have (control characters, `\\`, a drive's `:`).
    """
    parts = name.split("/") if isinstance(name, str) else []
    is_plain = all(
        part not in ("", ".", "..")
        and part.isprintable()
        and not set(part) & set("\\:")
        and len(part.encode("utf-8", "replace")) <= MAX_NAME_BYTES
        for part in parts
    )
    if not isinstance(name, str) or not is_plain or len(parts) > MAX_NAME_PARTS:
        raise LitGPTError(
            f"{where} names a file {quoted(name):.150} that would not lie in its own folder under a plain name; "
            "don't use it, get it from a source that you trust."
        )
    return name


def hf_config_file(source: str | Path, known: Iterable[str]) -> tuple[Path, str]:
    """The `config.json` of a folder, one under `checkpoints/` too, or of a repository; and the checkpoint's name.

    Args:
        source: The folder, or `ORG/NAME` on the hub.
        known: Names on the hub, to tell one that was meant.

    Raises:
        LitGPTError: There is no such folder or repository, or it has no such file.
    """
    folders = Path(source), CHECKPOINTS / source
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is not None:
        if not (folder / HF_CONFIG_FILE).is_file():
            raise MissingFileError(
                f"{folder} has no {HF_CONFIG_FILE}; a LitGPT folder is read by Config.from_checkpoint."
            )
        return folder / HF_CONFIG_FILE, folder.resolve().name
    if folders[0].exists():
        raise MissingFolderError(f"{source} is a file; give the folder it is in.")
    repo_id = str(source)
    if not REPOSITORY_ID.fullmatch(repo_id):
        raise MissingFolderError(
            f"There is no folder {source}, and a repository is written as ORG/NAME.{closest(repo_id, known)}"
        )
    return fetch_file(repo_id, HF_CONFIG_FILE, folders[1], known), repo_id.rpartition("/")[2]


def fetch_file(repo_id: str, name: str, place: Path, known: Iterable[str]) -> Path:
    """One small file of a repository, in the client's own cache; `place` and `known` as in `explain_hub_errors`.

    Raises:
        LitGPTError: The repository has no such file, is not there, gated, or the hub can't be reached.
    """
    from huggingface_hub import errors, hf_hub_download

    with explain_hub_errors(repo_id, None, place, known):
        try:
            return Path(hf_hub_download(repo_id, name))
        except errors.RemoteEntryNotFoundError:
            raise MissingFileError(f"The repository {repo_id} has no {name}.") from None


@contextmanager
def explain_hub_errors(repo_id: str, token: str | None, place: Path, known: Iterable[str]) -> Iterator[None]:
    """Turns what the hub's client raises into one sentence that says what to do.

    Args:
        repo_id: `ORG/NAME`.
        token: An access token that was given.
        place: Where files would be.
        known: Repositories that a misspelt one is compared with.
    """
    from huggingface_hub import constants, errors

    try:
        yield
    except LitGPTError:
        raise
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, OSError) as error:
        raise LitGPTError(_sentence(error, repo_id, token, place, known)) from None
    except BaseException as error:
        if not is_failure(error):
            raise
        # The client lets its HTTP library's errors through, and which library that is depends on its version.
        if type(error).__module__.startswith(("httpx", "httpcore")):
            raise LitGPTError(_sentence(error, repo_id, token, place, known)) from None
        raise LitGPTError(
            f"{constants.ENDPOINT} gave an answer about {repo_id} that is none of the hub's ({one_line(error)}); check "
            "HF_ENDPOINT, or try again later."
        ) from None


def _sentence(error: BaseException, repo_id: str, token: str | None, place: Path, known: Iterable[str]) -> str:
    from huggingface_hub import constants, errors

    while isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, so {repo_id} is not downloaded; unset it, or copy its files to {place}."
    if isinstance(error, errors.GatedRepoError):
        terms = f"accept its terms at {constants.ENDPOINT}/{repo_id}"
        if token or _client_has_token():
            return f"{repo_id} is gated and your access token has no access to it; {terms} with that token's account."
        return f"{repo_id} is gated; {terms}, then give an access token by HF_TOKEN or --access_token."
    if isinstance(error, errors.RepositoryNotFoundError):
        near = closest(repo_id, known)
        return (
            f"There is no repository {repo_id} at {constants.ENDPOINT}, or it is private: check its name, or give an "
            f"access token by HF_TOKEN or --access_token.{near}"
        )
    if status in (401, 403):
        return (
            f"{constants.ENDPOINT} refuses your access token; make a new one and give it by HF_TOKEN or --access_token."
        )
    if status is not None:
        return f"{constants.ENDPOINT} answered {status} for {repo_id}; try again later, what has arrived is kept."
    return (
        f"{constants.ENDPOINT} can't be reached ({_first_line(error)}); check the network (or HF_ENDPOINT) "
        "and run the same command again, what has arrived is kept."
    )


def _client_has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _first_line(error: Any) -> str:
    return escaped((str(error).splitlines() or [""])[0].strip(" ."))[:MAX_QUOTED] or type(error).__name__

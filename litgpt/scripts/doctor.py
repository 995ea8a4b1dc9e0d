"""`litgpt doctor`: is this machine, and what is installed on it, fit to train and run models?

It imports nothing that may be broken: torch is asked in a process of its own.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from litgpt import __version__
from litgpt.errors import ChecksFailedError, escaped, one_line

TESTED = {"python": ("3.11", "3.13"), "torch": ("2.11", "2.13")}
"""The oldest and the newest versions that litgpt is tested with."""
MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}
"""Releases that steal credentials."""
SHOWN = ("torch", "lightning", "tokenizers", "safetensors", "huggingface_hub", "jsonargparse", "litserve")
LOW_DISK, LOW_SHARED_MEMORY = 5e9, 5e8
"""Bytes below which a warning is due: of a disk that models go to, of the memory that data workers share."""
TIMEOUT = 180
"""Seconds for another program to answer."""
NOT_FOR_USERS = ("test", "dev", "docs")
"""Extras that nobody needs to use litgpt."""

ASK_TORCH = """
import importlib, json, torch
problems = {}
for name in ("lightning.fabric", "tokenizers", "safetensors", "sentencepiece", "litserve", "matplotlib"):
    try:
        importlib.import_module(name)
    except Exception as error:
        problems[name] = f"{type(error).__name__}: {error}"
cuda = torch.cuda.is_available()
props = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({
    "problems": problems, "version": torch.__version__,
    "cuda": torch.version.cuda, "hip": getattr(torch.version, "hip", None),
    "threads": torch.get_num_threads(), "mps": torch.backends.mps.is_available(),
    "architectures": torch.cuda.get_arch_list() if cuda else [],
    "devices": [{"name": p.name, "memory": p.total_memory, "capability": [p.major, p.minor]} for p in props],
}))
"""
"""What is asked of torch, and of what else may fail to be imported."""

Verdict = Literal["ok", "note", "warning", "BROKEN"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what was found."""

    about: str
    verdict: Verdict
    text: str
    """Where something is wrong: what to do, too."""


def doctor() -> list[Finding]:
    """Check this machine, and what is installed on it, for what keeps models from being trained and run.

    Looks at versions, devices, memory, disks, the access to the hub, threads, optional packages and common mistakes.
    The exit code is 1 where something is broken.

    Raises:
        LitGPTError: Something is broken.

    Example:
        litgpt doctor
    """
    torch, problem = ask_torch()
    found: list[Finding] = []
    for finding in _findings(torch, problem):
        print(f"{finding.verdict:<9}{finding.about:<18}{finding.text}")
        found.append(finding)
    broken = [finding.about for finding in found if finding.verdict == "BROKEN"]
    if broken:
        raise ChecksFailedError(f"{', '.join(broken)}: something is broken; see above what to do.", found)
    print("Nothing is broken.")
    return found


def _findings(torch: dict[str, Any] | None, problem: str) -> Iterator[Finding]:
    yield python_version()
    yield from packages()
    yield torch_works(torch, problem)
    yield from import_problems(torch)
    yield from devices(torch, nvidia_cards())
    yield memory()
    yield from disks()
    yield from hub()
    yield from threads(torch)
    yield from extras()
    yield from mistakes()


# ----------------------------------------------------------------------------------------------------------- versions


def version_tuple(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].strip(".").split(".") if part)  # type: ignore[index]


def within(version: str, name: str) -> Literal["older", "tested", "newer"]:
    """How a version stands to those that litgpt is tested with."""
    oldest, newest = (version_tuple(bound) for bound in TESTED[name])
    number = version_tuple(version)[: len(oldest)]
    return "older" if number < oldest else "newer" if number > newest else "tested"


def python_version(version: str = platform.python_version()) -> Finding:
    """Of the interpreter that runs this."""
    oldest, newest = TESTED["python"]
    text = f"{version} at {sys.executable} (tested: {oldest} to {newest})"
    fits = within(version, "python")
    if fits == "older":
        return Finding("python", "BROKEN", f"{text}; install a newer one.")
    return Finding("python", "ok" if fits == "tested" else "note", text)


def packages() -> Iterator[Finding]:
    """Installed versions, held to those that litgpt asks for."""
    yield Finding("litgpt", "ok", f"{__version__} in {Path(__file__).parents[1]}")
    for name in SHOWN:
        yield package(name, _installed(name))


def package(name: str, version: str | None) -> Finding:
    """One of them; None: it is not installed."""
    if version is None:
        return Finding(name, "BROKEN", f"not installed; run `pip install {name}`.")
    if version in MALICIOUS.get(name, ()):
        text = (
            f"{version} is a malicious release that steals credentials: uninstall it at once, change every password, "
            f"key and token of this machine, and install {_wanted(name) or 'a newer one'}."
        )
        return Finding(name, "BROKEN", text)
    wanted = _wanted(name)
    if wanted and version_tuple(version) < version_tuple(wanted.partition(">=")[2]):
        return Finding(name, "BROKEN", f"{version} is too old; run `pip install '{wanted}'`.")
    if name in TESTED and within(version, name) == "newer":
        return Finding(name, "note", f"{version}, newer than those that litgpt is tested with")
    return Finding(name, "ok", version)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    try:
        return metadata.requires("litgpt") or []
    except metadata.PackageNotFoundError:  # run from its sources
        return []


def _wanted(name: str) -> str:
    """What litgpt asks for of a package, as in `torch>=2.11`; empty: nothing is known."""
    plain = [one.partition(";")[0].strip() for one in _requirements() if "extra ==" not in one]
    found = next((one for one in plain if re.split(r"[\[<>=!~ ]", one)[0].replace("-", "_") == name), "")
    return found if found.count(">=") == 1 and "," not in found else ""


def ask_torch() -> tuple[dict[str, Any] | None, str]:
    """What torch says of itself and its devices, or why it doesn't."""
    try:
        done = subprocess.run([sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        return None, one_line(error)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1]), ""
    lines = done.stderr.strip().splitlines()
    return None, escaped(lines[-1]) if lines else f"it ended with {done.returncode}"


def torch_works(torch: dict[str, Any] | None, problem: str) -> Finding:
    """Whether torch can be imported."""
    if torch is None:
        return Finding(
            "import torch", "BROKEN", f"fails ({problem}); reinstall it: `pip install --force-reinstall torch`."
        )
    build = f"CUDA {torch['cuda']}" if torch["cuda"] else f"ROCm {torch['hip']}" if torch["hip"] else "CPUs"
    return Finding("import torch", "ok", f"works, built for {build}")


def import_problems(torch: dict[str, Any] | None) -> Iterator[Finding]:
    """Other packages that are installed and can't be imported: one that they need is missing or does not fit."""
    for name, reason in (torch or {}).get("problems", {}).items():
        package_name = name.partition(".")[0]
        text = f"fails ({escaped(reason)}); reinstall it: `pip install --force-reinstall {package_name}`."
        yield Finding(f"import {package_name}", "BROKEN", text)


# ------------------------------------------------------------------------------------------------------------ devices


@dataclass(frozen=True)
class Cards:
    """NVIDIA's cards, as its driver tells of them."""

    names: tuple[str, ...]
    driver: str
    cuda: str
    """The newest CUDA that the driver runs; empty: not known."""


def nvidia_cards() -> Cards | None:
    """The cards of this machine; None: there are none, or no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        ask = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        lines = subprocess.run(ask, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout.splitlines()
        head = subprocess.run([program], capture_output=True, text=True, timeout=TIMEOUT).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.rpartition(", ") for line in lines if ", " in line]
    newest = re.search(r"CUDA Version: ([\d.]+)", head)
    return Cards(tuple(row[0] for row in rows), rows[0][2], newest[1] if newest else "") if rows else None


def devices(torch: dict[str, Any] | None, cards: Cards | None) -> Iterator[Finding]:
    """What models can run on, and whether torch finds the cards that are there."""
    if cards is not None:
        yield Finding(
            "driver", "ok", f"NVIDIA {cards.driver}, for CUDA up to {cards.cuda or '?'}: {_listed(cards.names)}"
        )
    if torch is None:
        return
    if torch["devices"]:
        for number, device in enumerate(torch["devices"]):
            yield card_of(number, device, torch)
    elif torch["mps"]:
        yield Finding("devices", "ok", "Apple's GPU (mps) and the CPU")
    elif cards is None:
        yield Finding("devices", "ok", "the CPU alone")
    elif torch["cuda"] is None:
        text = f"torch is built for CPUs, but there is {_listed(cards.names)}: install a build for CUDA {cards.cuda}."
        yield Finding("devices", "BROKEN", text)
    elif cards.cuda and version_tuple(torch["cuda"])[:1] > version_tuple(cards.cuda)[:1]:
        text = (
            f"torch is built for CUDA {torch['cuda']}, the driver runs up to {cards.cuda}: update the driver, or "
            f"install torch for CUDA {cards.cuda}."
        )
        yield Finding("devices", "BROKEN", text)
    else:
        hidden = "CUDA_VISIBLE_DEVICES" in os.environ
        why = "CUDA_VISIBLE_DEVICES hides it" if hidden else "check the driver: `nvidia-smi`, then restart the machine"
        yield Finding(
            "devices",
            "note" if hidden else "BROKEN",
            f"torch finds no GPU, but there is {_listed(cards.names)}; {why}.",
        )


def card_of(number: int, device: dict[str, Any], torch: dict[str, Any]) -> Finding:
    """One GPU, and whether torch has kernels for it."""
    major, minor = device["capability"]
    text = f"{device['name']}, {device['memory'] / 1e9:.0f} GB"
    known = [name.partition("_")[2].rstrip("af") for name in torch["architectures"]]
    majors = {name[:-1] for name in known if name.isdecimal()}
    if majors and torch["hip"] is None and str(major) not in majors and major < max(map(int, majors)):
        text += f": this torch has no kernels for its architecture sm_{major}{minor}; install an older torch for it."
        return Finding(f"cuda:{number}", "BROKEN", text)
    return Finding(f"cuda:{number}", "ok", text)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(escaped(name) for name in names)


# ------------------------------------------------------------------------------------------------------------ machine


def memory() -> Finding:
    """Of the host, and what a container leaves of it."""
    info = Path("/proc/meminfo")
    sizes = dict(re.findall(r"(\w+):\s+(\d+) kB", info.read_text())) if info.is_file() else {}
    total = 1024 * int(sizes.get("MemTotal", 0)) or _physical_memory()
    if not total:
        return Finding("memory", "note", "not known on this system")
    free = f", {1024 * int(sizes['MemAvailable']) / 1e9:.1f} GB free" if "MemAvailable" in sizes else ""
    limit = _cgroup("memory.max")
    inside = f"; this container may take {int(limit) / 1e9:.1f} GB" if limit.isdecimal() and int(limit) < total else ""
    return Finding("memory", "ok", f"{total / 1e9:.1f} GB{free}{inside}")


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return 0


def _cgroup(name: str) -> str:
    """A limit of the container that this runs in; empty: there is none."""
    path = Path("/sys/fs/cgroup") / name
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def disks() -> Iterator[Finding]:
    """Free space where results, downloads and temporary files go."""
    places = {"this folder": Path.cwd(), "hub's cache": _hub_cache(), "temporary": Path(tempfile.gettempdir())}
    for name, place in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        if not os.access(there, os.W_OK):
            yield Finding("disk", "warning", f"{name}: {place} can't be written to")
        elif free < LOW_DISK:
            yield Finding("disk", "warning", f"{name}: {free / 1e9:.1f} GB free at {place}, too little for most models")
        else:
            yield Finding("disk", "ok", f"{name}: {free / 1e9:.0f} GB free at {place}")
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < LOW_SHARED_MEMORY:
        text = "/dev/shm is small, and workers that read data share memory there: `docker run --shm-size 2g` gives more"
        yield Finding("disk", "warning", text)


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def hub() -> Iterator[Finding]:
    """The access to the Hugging Face Hub; the token itself is never shown."""
    try:
        from huggingface_hub import get_token

        token = get_token() is not None
    except Exception as error:  # whatever is broken there, it is told
        yield Finding("hub", "BROKEN", f"huggingface_hub fails ({one_line(error)}); reinstall it.")
        return
    said = (
        "there is an access token"
        if token
        else "no access token; HF_TOKEN or `hf auth login` gives one, for gated models"
    )
    yield Finding("hub", "ok" if token else "note", said)
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        yield Finding("hub", "note", "HF_HUB_OFFLINE is set: nothing is downloaded")
    if "HF_ENDPOINT" in os.environ:
        yield Finding("hub", "note", f"HF_ENDPOINT sends downloads to {escaped(os.environ['HF_ENDPOINT'])}")


def threads(torch: dict[str, Any] | None) -> Iterator[Finding]:
    """How many processors there are, and how many threads compute."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup("cpu.max").split()
    limit = int(quota[0]) / int(quota[1]) if len(quota) == 2 and quota[0].isdecimal() else float(usable)
    used = torch["threads"] if torch else None
    setting = os.environ.get("OMP_NUM_THREADS")
    text = f"{usable} processors, {used or '?'} threads" + (
        f" (OMP_NUM_THREADS is {escaped(setting)})" if setting else ""
    )
    if used and used > max(1.0, limit):
        text += (
            f": more than the {limit:g} that may be used slow each other down; set OMP_NUM_THREADS={int(limit) or 1}"
        )
        yield Finding("threads", "warning", text)
    elif used == 1 and usable >= 4:
        yield Finding("threads", "warning", f"{text}: one thread leaves the others idle; unset OMP_NUM_THREADS")
    else:
        yield Finding("threads", "ok", text)


# ----------------------------------------------------------------------------------------------------------- packages


def extras() -> Iterator[Finding]:
    """Optional packages, by the extra that installs them."""
    wanted: dict[str, list[str]] = {}
    for requirement in _requirements():
        name = re.split(r"[\[<>=!~; ]", requirement)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if extra and extra[1] not in NOT_FOR_USERS and name != "litgpt":
            wanted.setdefault(extra[1], []).append(name)
    for extra_name, names in sorted(wanted.items()):
        there = [f"{name} {version}" for name in names if (version := _installed(name))]
        missing = [name for name in names if not _installed(name)]
        text = ", ".join(there)
        if missing:
            text += f"{'; ' if there else ''}without {', '.join(missing)}: `pip install 'litgpt[{extra_name}]'`"
        yield Finding(f"extra {extra_name}", "note" if missing else "ok", text)


def mistakes() -> Iterator[Finding]:
    """What often goes wrong and is hard to see."""
    for name in ("torch", "lightning", "litgpt", "tokenizers", "numpy"):
        spec = find_spec(name)
        if spec is not None and spec.origin and Path(spec.origin) == Path.cwd() / f"{name}.py":
            text = f"{spec.origin} is imported in the place of the package {name}; rename it."
            yield Finding("imports", "BROKEN", text)
    program = shutil.which("litgpt")
    ours = Path(sys.executable).parent
    if program is not None and Path(program).parent.resolve() not in (ours, ours.resolve()):
        yield Finding("command", "note", f"`litgpt` is {program}, of another environment than this one, {ours}")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl") if name):
        yield Finding("compiler", "note", "no C++ compiler: train.compile and --compile don't work on the CPU")

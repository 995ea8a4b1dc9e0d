"""What a run was made on and with, for its report."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from litgpt.checkpoint.atomic import gigabytes

CPU_INFO = Path("/proc/cpuinfo")
PACKAGES = ("litgpt", "torch", "lightning", "safetensors", "tokenizers")


def describe_machine(device: torch.device, devices: int) -> list[tuple[str, str]]:
    """Devices, machine, versions and, where this is a checkout of git, the commit: what each is, and what it says."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    rows = [
        ("Device", f"{devices} × {name}" if devices > 1 else name),
        ("Machine", ", ".join((platform.node(), platform.platform(), _processor(), *_memory()))),
        ("Versions", ", ".join((f"Python {platform.python_version()}", *_versions()))),
    ]
    found = commit(Path(__file__).parents[3])
    return [*rows, ("Commit", found)] if found else rows


def _processor() -> str:
    lines = CPU_INFO.read_text(errors="replace").splitlines() if CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} × {names[0] if names else platform.processor() or platform.machine()}"


def _memory() -> list[str]:
    try:
        return [gigabytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) + " of memory"]
    except (AttributeError, ValueError, OSError):  # not POSIX
        return []


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return [*found, *([f"CUDA {torch.version.cuda}"] if torch.cuda.is_available() else [])]


def commit(folder: Path) -> str:
    """The commit that a checkout of git is at, and whether files differ from it; empty: it is no checkout."""
    if not (folder / ".git").exists():
        return ""
    said = []
    for question in ("rev-parse HEAD", "status --porcelain --untracked-files=no"):
        try:
            line = ["git", "-C", str(folder), *question.split()]
            done = subprocess.run(line, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return ""
        said.append(done.stdout.strip())
    return f"{said[0]}, with changes" if said[1] else said[0]

"""Devices, precisions and Lightning Fabric: what a run computes on and in which numbers.

Only `make_fabric` imports Lightning, so commands that run on one device without training don't pay for it.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from litgpt.errors import (
    LitGPTError,
    MissingPackageError,
    UnsupportedError,
    UsageError,
    closest,
    file_error,
    is_quiet,
    quoted,
)
from litgpt.kernels.linear import has_bfloat16
from litgpt.model.sharding import nothing, shard
from litgpt.quantize import check_quantization

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from torch.distributed.device_mesh import DeviceMesh

    from litgpt.model import GPT

PRECISIONS: dict[str, torch.dtype] = {
    "32-true": torch.float32,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "bf16-mixed": torch.float32,
    "16-mixed": torch.float32,
}
"""What `--precision` may say → the dtype parameters are kept in; `-mixed` computes products in 16 bits."""

DEVICES = ("auto", "cpu", "cuda", "mps")
STRATEGIES = ("auto", "ddp", "fsdp", "hsdp")
"""What `--strategy` may say."""
STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is the first there is of CUDA, Apple's MPS and the CPU.

    Raises:
        LitGPTError: Unknown, or absent on this machine.
    """
    kind = name.partition(":")[0]
    if kind not in DEVICES and kind != "gpu":
        raise LitGPTError(
            f"Unknown device {quoted(name)}.{closest(kind, DEVICES) or ' It is one of ' + ', '.join(DEVICES) + '.'}"
        )
    if kind == "gpu":
        kind = name = "mps" if torch.backends.mps.is_available() else "cuda"
    if kind == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    if kind == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            f"The device {name} was asked for, but torch sees no CUDA GPU here; use cpu, or install torch with CUDA."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UnsupportedError("The device mps was asked for, but it needs a Mac with Apple silicon; use cpu.")
    device = torch.device(name)
    if kind == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise LitGPTError(
            f"The device {name} was asked for; there are {torch.cuda.device_count()} CUDA GPUs here, numbered from 0."
        )
    return device


def default_precision(training: bool, device: torch.device | str | None = None) -> str:
    """What an unset `--precision` means, as in LitGPT: 16-bit products, training with float32 parameters.

    bfloat16 on the CPU and on GPUs that have it (`bf16-mixed` for training, `bf16-true` otherwise), float16 on older
    GPUs. 32-true on MPS, as torch supports it whole there; and for training on a CPU without bfloat16 instructions,
    where `bf16-mixed` would take as much memory and nine times as long.
    """
    kind = torch.device(device).type if device is not None else pick_device().type
    if kind == "mps" or (kind == "cpu" and training and not has_bfloat16()):
        return "32-true"
    bits = "16" if kind == "cuda" and not torch.cuda.is_bf16_supported() else "bf16"
    return f"{bits}-{'mixed' if training else 'true'}"


def parameter_dtype(precision: str) -> torch.dtype:
    """The dtype that parameters are kept in: float32 for `32-true` and `*-mixed`, 16 bits for the others.

    Raises:
        LitGPTError: No such precision.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise LitGPTError(
            f"Unknown precision {quoted(precision)}; it is one of {known}.{closest(precision, PRECISIONS)}"
        )
    return PRECISIONS[precision]


def product_dtype(precision: str) -> torch.dtype:
    """The dtype that matrix products are computed in."""
    return {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}[precision.partition("-")[0]]


def training_precision(precision: str | None, device: torch.device | str) -> str:
    """`precision`, or the default for training on `device`.

    Raises:
        LitGPTError: Unknown, or not for training on that device.
    """
    kind = torch.device(device).type
    chosen = precision or default_precision(training=True, device=device)
    parameter_dtype(chosen)
    if chosen == "16-true":
        raise LitGPTError(
            "16-true is no precision to train in: small gradients vanish; use bf16-true, or 16-mixed on a CUDA GPU."
        )
    if chosen == "16-mixed" and kind != "cuda":
        raise LitGPTError(f"16-mixed needs a CUDA GPU, and this is a {kind} device; use bf16-mixed or 32-true.")
    if kind == "mps" and chosen != "32-true":
        raise UnsupportedError(f"{chosen} is not supported on mps; use 32-true.")
    return chosen


def quantized_precision(quantize: str | None, precision: str | None, training: bool, device: torch.device | str) -> str:
    """`precision`, or what is computed in on `device` where none is asked for, beside weights that `quantize` keeps in
    few bits: one dtype throughout, as LitGPT has it, so `bf16-true` in training too.

    Raises:
        LitGPTError: The precision or the quantization can't be had there.
    """
    chosen = precision or default_precision(training, device)
    if quantize is None:
        return training_precision(chosen, device) if training else chosen
    if precision is None:
        chosen = {"bf16-mixed": "bf16-true", "16-mixed": "32-true"}.get(chosen, chosen)
    elif precision.endswith("-mixed"):
        instead = precision.replace("-mixed", "-true")
        raise LitGPTError(f"--quantize {quantize} computes in one dtype; use --precision {instead} or leave it out.")
    check_quantization(quantize, torch.device(device), parameter_dtype(chosen))
    return training_precision(chosen, device) if training else chosen


def make_fabric(
    devices: int | str = 1,
    num_nodes: int = 1,
    precision: str | None = None,
    device: str = "auto",
    seed: int | None = None,
    strategy: str = "auto",
    needed: Callable[[], int] = int,
) -> Fabric:
    """Lightning Fabric, launched: after this call every rank runs.

    Several devices hold a whole model each and average gradients (DDP), or share out weights, gradients and optimizer
    (FSDP2; the model is to be shared out by `shard_model`). Under `torchrun` its numbers of processes count.

    Args:
        devices: How many on each host; `auto`: all GPUs there are, one CPU.
        num_nodes: Hosts.
        precision: None: `default_precision`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        seed: Of Python, numpy and torch, the same on each rank.
        strategy: One of `STRATEGIES`; one device needs none.
        needed: Bytes that a whole model takes in training, by which `auto` chooses.

    Raises:
        LitGPTError: A device or precision that is not there, no seed, or a strategy that these devices or this
            precision can't follow.
    """
    if seed is not None and not 0 <= seed < 2**32:
        raise LitGPTError(f"seed must lie between 0 and {2**32 - 1}, not {seed}.")
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.launchers import subprocess_script
    from lightning.fabric.utilities.rank_zero import rank_zero_module

    if (observer := getattr(subprocess_script, "_ChildProcessObserver", None)) is not None:
        observer.__init__.__defaults__ = (60,)  # seconds till all are killed when one has ended: time to say so
    rank_zero_module.log.addFilter(_says_more_than_was_asked)
    torch.set_float32_matmul_precision("high")
    kind = pick_device(device).type
    devices, num_nodes = process_counts(devices, num_nodes, kind)
    several = devices * num_nodes > 1
    precision = training_precision(precision, kind)
    chosen = choose_strategy(strategy, devices, num_nodes, kind, precision, needed)
    fabric = Fabric(
        accelerator=kind,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
        strategy=_sharding(devices * num_nodes) if chosen in ("fsdp", "hsdp") else chosen,
    )
    vars(fabric)["copies"] = (num_nodes if num_nodes > 1 else 2) if chosen == "hsdp" else 1
    if is_quiet():
        fabric.print = lambda *args, **kwargs: None
    if kind == "cpu":
        keep_freed_memory()
    fabric.launch()
    if several:
        atexit.register(leave_processes)
    if seed is not None:
        fabric.seed_everything(seed, verbose=False)
    return fabric


def _says_more_than_was_asked(record: logging.LogRecord) -> bool:
    return "Automatic Mixed Precision" not in record.getMessage()


def choose_strategy(
    strategy: str, devices: int, num_nodes: int, kind: str, precision: str, needed: Callable[[], int] = int
) -> Literal["auto", "ddp", "fsdp", "hsdp"]:
    """What `--strategy` means on so many devices: `auto` (one device, nothing to share), `ddp`, `fsdp` or `hsdp`.

    Left to us, a model is copied to each device (`ddp`) where that leaves a fifth of its memory free, else shared out.

    Args:
        strategy: As asked for.
        devices: On each host.
        num_nodes: Hosts.
        kind: Of device.
        precision: Of the training.
        needed: Bytes that a whole model takes in training.

    Raises:
        LitGPTError: It can't be followed.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy is one of {', '.join(STRATEGIES)}, not {quoted(strategy)}.")
    world = devices * num_nodes
    if world == 1:
        return "auto"
    if strategy == "auto":
        on_one = torch.cuda.get_device_properties(0).total_memory if kind == "cuda" else memory_limit() // devices
        strategy = "fsdp" if needed() > 0.8 * on_one and precision != "16-mixed" else "ddp"
    if strategy in ("fsdp", "hsdp") and precision == "16-mixed":
        raise LitGPTError(
            f"--strategy {strategy} can't scale the losses of 16-mixed over shared-out gradients: use --precision "
            "bf16-mixed, or --strategy ddp."
        )
    if strategy == "hsdp" and (world % 2 or world < 4):
        raise LitGPTError(
            f"--strategy hsdp makes copies of a model that is shared out, so it needs an even number of devices from 4 "
            f"on, not {world}; use --strategy fsdp."
        )
    return strategy  # type: ignore[return-value]


def _sharding(world: int) -> Any:
    """Fabric's strategy for models whose parameters are DTensors; `shard_model` makes them."""
    from lightning.fabric.strategies import ModelParallelStrategy

    return ModelParallelStrategy(lambda model, mesh: model, data_parallel_size=world, tensor_parallel_size=1)


def shards(fabric: Fabric) -> bool:
    """Whether the fabric's models are to be shared out by `shard_model`."""
    from lightning.fabric.strategies import ModelParallelStrategy

    return isinstance(fabric.strategy, ModelParallelStrategy)


def shard_model(model: GPT, fabric: Fabric, prepare: Callable[[nn.Module], None] = nothing) -> None:
    """Shares a model on `meta`, with its method attached, out over the fabric's ranks, and makes room for what is this
    rank's; `prepare` as in `litgpt.model.sharding.shard`."""
    if any(parameter.dim() == 0 for parameter in model.parameters()):
        raise UnsupportedError(
            "FSDP2 can't share out parameters that are a single number, as this model has: use --strategy ddp."
        )
    shard(model, sharing_mesh(fabric), prepare)
    model._apply(lambda one: torch.empty_like(one, device=fabric.device) if one.device.type == "meta" else one)


def sharing_mesh(fabric: Fabric) -> DeviceMesh:
    """The ranks over which the fabric's models are shared out; of two dimensions where there are several copies."""
    from torch.distributed.device_mesh import init_device_mesh

    copies = vars(fabric)["copies"]
    shape = (fabric.world_size,) if copies == 1 else (copies, fabric.world_size // copies)
    names = ("shard",) if copies == 1 else ("replicate", "shard")
    return init_device_mesh(fabric.device.type, shape, mesh_dim_names=names)


def local_devices(place: torch.device, devices: int | Literal["auto"] = "auto") -> list[torch.device]:
    """So many devices of the kind of `place` on this machine; `auto`: all that there are.

    Raises:
        LitGPTError: There are fewer.
    """
    present = torch.cuda.device_count() if place.type == "cuda" else 1
    wanted = present if devices == "auto" else devices
    if not (isinstance(wanted, int) and 1 <= wanted <= present):
        raise LitGPTError(f"{devices} devices were asked for, but this machine has {present} ({place.type}).")
    return [torch.device("cuda", number) for number in range(wanted)] if place.type == "cuda" else [place]


def join_processes(place: torch.device, devices: int | Literal["auto"] = "auto") -> tuple[torch.device, int]:
    """One process a GPU, or those of `torchrun`, on CPUs too: this process's device, and how many they are. They form
    torch's default process group. Without `torchrun`, Lightning Fabric starts the others.

    Args:
        place: The kind of device.
        devices: How many processes; `auto`: one for each GPU, or all that `torchrun` started.

    Raises:
        LitGPTError: There are not so many.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
        if devices not in ("auto", world):
            raise LitGPTError(f"{devices} devices were asked for, but torchrun started {world} processes.")
    else:
        world, local = len(local_devices(place, devices)), 0
        if world > 1:
            from lightning.fabric import Fabric

            fabric = Fabric(accelerator="cuda", devices=world, strategy="ddp")
            fabric.launch()
            local = fabric.local_rank
    if world == 1:
        return place, 1
    if place.type == "cuda":
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group()
    atexit.register(leave_processes)
    return place, world


def leave_processes() -> None:
    """Ends the process group, if there is one.

    Gloo's threads give back tensors after a collective is over and need the interpreter for it: one that is still at
    it when the interpreter ends aborts the process. They end with the group, once nobody holds it.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


def process_counts(devices: int | str, num_nodes: int, kind: str) -> tuple[int, int]:
    """How many processes on each host, and how many hosts."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    present = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind)
    if devices == "auto":
        return present or 1, num_nodes
    try:
        wanted = int(devices)
    except ValueError:
        raise LitGPTError(f"devices must be a number or auto, not {quoted(devices)}.") from None
    if wanted == -1:
        return present or 1, num_nodes
    if wanted < 1 or num_nodes < 1:
        raise LitGPTError(f"devices ({wanted}) and num_nodes ({num_nodes}) must be at least 1.")
    if present is not None and wanted > present:
        raise LitGPTError(f"{wanted} devices were asked for, but this machine has {present} ({kind}).")
    if present is None and wanted > max(2, os.cpu_count() or 1):  # two test a program even on one core
        raise LitGPTError(f"{wanted} devices were asked for, but this machine has {os.cpu_count()} CPU cores.")
    return wanted, num_nodes


def output_path(path: Path) -> Path:
    """The folder a command writes to: `path`, or below `$LIGHTNING_ARTIFACTS_DIR` where that is set and `path`
    relative."""
    return Path(os.environ.get("LIGHTNING_ARTIFACTS_DIR", "")) / path


def output_dir(path: Path) -> Path:
    """The folder a command writes to (see `output_path`), made if it isn't there.

    Raises:
        LitGPTError: It can't be made or written to; better known before the training than after.
    """
    folder = output_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise file_error(error, f"Cannot write to {folder} ({error.strerror}); choose another --out_dir.") from None
    return folder


def keep_freed_memory() -> bool:
    """Lets the C library keep the memory of freed tensors for the next ones, instead of returning it and faulting in
    new pages.

    A training step allocates the same large tensors again and again; fresh pages cost ten times reused ones. Only glibc
    knows this; elsewhere nothing happens. The process keeps its peak memory until it ends.

    Returns:
        Whether it was set.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    m_trim_threshold, m_mmap_max = -1, -4
    libc: Any = ctypes.CDLL(None)
    return bool(libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, 2**31 - 1))


def check_compiler(device: torch.device, flag: str = "--compile true") -> None:
    """Raises a LitGPTError that names `flag` where `torch.compile` has nothing to compile with."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise MissingPackageError(
                f"{flag} needs triton; install it with `pip install triton`, or leave the flag out."
            )
    elif device.type == "cpu":
        compilers = [os.environ.get("CXX", ""), "g++", "clang++", "cl" if sys.platform == "win32" else ""]
        if not any(shutil.which(name) for name in compilers if name):
            raise LitGPTError(f"{flag} needs a C++ compiler, g++ say; install one, or leave the flag out.")
    else:
        here = device.type
        raise LitGPTError(f"{flag} has no compiler for {here} here, and this runs on {here}; leave it out.")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on `device`, within the limit of its container; None where the system doesn't
    tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    known = [found for found in (_available_memory(), _left_in_group()) if found is not None]
    return min(known, default=None)


def memory_limit() -> int:
    """Bytes that this machine has, or its container may use; the same in each of its processes at any time."""
    found = []
    with suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(ValueError, OSError):
        found.append(int((CGROUP / "memory.max").read_text()))
    return min(found, default=2**63)


def _available_memory() -> int | None:
    if MEMINFO.is_file():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _left_in_group() -> int | None:
    """What a container's limit leaves; pages of files can be dropped, so they don't count as used."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        pages = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(pages.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


def peak_memory(device: torch.device) -> int:
    """The most bytes in use so far: on a GPU what torch allocated there, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    told = STATUS.read_text().splitlines() if STATUS.is_file() else []
    for line in told:  # getrusage would count the program that started this one as well
        if line.startswith("VmHWM"):  # not all that call themselves Linux have it
            return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

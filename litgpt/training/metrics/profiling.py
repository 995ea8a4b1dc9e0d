"""A trace of some optimizer steps by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from litgpt.checkpoint.atomic import atomic_file

if TYPE_CHECKING:
    from torch.profiler import profile

    from litgpt.training.run import Run

BEFORE = 2
"""Steps that are not traced: the first makes what later ones find, the second warms the profiler up."""
TRACE, TABLE = "profile.json", "profile.txt"
ROWS = 40


@contextmanager
def profiled(run: Run) -> Iterator[Callable[[], None]]:
    """What to call after each optimizer step, so that `train.profile` of them are traced on the first rank: into
    `profile.json`, and what took longest into `profile.txt`, both in `out_dir`."""
    count, first = run.train.profile, run.fabric.is_global_zero
    if not count or not first:
        yield lambda: None
        return
    from torch.profiler import ProfilerActivity, profile, schedule

    on_gpu = torch.cuda.is_available()
    written: list[Path] = []

    def write(found: profile) -> None:
        with atomic_file(run.out_dir / TRACE) as part:
            # The trace's name says whether it is packed.
            named = part.with_name(f"{part.name}.json")
            found.export_chrome_trace(str(named))
            named.replace(part)
        with atomic_file(run.out_dir / TABLE) as part:
            by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
            part.write_text(found.key_averages().table(sort_by=by, row_limit=ROWS) + "\n", encoding="utf-8")
        written.append(run.out_dir / TRACE)
        run.fabric.print(
            f"Profile: {run.out_dir / TRACE} (for https://ui.perfetto.dev or chrome://tracing), {run.out_dir / TABLE}."
        )

    profiler = profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
        schedule=schedule(wait=BEFORE - 1, warmup=1, active=count, repeat=1),
        on_trace_ready=write,
        record_shapes=True,
    )
    with profiler:
        yield profiler.step
    if not written:
        run.fabric.print(f"No profile was written: it begins after {BEFORE} steps, and the run ended before.")

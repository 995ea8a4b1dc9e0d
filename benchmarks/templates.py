"""What it costs to run chat templates in a process of their own, with limits, against Jinja in this one, without.

    python benchmarks/templates.py

Prints a table of the time a rendering takes, for conversations of several lengths.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from litgpt.prompts import rendering, sandbox

SOURCE = (
    "{{ bos_token }}{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
    "You are helpful.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LENGTHS = {2: 200, 20: 100, 200: 20}
"""Messages of a conversation → renderings."""


def main() -> None:
    start = time.perf_counter()
    renderer = rendering.Renderer()
    renderer.ask(SOURCE, None)
    milliseconds = (time.perf_counter() - start) * 1000
    print(f"start, once: {milliseconds:.0f} ms; memory: {memory(renderer.pid)} MB")
    print(f"limits, in one operation too: {rendering.MAX_SECONDS:.0f} s, {rendering.MAX_BYTES // 10**6} MB\n")
    print("| messages | characters | Jinja here, no limits: CPU, wall | own process, limits: CPU, wall |")
    print("|---|---|---|---|")
    plain = sandbox.Sandbox().from_string(SOURCE)
    for length, times in LENGTHS.items():
        words = "Some words of a message. " * 12
        messages = [{"role": ("user", "assistant")[i % 2], "content": words} for i in range(length)]
        given = {"bos_token": "<s>", "messages": messages}
        here = measure(partial(plain.render, **given), times, os.getpid())
        there = measure(partial(renderer.ask, SOURCE, given), times, os.getpid(), renderer.pid)
        print(f"| {length} | {len(plain.render(**given))} | {here} | {there} |")
    renderer.close()


def measure(run: Callable[[], object], times: int, *pids: int) -> str:
    """CPU time of some processes and wall time, in microseconds a run, the best of five rounds."""
    rounds = []
    for _ in range(5):
        cpu, start = cpu_time(pids), time.perf_counter()
        for _ in range(times):
            run()
        rounds.append((cpu_time(pids) - cpu, time.perf_counter() - start))
    cpu, wall = (min(values) / times * 1e6 for values in zip(*rounds, strict=True))
    return f"{cpu:.0f} µs, {wall:.0f} µs"


def cpu_time(pids: Sequence[int]) -> float:
    """Seconds (Linux: a process's clock has a number that is made of the process's)."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def memory(pid: int) -> int:
    """Resident memory of a process in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 10**6


if __name__ == "__main__":
    main()

"""CPU seconds until the command line answers, beside another LitGPT.

    python benchmarks/startup.py --peer PYTHON

PYTHON is the interpreter of an environment with litgpt==0.5.13 (`pip install litgpt==0.5.13 sentencepiece`). Runs are
interleaved; the table holds medians of user + system time, and the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile

RUN = "import sys; from litgpt.__main__ import main; sys.argv = ['litgpt', *sys.argv[1:]]; sys.exit(main())"
CASES: dict[str, list[str]] = {
    "import litgpt": ["-c", "import litgpt"],
    "litgpt --help": ["-c", RUN, "--help"],
    "litgpt finetune_lroa": ["-c", RUN, "finetune_lroa"],
    "litgpt finetune_lora --help": ["-c", RUN, "finetune_lora", "--help"],
}
"""What is timed -> the interpreter's arguments."""


def cpu_seconds(python: str, arguments: list[str]) -> float:
    """User and system time of one run; of litgpt, as installed for `python`, wherever the benchmark is started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as nowhere:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        done = subprocess.run([python, *arguments], cwd=nowhere, env=environment, capture_output=True, text=True)
    if "Traceback" in done.stderr:
        sys.exit(f"{python} {' '.join(arguments)} failed:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="python with litgpt==0.5.13")
    parser.add_argument("--python", default=sys.executable, help="python with this litgpt (default: this one)")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each (default: %(default)s)")
    options = parser.parse_args()

    pythons = (options.python, options.peer)
    for arguments in CASES.values():
        for python in pythons:
            cpu_seconds(python, arguments)  # compiles the modules and warms the disk cache
    print(f"CPU seconds, median of {options.rounds} interleaved runs\n")
    print(f"{'':<30}{'ours':>8}{'LitGPT 0.5.13':>16}{'ratio':>9}")
    for name, arguments in CASES.items():
        pairs = [tuple(cpu_seconds(python, arguments) for python in pythons) for _ in range(options.rounds)]
        ours, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(ours / peer for ours, peer in pairs)
        print(f"{name:<30}{ours:>8.3f}{peer:>16.3f}{ratio:>9.4f}")


if __name__ == "__main__":
    main()

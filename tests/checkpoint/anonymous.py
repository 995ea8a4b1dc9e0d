"""How much anonymous memory code takes: pages of its own, not of mapped files."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.paths import ROOT

WATCH = """
import re, threading, time
class Watch:
    def __init__(self):
        self.first = self.peak = self.now()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
    def now(self):
        with open("/proc/self/status") as status:
            return 1024 * int(re.search(r"RssAnon:\\s+(\\d+) kB", status.read())[1])
    def run(self):
        while not self.done.wait(0.001):
            self.peak = max(self.peak, self.now())
    def growth(self):
        self.done.set()
        self.thread.join()
        return max(self.peak, self.now()) - self.first
"""


def peak_growth(setup: str, *steps: str) -> list[int]:
    """Bytes of anonymous memory that each step takes at its peak, one after the other in a new process."""
    watched = "".join(f"watch = Watch()\n{step}\nprint('growth', watch.growth())\n" for step in steps)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"{WATCH}\n{setup}\n{watched}"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("growth")]

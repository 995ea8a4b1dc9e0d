"""Kernels in Triton's interpreter against float64: dtypes, odd sizes, strides, nothing at all; gradients; fakes.

The process of these tests alone interprets: Triton looks at the environment when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from litgpt.kernels import triton
from tests.paths import ROOT

PLACE = os.environ.get("LITGPT_TEST_TRITON", "")
"""Where Triton is, if not in this environment: it takes a gigabyte, and torch computes otherwise beside it."""


@pytest.mark.slow
@pytest.mark.skipif(not PLACE and find_spec("triton") is None, reason="needs triton, or a folder $LITGPT_TEST_TRITON")
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/interpreted.py"]
    path = os.pathsep.join(filter(None, (PLACE, os.environ.get("PYTHONPATH"), str(ROOT))))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-4000:]


def test_they_are_off_on_a_cpu_and_by_a_variable(monkeypatch):
    assert not triton.chosen(torch.ones(2))
    monkeypatch.setenv(triton.SWITCH, "0")
    triton.available.cache_clear()
    try:
        assert not triton.available()
    finally:
        triton.available.cache_clear()

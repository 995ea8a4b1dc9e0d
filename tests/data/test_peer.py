"""Instruction samples against LitGPT 0.5.13's, id by id."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from litgpt.data import JSON
from litgpt.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

PEER = """
import json, sys
from pathlib import Path
from litgpt.data import JSON
from litgpt.tokenizer import Tokenizer
data, folder, style = sys.argv[1:]
module = JSON(Path(data), mask_prompt=True, val_split_fraction=0.2, prompt_style=style)
module.connect(Tokenizer(folder), batch_size=1, max_seq_length=-1)
module.setup()
sets = {"train": module.train_dataset, "val": module.test_dataset}
samples = {name: [d[i] for i in range(len(d))] for name, d in sets.items()}
rows = {n: [[s["input_ids"].tolist(), s["labels"].tolist()] for s in found] for n, found in samples.items()}
print(json.dumps(rows))
"""


@pytest.mark.parametrize("style", ["alpaca", "tinyllama", "phi-2"])
def test_ids_labels_and_split_are_litgpts(
    style: str, shared_assets: Path, stories260k: Path, peer_python: str, tmp_path: Path
) -> None:
    rows = json.loads((shared_assets / "instruct" / "alpaca_en_demo.json").read_text())[:60]
    if style != "alpaca":  # LitGPT loses the input where the style has no place for it; here it is kept
        rows = [{**row, "input": ""} for row in rows]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    command = [peer_python, "-I", "-W", "ignore", "-c", PEER, str(path), str(stories260k), style]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    module = JSON(path, mask_prompt=True, val_split_fraction=0.2, prompt_style=style)
    module.connect(Tokenizer(stories260k))
    module.setup()
    for name, dataset in (("train", module.train_dataset), ("val", module.val_dataset)):
        ours = [[sample["input_ids"].tolist(), sample["labels"].tolist()] for sample in dataset]
        assert ours == theirs[name]

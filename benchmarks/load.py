"""CPU seconds and memory from a folder to the first logits, beside LitGPT and transformers; memory of converting.

    python benchmarks/load.py [FOLDER] [--peer PYTHON] [--rounds 5]

FOLDER is a Hugging Face folder; without one, a random model of SmolLM2-135M's size is made. PYTHON is the interpreter
of an environment with litgpt==0.5.13. Each run is a process of its own, runs are interleaved, and medians are printed:
CPU seconds (user + system, one thread) of the imports, of loading, and of the first forward pass over 16 tokens; and
the peak of anonymous memory after the imports, by the size of the weights (mapped file pages don't count).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEER = "LitGPT 0.5.13"
STAGES = ("imports", "load", "forward")

FRAME = """
import gc, json, re, sys, threading, time
folder, dtype, watched = sys.argv[1], sys.argv[2], sys.argv[3] == "memory"
clock = [time.process_time()]
def anonymous():
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"RssAnon:\\s+(\\d+) kB", status.read())[1])
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())
def lap():
    clock.append(time.process_time())
{imports}
gc.collect()  # what the imports leave to the collector is theirs to pay
lap()
before = anonymous()
if watched:
    watcher = threading.Thread(target=watch)
    watcher.start()
{load}
lap()
{forward}
lap()
peak = max(peak, anonymous())
if watched:
    done.set()
    watcher.join()
print(json.dumps(dict(clock=clock, memory=peak - before)))
"""
FORWARD = "with torch.inference_mode():\n    model(torch.arange(16)[None])"
OURS = ("import torch\nfrom litgpt.checkpoint.reader import load_model", "model = load_model(folder)", FORWARD)
THEIRS = (
    "import torch\nimport lightning as L\nfrom litgpt import GPT, Config\nfrom litgpt.utils import load_checkpoint",
    "from pathlib import Path\n"
    "precision = {'bfloat16': 'bf16-true', 'float16': '16-true', 'float32': '32-true'}[dtype]\n"
    "fabric = L.Fabric(devices=1, accelerator='cpu', precision=precision)\n"
    "with fabric.init_module(empty_init=True):\n"
    "    model = GPT(Config.from_file(Path(folder) / 'model_config.yaml'))\n"
    "model = fabric.setup_module(model.eval())\n"
    "load_checkpoint(fabric, model, Path(folder) / 'lit_model.pth')",
    FORWARD,
)
LLM = (
    "import torch\nfrom litgpt import LLM",
    "llm = LLM.load(folder)",
    FORWARD.replace("model(", "llm.model("),
)
TRANSFORMERS = (
    "import torch\nfrom transformers import AutoModelForCausalLM",
    "model = AutoModelForCausalLM.from_pretrained(folder, dtype='auto')",
    FORWARD,
)
TO_LITGPT = (
    "from litgpt.checkpoint.convert import to_litgpt\nfrom litgpt.checkpoint.dtypes import dtype_of",
    "to_litgpt(folder)",
    "",
)
FROM_LITGPT = ("from litgpt.checkpoint.convert import to_hf", "to_hf(folder, folder + '-exported')", "")


def run(python: str, program: tuple[str, str, str], folder: Path, dtype: str, what: str = "time") -> dict[str, float]:
    """One fresh process: CPU seconds of each stage, or with `what="memory"` the bytes of anonymous memory."""
    imports, load, forward = program
    code = FRAME.replace("{imports}", imports).replace("{load}", load).replace("{forward}", forward)
    ours = {"PYTHONPATH": str(ROOT)} if python == sys.executable else {}
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **ours}
    with tempfile.TemporaryDirectory() as nowhere:
        command = [python, "-W", "ignore", "-c", code, str(folder), dtype, what]
        done = subprocess.run(command, env=environment, cwd=nowhere, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python} failed:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    clock = [0.0, *result["clock"][1:]]
    return {stage: clock[i + 1] - clock[i] for i, stage in enumerate(STAGES)} | {"memory": result["memory"]}


def prepare(folder: Path | None, work: Path) -> tuple[Path, Path, str, int]:
    """A Hugging Face folder and a LitGPT one of the same model, the type of its weights, and their size in bytes."""
    from litgpt.checkpoint.convert import to_litgpt
    from litgpt.checkpoint.layout import CONFIG_FILES, hf_weight_files
    from litgpt.checkpoint.reader import EMBEDDING, load_pth

    hf, lit = work / "hf", work / "lit"
    if folder is None:
        make_random(hf)
    else:
        hf.mkdir()
        for name in CONFIG_FILES:
            if (folder / name).is_file() and name != "model_config.yaml":
                shutil.copy(folder / name, hf)
        for file in hf_weight_files(folder):
            shutil.copy(file, hf)
    shutil.copytree(hf, lit)
    to_litgpt(lit)
    for file in hf_weight_files(lit):
        file.unlink()
    dtype = str(load_pth(lit / "lit_model.pth")[EMBEDDING].dtype).removeprefix("torch.")
    return hf, lit, dtype, sum(file.stat().st_size for file in hf_weight_files(hf))


def make_random(folder: Path) -> None:
    """A random model of SmolLM2-135M's size, bfloat16."""
    import torch

    from litgpt.checkpoint.atomic import atomic_folder
    from litgpt.checkpoint.weights import lazy
    from litgpt.checkpoint.writer import write_hf
    from litgpt.config import Config
    from litgpt.model import GPT

    config = Config.from_name("SmolLM2-135M")
    state = {
        name: torch.randn(tensor.shape, dtype=torch.bfloat16) * 0.02
        for name, tensor in GPT.skeleton(config).state_dict().items()
        if name != "lm_head.weight"
    }
    with atomic_folder(folder) as temporary:
        write_hf(temporary, config, lazy(state))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--peer", help="python of an environment with litgpt==0.5.13")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as work:
        hf, lit, dtype, size = prepare(arguments.folder, Path(work))
        runs: dict[str, tuple[str, tuple[str, str, str], Path]] = {
            "litgpt (here), Hugging Face folder": (sys.executable, OURS, hf),
            "litgpt (here), LitGPT folder": (sys.executable, OURS, lit),
            "transformers": (sys.executable, TRANSFORMERS, hf),
        }
        if arguments.folder:  # which has a tokenizer
            runs["litgpt (here), LLM.load"] = (sys.executable, LLM, lit)
        if arguments.peer and arguments.folder:
            runs["LitGPT 0.5.13, LLM.load"] = (arguments.peer, LLM, lit)
        if arguments.peer:
            runs[PEER] = (arguments.peer, THEIRS, lit)
        times: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        for _ in range(arguments.rounds):
            for name, (python, program, folder) in runs.items():
                times[name].append(run(python, program, folder, dtype))
        runs["litgpt (here), convert_to_litgpt"] = (sys.executable, TO_LITGPT, hf)
        runs["litgpt (here), convert_from_litgpt"] = (sys.executable, FROM_LITGPT, lit)
        memory = {name: run(*settings, dtype, "memory")["memory"] for name, settings in runs.items()}
    report(times, memory, size)


def report(times: dict[str, list[dict[str, float]]], memory: dict[str, float], size: int) -> None:
    """Prints medians, and each row's share of the time of the reference: LitGPT, else transformers."""
    reference = PEER if PEER in times else "transformers"
    print(f"weights: {size / 1e6:.0f} MB; CPU seconds, one thread, medians; shares of {reference}'s time\n")
    columns = (*STAGES, "load+forward", "share", "all", "share", "memory/weights")
    print("| " + " | ".join((f"{'':36}", *columns)) + " |")
    print("|---" * (len(columns) + 1) + "|")

    def median(name: str, *stages: str) -> float:
        return statistics.median(sum(found[stage] for stage in stages) for found in times[name])

    for name, nbytes in memory.items():
        cells = ["–"] * (len(columns) - 1)
        if name in times:
            work, everything = median(name, "load", "forward"), median(name, *STAGES)
            shares = work / median(reference, "load", "forward"), everything / median(reference, *STAGES)
            numbers = (*(median(name, stage) for stage in STAGES), work, shares[0], everything, shares[1])
            cells = [f"{number:.2f}" for number in numbers]
        print("| " + " | ".join((f"{name:36}", *cells, f"{nbytes / size:.2f}")) + " |")


if __name__ == "__main__":
    main()

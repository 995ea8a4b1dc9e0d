"""Tokens a CPU second of pretraining steps, beside LitGPT 0.5.13, transformers and nanoGPT, in one run.

    python benchmarks/pretrain.py [--peer PYTHON] [--nanogpt FOLDER] [--dtypes float32 bfloat16] [--compile]
                                  [--rounds 7]

PYTHON is the interpreter of an environment with litgpt==0.5.13; without one, an environment is made for the time of
the benchmark. FOLDER is a checkout of nanoGPT. Needs transformers beside this package.

The model is a Llama of 6 layers, 384 wide, 32,000 tokens of vocabulary, all contenders starting from the same weights
(nanoGPT from its own, of its nearest shape); a step is over 2 blocks of 512 tokens, with AdamW and gradients clipped
to a norm of 1. LitGPT runs as it comes (AdamW isn't fused on a CPU) and with a fused one, transformers with a fused
one; `--compile` adds LitGPT compiled as a whole, its default. Ours runs its whole training loop, logs included, the
others the steps of theirs. Each contender is a process of its own with one thread; they take turns within a round,
and what is compared is the median of the rounds' ratios of process CPU time. Before anything is timed, losses are
compared. The share of the machine's peak is of a matrix product's speed, measured between the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from contenders import Contender, in_turn, litgpt_folder, paired, peer_python, table

BATCH, LENGTH = 2, 512
SIZE = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1024, vocab_size=32000)

FRAME = """
import json, sys, time
import torch
torch.set_num_threads(1)
folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
option = sys.argv[3]
precision = {torch.float32: "32-true", torch.bfloat16: "bf16-true"}[dtype]
torch.manual_seed(0)
blocks = torch.randint(32000, (BATCH, LENGTH + 1))
inputs, targets = blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous()
def tell(**answer):
    print(json.dumps(answer), flush=True)
def wait():
    if not sys.stdin.readline():
        sys.exit()
    return time.process_time()
def steps(one):
    tell()
    while True:
        start = wait()
        loss = one()
        tell(seconds=time.process_time() - start, loss=loss)
{program}
"""
OURS = """
import tempfile
from pathlib import Path
from litgpt.args import EvalArgs, TrainArgs
from litgpt.checkpoint.reader import load_model
from litgpt.runtime import make_fabric
from litgpt.training.loop import fit
from litgpt.training.run import Run
class Turns:
    start = None
    def log_metrics(self, metrics, step=None):
        tell(seconds=time.process_time() - self.start, loss=metrics["loss"])
        self.start = wait()
    def finalize(self, status):
        pass
fabric = make_fabric(1, precision=precision, device="cpu", seed=1)
fabric.print = lambda *args, **kwargs: None
turns = Turns()
train = TrainArgs(
    global_batch_size=BATCH, micro_batch_size=BATCH, max_steps=10**6, lr_warmup_steps=0, max_norm=1.0,
    max_seq_length=LENGTH,
)
run = Run(
    model=load_model(folder, dtype=dtype), train_dataset=[dict(input_ids=block, labels=block) for block in blocks],
    val_dataset=None, train=train, eval=EvalArgs(final_validation=False), out_dir=Path(tempfile.mkdtemp()),
    save=lambda folder: None, fabric=fabric, loggers=[turns],
    optimizer=dict(class_path="AdamW", init_args=dict(lr=1e-4, weight_decay=0.1)),
)
tell()
turns.start = wait()
fit(run)
"""
THEIRS = """
from pathlib import Path
import lightning as L
from litgpt import GPT, Config
from litgpt.utils import chunked_cross_entropy
fabric = L.Fabric(devices=1, accelerator="cpu", precision=precision)
with fabric.init_module():
    model = GPT(Config.from_file(Path(folder) / "model_config.yaml"))
model.load_state_dict(torch.load(Path(folder) / "lit_model.pth", mmap=True, weights_only=True))
model.max_seq_length = LENGTH
if option == "compiled":
    model = torch.compile(model)
model = fabric.setup(model)
fused = dict(fused=True) if option == "fused" else {}
optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, **fused))
def one():
    loss = chunked_cross_entropy(model(inputs), targets)
    fabric.backward(loss)
    fabric.clip_gradients(model, optimizer, max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
steps(one)
"""
HF = """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
def one():
    loss = model(input_ids=blocks[:, :-1], labels=targets, shift_labels=targets).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
steps(one)
"""
NANOGPT = """
sys.path.insert(0, option)
from model import GPT, GPTConfig
shape = dict(block_size=LENGTH, vocab_size=32000, n_layer=6, n_head=6, n_embd=384, dropout=0.0, bias=False)
model = GPT(GPTConfig(**shape)).to(dtype)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
def one():
    _, loss = model(inputs, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
steps(one)
"""
PRODUCT = """
a = torch.randn(1024, 1024).to(dtype)
def one():
    for _ in range(4):
        a @ a
    return 0.0
steps(one)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of an environment with litgpt==0.5.13")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="LitGPT compiled, too")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{BATCH} x {LENGTH} tokens a step, one thread, {arguments.rounds} rounds\n")
    with tempfile.TemporaryDirectory() as work:
        peer = peer_python(arguments.peer, Path(work) / "peer")
        folder, n_parameters = new_model(Path(work) / "model")
        theirs, here = litgpt_folder(folder, Path(work) / "litgpt"), sys.executable
        contenders = {
            "litgpt (here)": (here, OURS, folder, ""),
            "LitGPT 0.5.13, fused AdamW": (peer, THEIRS, theirs, "fused"),
            "LitGPT 0.5.13, as it comes": (peer, THEIRS, theirs, ""),
            "transformers, fused AdamW": (here, HF, folder, ""),
        }
        if arguments.compile:
            contenders["LitGPT 0.5.13, compiled"] = (peer, THEIRS, theirs, "compiled")
        if arguments.nanogpt:
            contenders["nanoGPT, fused AdamW"] = (here, NANOGPT, folder, str(arguments.nanogpt.resolve()))
        rows: list[list[object]] = []
        for dtype in arguments.dtypes:
            rows += compare(contenders, dtype, n_parameters, arguments.rounds)
    print(table(["dtype", "contender", "CPU s a step", "tokens/s", "here is faster by", "of the peak"], rows))


def new_model(folder: Path) -> tuple[Path, int]:
    """A Hugging Face folder with random weights, and how many of them a token is multiplied with."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZE, max_position_embeddings=LENGTH, tie_word_embeddings=False))
    model.save_pretrained(folder)
    return folder, sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1 and "embed_tokens" not in name)


def compare(
    contenders: dict[str, tuple[str, str, Path, str]], dtype: str, n_parameters: int, rounds: int
) -> list[list[object]]:
    """A row for each contender."""
    frame = f"BATCH, LENGTH = {BATCH}, {LENGTH}\n{FRAME}"
    running = [
        Contender(name, python, frame.replace("{program}", program), folder, dtype, option)
        for name, (python, program, folder, option) in contenders.items()
    ]
    product = Contender("a matrix product", sys.executable, frame.replace("{program}", PRODUCT), "", dtype, "")
    losses = [contender.ask()["loss"] for contender in running]  # warms up, too
    tolerance = 1e-4 if dtype == "float32" else 1e-2  # LitGPT's softmax is rounded to bfloat16
    for contender, loss in zip(running, losses, strict=True):
        if abs(loss - losses[0]) > tolerance * losses[0] and not contender.name.startswith("nanoGPT"):
            sys.exit(f"{contender.name}: a loss of {loss:.5f}, not {losses[0]:.5f}: nothing to compare.")
    *seconds, peak = [[answer["seconds"] for answer in found] for found in in_turn([*running, product], rounds)]
    attention = 6 * 2 * 384 * LENGTH / 2  # of a token, forward, over half of the positions on average
    work = BATCH * LENGTH * (6 * n_parameters + 3 * attention)
    speed = 4 * 2 * 1024**3 / min(peak)
    rows: list[list[object]] = []
    for contender, own in zip(running, seconds, strict=True):
        median = statistics.median(own)
        cells = (f"{median:.3f}", f"{BATCH * LENGTH / median:.0f}", f"{paired(own, seconds[0]):.2f}")
        rows.append([dtype, contender.name, *cells, f"{work / median / speed:.0%}"])
    for contender in (*running, product):
        contender.close()
    return rows


if __name__ == "__main__":
    main()

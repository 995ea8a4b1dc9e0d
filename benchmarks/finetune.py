"""Real tokens a CPU second of LoRA steps, beside LitGPT 0.5.13 and transformers with peft, in one run.

    python benchmarks/finetune.py FOLDER [--peer PYTHON] [--dtype float32] [--samples 8] [--rounds 7]

FOLDER is a Hugging Face folder (SmolLM2-135M); PYTHON is the interpreter of an environment with litgpt==0.5.13; without
one, an environment is made for the time of the benchmark. Needs transformers and peft beside this package.

An optimizer step is over 8 samples whose lengths are those of Alpaca (log-normal, 120 tokens on average, at most 512),
always the same ones; rank 8 on queries and values. LitGPT runs at micro-batches of 1 (its default, which pads nothing)
and of 4; so does transformers with peft, with a fused optimizer, its best. Labels are all tokens, or the answers alone
(about 55 %). Each contender is a process of its own with one thread; they take turns within a round, and what is
compared is the median of the rounds' ratios of process CPU time. Before anything is timed, losses are compared. Ours
runs its whole training loop, logs included; the others the steps of theirs. Memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from contenders import Contender, in_turn, litgpt_folder, paired, peer_python, table

FRAME = """
import json, math, random, statistics, sys, time
import torch
torch.set_num_threads(1)
folder, dtype, masked = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[4] == "masked"
n, micro = int(sys.argv[3]), int(sys.argv[5])
precision = {torch.float32: "32-true", torch.bfloat16: "bf16-true"}[dtype]
rng = random.Random(0)
spread = statistics.NormalDist(math.log(120) - 0.32, 0.8)  # its quantiles, in any order
lengths = [min(512, round(math.exp(spread.inv_cdf((i + 0.5) / n)))) for i in range(n)]
rng.shuffle(lengths)
samples = []
for length in lengths:
    ids = torch.tensor([rng.randrange(1000, 40000) for _ in range(length)])
    labels = ids.clone()
    if masked:
        labels[: round(0.45 * length)] = -100
    samples.append(dict(input_ids=ids, labels=labels))
real = sum(len(sample["input_ids"]) for sample in samples)
targets = sum(int((sample["labels"][1:] != -100).sum()) for sample in samples)
def tell(**answer):
    memory = 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
    print(json.dumps(dict(answer, memory=memory, tokens=real)), flush=True)
def wait():
    if not sys.stdin.readline():
        sys.exit()
    return time.process_time()
def batches():
    for at in range(0, n, micro):
        part = samples[at : at + micro]
        longest = max(len(sample["input_ids"]) for sample in part)
        def padded(name, value):
            rows = [torch.nn.functional.pad(s[name], (0, longest - len(s[name])), value=value) for s in part]
            return torch.stack(rows)
        yield padded("input_ids", 0), padded("labels", -100)
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
from litgpt.lora import LoRA
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
model = load_model(folder, dtype=dtype)
method = LoRA(r=8, alpha=16, dropout=0.05, query=True, value=True)
method.attach(model)
turns = Turns()
train = TrainArgs(global_batch_size=n, micro_batch_size=micro, max_steps=10**6, lr_warmup_steps=0, max_seq_length=512)
run = Run(
    model=model, train_dataset=samples, val_dataset=None, train=train, eval=EvalArgs(final_validation=False),
    out_dir=Path(tempfile.mkdtemp()), save=lambda folder: None, fabric=fabric, owns=method.owns, loggers=[turns],
    optimizer=dict(class_path="AdamW", init_args=dict(lr=1e-5)),
)
tell()
turns.start = wait()
fit(run)
"""
THEIRS = """
from pathlib import Path
import lightning as L
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from litgpt.utils import chunked_cross_entropy
fabric = L.Fabric(devices=1, accelerator="cpu", precision=precision)
torch.manual_seed(1)
config = Config.from_file(
    Path(folder) / "model_config.yaml", lora_r=8, lora_alpha=16, lora_dropout=0.05, lora_query=True, lora_value=True
)
with fabric.init_module():
    model = GPT(config)
model.load_state_dict(torch.load(Path(folder) / "lit_model.pth", mmap=True, weights_only=True), strict=False)
mark_only_lora_as_trainable(model)
model = fabric.setup_module(model.train())
optimizer = fabric.setup_optimizers(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5))
accumulated = -(-n // micro)
def one():
    total = 0.0
    for ids, labels in batches():
        logits = model(ids, lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        loss = chunked_cross_entropy(logits, labels[..., 1:])
        fabric.backward(loss / accumulated)
        total += loss.item() * int((labels[..., 1:] != -100).sum())
    optimizer.step()
    optimizer.zero_grad()
    return total / targets
steps(one)
"""
HF = """
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
torch.manual_seed(1)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
model = get_peft_model(model, lora, autocast_adapter_dtype=False).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
def one():
    total = 0.0
    for ids, labels in batches():
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels, num_items_in_batch=targets).loss
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad()
    return total
steps(one)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", help="python of an environment with litgpt==0.5.13")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--samples", type=int, default=8, help="in an optimizer step")
    parser.add_argument("--labels", choices=("all", "masked"), nargs="+", default=["all", "masked"])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        peer = peer_python(arguments.peer, Path(work) / "peer")
        theirs = litgpt_folder(arguments.folder, Path(work) / "litgpt")
        here = sys.executable
        contenders = {
            "litgpt (here), micro-batch 4": (here, OURS, arguments.folder, 4),
            "litgpt (here), micro-batch 1": (here, OURS, arguments.folder, 1),
            "LitGPT 0.5.13, micro-batch 1": (peer, THEIRS, theirs, 1),
            "LitGPT 0.5.13, micro-batch 4": (peer, THEIRS, theirs, 4),
            "transformers + peft, micro-batch 1": (here, HF, arguments.folder, 1),
            "transformers + peft, micro-batch 4": (here, HF, arguments.folder, 4),
        }
        print(f"{arguments.samples} samples a step, {arguments.dtype}, one thread, {arguments.rounds} rounds\n")
        rows: list[list[object]] = []
        for labels in arguments.labels:
            rows += compare(contenders, arguments.dtype, arguments.samples, labels, arguments.rounds)
        print(table(["labels", "contender", "CPU s a step", "real tokens/s", "here is faster by", "peak MB"], rows))


def compare(
    contenders: dict[str, tuple[str, str, Path, int]], dtype: str, samples: int, labels: str, rounds: int
) -> list[list[object]]:
    """A row for each contender."""
    running = [
        Contender(name, python, FRAME.replace("{program}", program), folder, dtype, samples, labels, micro)
        for name, (python, program, folder, micro) in contenders.items()
    ]
    first = [contender.ask() for contender in running]  # warms up; nothing has been learned yet
    losses = [answer["loss"] for answer in first]
    tolerance = 1e-4 if dtype == "float32" else 1e-2  # LitGPT's softmax is rounded to bfloat16
    for contender, loss in zip(running, losses, strict=True):
        if abs(loss - losses[0]) > tolerance * losses[0]:
            sys.exit(f"{contender.name}: a loss of {loss:.5f}, not {losses[0]:.5f}: nothing to compare.")
    answers = in_turn(running, rounds)
    rows: list[list[object]] = []
    seconds = [[answer["seconds"] for answer in found] for found in answers]
    for contender, own, found in zip(running, seconds, answers, strict=True):
        median = statistics.median(own)
        speed, ratio = f"{first[0]['tokens'] / median:.0f}", f"{paired(own, seconds[0]):.2f}"
        rows.append([labels, contender.name, f"{median:.2f}", speed, ratio, f"{found[-1]['memory'] / 1e6:.0f}"])
        contender.close()
    return rows


if __name__ == "__main__":
    main()

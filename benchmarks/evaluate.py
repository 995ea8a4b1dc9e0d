"""lm-eval's tasks by our engine, beside lm-eval's own `hf` model: the same numbers, and in how much time.

    python benchmarks/evaluate.py FOLDER ASSETS [--rounds 3] [--batch_sizes 1 16] [--samples 24]

FOLDER is a Hugging Face folder (SmolLM2-135M), ASSETS a folder with `text/janeausten`, `text/tinyshakespeare.txt` and
`instruct/gsm8k_test.jsonl`. Run it with a python that has lm-eval 0.4.13 and transformers. The tasks are YAML files
over local JSON files, made here, so nothing is downloaded. Each contender is a process of its own with one thread, in
float32, that loads its model once and then runs one task after another through `lm_eval.simple_evaluate`; they take
turns within a round, and what is compared is the median of the rounds' ratios of process CPU time.

Tasks:
    sentences    which of four sentences follows a paragraph of a novel, without examples (loglikelihood)
    letters      the same as A to D, after four examples with answers (loglikelihood)
    rolling      how likely chapters are that are longer than the model's context (loglikelihood_rolling)
    gsm8k        two examples, then answers of at most 64 tokens (generate_until)
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
from pathlib import Path

from contenders import Contender, in_turn, paired, table

HERE = "litgpt (here)"
CONTEXT = 1024
"""Tokens that either side takes at once."""
ROLLING = 4_000
"""Characters of the longer text of `rolling`, more than that."""

FRAME = """
import json, logging, os, sys, time
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=sys.argv[3], HF_DATASETS_CACHE=sys.argv[3])
import torch
torch.set_num_threads(1)
logging.disable(logging.WARNING)
folder, tasks, _, batch_size = sys.argv[1:]
said, sys.stdout = sys.stdout, sys.stderr
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
manager = TaskManager(include_path=tasks, include_defaults=False)
{program}
print("null", file=said, flush=True)
for line in sys.stdin:
    start = time.process_time()
    found = simple_evaluate(lm, tasks=[line.strip()], task_manager=manager, bootstrap_iters=0, log_samples=False)
    seconds = time.process_time() - start
    numbers = {{name: value for name, value in found["results"][line.strip()].items() if isinstance(value, float)}}
    print(json.dumps(dict(seconds=seconds, numbers=numbers)), file=said, flush=True)
"""
OURS = """
from litgpt.engine.inference_model import InferenceModel
from litgpt.eval.harness import HarnessModel
from litgpt.eval.models import LocalModel
inference_model = InferenceModel.load(folder, "cpu", "32-true")
inference_model.model.max_seq_length = {context}
lm = HarnessModel(LocalModel(inference_model, folder))
"""
HF = """
from lm_eval.models.huggingface import HFLM
lm = HFLM(folder, dtype="float32", device="cpu", batch_size=int(batch_size), max_length={context})
"""
YAML = {
    "sentences": """
output_type: multiple_choice
doc_to_text: "{{paragraph}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "letters": """
output_type: multiple_choice
num_fewshot: 4
fewshot_split: examples
fewshot_config: {sampler: first_n}
doc_to_text: >-
  {{paragraph}}

  A. {{choices[0]}}

  B. {{choices[1]}}

  C. {{choices[2]}}

  D. {{choices[3]}}

  What follows?
doc_to_choice: [A, B, C, D]
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "gsm8k": """
output_type: generate_until
num_fewshot: 2
fewshot_split: examples
fewshot_config: {sampler: first_n}
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], max_gen_toks: 64, do_sample: false}
metric_list: [{metric: exact_match, regexes_to_ignore: [",", "(?s).*#### "]}]
filter_list:
  - name: last-number
    filter:
      - {function: regex, regex_pattern: "(-?[0-9][0-9,.]*)", group_select: -1}
      - {function: take_first}
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("assets", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=list(YAML), choices=YAML)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        tasks = Path(work) / "tasks"
        make_tasks(tasks, arguments.assets, arguments.samples)
        shared = (arguments.folder.resolve(), tasks, Path(work) / "cache")
        here = Contender(HERE, sys.executable, program(OURS), *shared, 0)
        others = [
            Contender(f"hf, batches of {size}", sys.executable, program(HF), *shared, size)
            for size in arguments.batch_sizes
        ]
        print("CPU seconds, one thread, medians; ratios are medians of the rounds' (hf ÷ here)", flush=True)
        print(compare([here, *others], arguments.only, arguments.rounds))
        for contender in (here, *others):
            contender.close()


def program(model: str) -> str:
    """The source of a contender."""
    return FRAME.replace("{program}", model).replace("{context}", str(CONTEXT)).replace("{{", "{").replace("}}", "}")


def compare(contenders: list[Contender], tasks: list[str], rounds: int) -> str:
    """A row a task: how far the numbers are apart, and the times."""
    rows: list[list[object]] = []
    totals = [[0.0] * rounds for _ in contenders]
    for task in tasks:
        answers = in_turn(contenders, rounds, task)
        numbers = [found[0]["numbers"] for found in answers]
        apart = max(
            abs(theirs[name] - value) / max(1e-9, abs(value)) if value else abs(theirs[name])
            for theirs in numbers[1:]
            for name, value in numbers[0].items()
        )
        own, *others = spent = [[answer["seconds"] for answer in found] for found in answers]
        totals = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(totals, spent, strict=True)]
        shown = ", ".join(f"{name.partition(',')[0]} {value:.6g}" for name, value in numbers[0].items())
        row: list[object] = [task, shown, f"{apart:.1e}", f"{statistics.median(own):.2f}"]
        for other in others:
            row += [f"{statistics.median(other):.2f}", f"{paired(other, own):.2f}"]
        rows.append(row)
        print(f"{task} done", file=sys.stderr, flush=True)
    row = ["all", "", "", f"{statistics.median(totals[0]):.2f}"]
    for other in totals[1:]:
        row += [f"{statistics.median(other):.2f}", f"{paired(other, totals[0]):.2f}"]
    rows.append(row)
    heads = [head for contender in contenders[1:] for head in (contender.name, "ratio")]
    return table(["task", "numbers", "largest difference", HERE, *heads], rows)


def make_tasks(folder: Path, assets: Path, n: int) -> None:
    """Writes a YAML file and its rows for each task."""
    folder.mkdir()
    novels = sorted((assets / "text" / "janeausten").glob("*.txt"))
    rng = random.Random(0)
    rows = {"sentences": sentences("\n".join(novel.read_text(encoding="utf-8") for novel in novels), n, rng)}
    rows["letters"] = rows["sentences"]
    play = (assets / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    rows["rolling"] = [{"text": play[:ROLLING]}, {"text": play[-800:]}]
    with (assets / "instruct" / "gsm8k_test.jsonl").open(encoding="utf-8") as file:
        rows["gsm8k"] = [json.loads(line) for _, line in zip(range(n + 4), file, strict=False)]
    for name, settings in YAML.items():
        files = {"test": rows[name]} if name == "rolling" else {"test": rows[name][4:], "examples": rows[name][:4]}
        for split, some in files.items():
            (folder / f"{name}_{split}.json").write_text("\n".join(map(json.dumps, some)), encoding="utf-8")
        data = json.dumps({split: str(folder / f"{name}_{split}.json") for split in files})
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {data}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(head + settings.lstrip(), encoding="utf-8")


def sentences(text: str, n: int, rng: random.Random) -> list[dict[str, object]]:
    """Paragraphs of novels, the sentence that follows each, and three that follow others."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    found = [re.split(r"(?<=[.!?]) (?=[A-Z])", part) for part in paragraphs if 300 < len(part) < 700]
    found = [parts for parts in found if len(parts) > 3 and 20 < len(parts[-1]) < 120]
    chosen = rng.sample(found, n + 4)
    rows = []
    for number, parts in enumerate(chosen):
        others = [chosen[other][-1] for other in rng.sample([i for i in range(len(chosen)) if i != number], 3)]
        choices = [parts[-1], *others]
        rng.shuffle(choices)
        rows.append({"paragraph": " ".join(parts[:-1]), "choices": choices, "answer": choices.index(parts[-1])})
    return rows


if __name__ == "__main__":
    main()

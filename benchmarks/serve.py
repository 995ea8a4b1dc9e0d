"""Eight clients at once at `litgpt serve`, beside LitGPT 0.5.13's server, in one run.

    python benchmarks/serve.py FOLDER [--peer PYTHON] [--clients 8] [--tokens 64] [--rounds 7]

FOLDER is a Hugging Face folder (SmolLM2-135M-Instruct); PYTHON is the interpreter of an environment with
litgpt[extra]==0.5.13 and litserve; without one, an environment is made for the time of the benchmark. Both servers run
side by side with one thread each, and one of them at a time is asked: in a round every client sends one prompt, of its
own length, to `/predict`, all at the same moment, and all answers are awaited. Both are greedy and in bfloat16. What is
compared is the median of the rounds' ratios of tokens a second of wall time; tokens are those of the answers, by the model's tokenizer.
Before anything is timed, each answer of this server among others is compared with its answer alone. The time to the
first token is that of streamed answers here; LitGPT's server answers whole.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from contenders import ROOT, litgpt_folder, paired, peer_python, table

WORDS = "grass hay leaves water stones rivers mountains clouds horses stories letters music bread".split()


class Server:
    """A server in a process of its own."""

    def __init__(self, python: str, folder: Path, own: bool, *flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = {**os.environ, "PYTHONPATH": str(ROOT) if own else "", "OMP_NUM_THREADS": "1"}
        environment.update(CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false")
        command = [python, "-m", "litgpt", "serve", str(folder), "--port", str(self.port), *flags]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self.process = subprocess.Popen(
            command, env=environment, cwd=folder.parent, stdout=self.log, stderr=self.log, start_new_session=True
        )
        while True:
            try:
                self.ask("Hello", 2)
                return
            except (OSError, http.client.HTTPException, KeyError, json.JSONDecodeError):
                if self.process.poll() is not None:
                    self.log.seek(0)
                    sys.exit(self.log.read().decode(errors="replace")[-2000:])
                time.sleep(1)

    def _post(self, path: str, body: dict[str, object]) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse()

    def ask(self, prompt: str, tokens: int) -> str:
        """The answer at `/predict`. LitGPT's server takes the limit from its command line."""
        text = json.loads(self._post("/predict", {"prompt": prompt, "max_new_tokens": tokens}).read())["output"]
        return str(text)

    def first(self, prompt: str, tokens: int) -> float:
        """Seconds to the first token of a streamed answer, which is read to its end."""
        start = time.perf_counter()
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "model": ""}
        answer = self._post("/v1/completions", {name: value for name, value in body.items() if value != ""})
        answer.fp.readline()
        seconds = time.perf_counter() - start
        answer.read()
        return seconds

    def close(self) -> None:
        """Ends the server and what it started."""
        os.killpg(self.process.pid, 15)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()
        self.log.close()


def together(server: Server, prompts: list[str], tokens: int) -> tuple[float, list[str]]:
    """Wall seconds until all prompts, sent at the same moment, are answered; the answers."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        start = time.perf_counter()
        answers = list(pool.map(lambda prompt: server.ask(prompt, tokens), prompts))
        return time.perf_counter() - start, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", help="python of an environment with litgpt==0.5.13")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    prompts = [
        f"Tell a story about {' and '.join(WORDS[n % len(WORDS)] for n in range(i, 3 * i + 2))}."
        for i in range(arguments.clients)
    ]
    with tempfile.TemporaryDirectory() as work:
        peer = peer_python(arguments.peer, Path(work) / "peer")
        common = ("--temperature", "0", "--precision", "bf16-true", "--max_new_tokens", str(arguments.tokens))
        theirs = Server(peer, litgpt_folder(arguments.folder, Path(work) / "litgpt"), False, *common)
        ours = Server(sys.executable, arguments.folder, True, *common, "--slots", str(arguments.clients))
        try:
            compare(ours, theirs, prompts, arguments.folder, arguments.tokens, arguments.rounds)
        finally:
            ours.close()
            theirs.close()


def compare(ours: Server, theirs: Server, prompts: list[str], folder: Path, tokens: int, rounds: int) -> None:
    """Checks, measures and prints."""
    sys.path.insert(0, str(ROOT))
    from litgpt.tokenizer import Tokenizer

    tokenizer = Tokenizer(folder)

    def count(answers: list[str]) -> int:
        return sum(len(tokenizer.encode_ids(answer, bos=False)) for answer in answers)

    alone = [ours.ask(prompt, tokens) for prompt in prompts]
    same = sum(a == b for a, b in zip(alone, together(ours, prompts, tokens)[1], strict=True))
    together(theirs, prompts[:1], tokens)
    speeds: dict[str, list[float]] = {"litgpt (here)": [], "LitGPT 0.5.13": []}
    for _ in range(rounds):
        for name, server in zip(speeds, (ours, theirs), strict=True):
            seconds, answers = together(server, prompts, tokens)
            speeds[name].append(count(answers) / seconds)
    waits: list[float] = []
    with ThreadPoolExecutor(len(prompts)) as pool:
        for _ in range(rounds):
            waits += pool.map(lambda prompt: ours.first(prompt, tokens), prompts)
    here = speeds["litgpt (here)"]
    rows: list[list[object]] = [
        [name, f"{statistics.median(found):.1f}", f"{paired(here, found):.2f}"] for name, found in speeds.items()
    ]
    print(f"{len(prompts)} clients, {rounds} rounds, bfloat16, one thread a server\n")
    print(table(["server", "tokens/s", "here is faster by"], rows))
    p95 = sorted(waits)[int(0.95 * (len(waits) - 1))]
    print(f"\nTime to the first token here: median {statistics.median(waits):.2f} s, 95 % within {p95:.2f} s")
    print(f"Answers among others that are the same as alone: {same} of {len(prompts)}")


if __name__ == "__main__":
    main()

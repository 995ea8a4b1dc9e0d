"""Eight clients at once at `litgpt serve`, beside LitGPT 0.5.13's server, in one run.

    python benchmarks/serve.py FOLDER [--peer PYTHON] [--clients 8] [--tokens 64] [--rounds 7]

FOLDER is SmolLM2-135M-Instruct as a Hugging Face folder; PYTHON is the interpreter of an environment with
litgpt==0.5.13, litserve and jinja2; without one, an environment is made for the time of the benchmark. Both servers run
side by side with one thread each, and one of them at a time is asked: in a round every client sends one prompt, of its
own length, to `/predict`, all at the same moment, and all answers are awaited. Both are greedy and in bfloat16. What is
compared is the median of the rounds' ratios of tokens a second of wall time; tokens are those of the answers, by the
model's tokenizer. The time to the first token is that of streamed answers here, from sending the request to its first
piece of text; LitGPT's server answers whole, so there it is the time to the answer.

Before anything is timed, each answer of this server among others is compared with its answer alone: in float32, where
they have to be equal, and in bfloat16, whose sums are rounded differently in a batch of another size.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
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
        self.model = folder.resolve().name
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
        """Seconds to the first text of a streamed answer, which is read to its end."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}
        start, seconds = time.perf_counter(), 0.0
        for line in self._post("/v1/chat/completions", body):
            event = line.removeprefix(b"data: ").strip()
            if not seconds and event.startswith(b"{") and json.loads(event)["choices"][0]["delta"].get("content"):
                seconds = time.perf_counter() - start
        return seconds or sys.exit(f"{self.model} streamed no text.")

    def close(self) -> None:
        """Ends the server and what it started."""
        os.killpg(self.process.pid, 15)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()
        self.log.close()


@dataclass(frozen=True)
class Round:
    """Prompts that were sent at the same moment, once all were answered."""

    seconds: float
    answers: list[str]
    waits: list[float]
    """Seconds to each answer."""


def together(server: Server, prompts: list[str], tokens: int) -> Round:
    """One round."""
    start = time.perf_counter()

    def ask(prompt: str) -> tuple[str, float]:
        return server.ask(prompt, tokens), time.perf_counter() - start

    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(ask, prompts))
    return Round(time.perf_counter() - start, [answer for answer, _ in found], [wait for _, wait in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", help="python of an environment with litgpt==0.5.13, litserve and jinja2")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    prompts = [
        f"Tell a story about {' and '.join(WORDS[n % len(WORDS)] for n in range(i, 3 * i + 2))}."
        for i in range(given.clients)
    ]
    tokens, slots = given.tokens, ("--slots", str(given.clients))
    # LitGPT's server refuses what waits for half a minute, unless it is told otherwise.
    common = ("--temperature", "0", "--timeout", "600", "--max_new_tokens", str(tokens), "--precision")
    with tempfile.TemporaryDirectory() as work:
        peer = peer_python(given.peer, Path(work) / "peer", "litserve", "jinja2")
        copy = litgpt_folder(given.folder, Path(work) / "litgpt")
        # LitGPT knows the style by the model's name; by another one it would ask without, and get no answers.
        (copy / "prompt_style.yaml").write_text("class_path: litgpt.prompts.SmolLM2\n")
        with closing(Server(sys.executable, given.folder, True, *common, "32-true", *slots)) as exact:
            same = {"float32": equal(exact, prompts, tokens)}
        with (
            closing(Server(sys.executable, given.folder, True, *common, "bf16-true", *slots)) as ours,
            closing(Server(peer, copy, False, *common, "bf16-true")) as theirs,
        ):
            same["bfloat16"] = equal(ours, prompts, tokens)
            together(theirs, prompts[:1], tokens)
            rounds = in_rounds((ours, theirs), prompts, given)
            first = first_tokens(ours, prompts, given)
    report(rounds, first, same, given)


def equal(server: Server, prompts: list[str], tokens: int) -> int:
    """How many answers among others are the same as alone."""
    alone = [server.ask(prompt, tokens) for prompt in prompts]
    return sum(a == b for a, b in zip(alone, together(server, prompts, tokens).answers, strict=True))


def in_rounds(
    servers: tuple[Server, Server], prompts: list[str], given: argparse.Namespace
) -> tuple[list[Round], list[Round]]:
    """The rounds of each server; they take turns."""
    found: tuple[list[Round], list[Round]] = ([], [])
    for number in range(given.rounds):
        pairs = list(zip(found, servers, strict=True))
        for rounds, server in pairs if number % 2 == 0 else reversed(pairs):
            rounds.append(together(server, prompts, given.tokens))
    return found


def first_tokens(server: Server, prompts: list[str], given: argparse.Namespace) -> list[float]:
    """Seconds to the first token of each prompt, all sent at the same moment, round after round."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        return [
            seconds
            for _ in range(given.rounds)
            for seconds in pool.map(lambda prompt: server.first(prompt, given.tokens), prompts)
        ]


def report(
    rounds: tuple[list[Round], list[Round]], first: list[float], same: dict[str, int], given: argparse.Namespace
) -> None:
    """Prints medians, the ratio of the speeds, times to the first token, and how many answers were equal."""
    sys.path.insert(0, str(ROOT))
    from litgpt.tokenizer import Tokenizer

    tokenizer = Tokenizer(given.folder)
    speeds = [
        [sum(len(tokenizer.encode_ids(text, bos=False)) for text in one.answers) / one.seconds for one in found]
        for found in rounds
    ]
    waits = first, [wait for one in rounds[1] for wait in one.waits]
    rows: list[list[object]] = []
    for name, found, wait in zip(("litgpt (here)", "LitGPT 0.5.13"), speeds, waits, strict=True):
        p95 = sorted(wait)[math.ceil(0.95 * len(wait)) - 1]
        speed = f"{statistics.median(found):.1f}"
        rows.append([name, speed, f"{paired(speeds[0], found):.2f}", f"{statistics.median(wait):.2f}", f"{p95:.2f}"])
    print(f"{given.clients} clients, up to {given.tokens} tokens an answer, {given.rounds} rounds, bfloat16,")
    print("one thread a server\n")
    print(table(["server", "tokens/s", "here is faster by", "first token, median (s)", "first token, p95 (s)"], rows))
    print("\nAnswers among others that are the same as alone, here:")
    print("; ".join(f"{number} of {given.clients} in {dtype}" for dtype, number in same.items()))


if __name__ == "__main__":
    main()

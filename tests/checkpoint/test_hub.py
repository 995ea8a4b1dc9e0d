"""Downloads through the hub's real client, from a small hub on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from litgpt.checkpoint.layout import find_checkpoint
from tests.hub_server import COMMIT, Hub, serve
from tests.paths import ROOT

RUN = "import sys; from litgpt.__main__ import main; sys.exit(main(sys.argv[1:]))"
BARE = ("--convert_checkpoint", "false")
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
TINY_LLAMA = dict(
    architectures=["LlamaForCausalLM"],
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    vocab_size=96,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
)
TOKEN = "hf_averysecretone"


@pytest.fixture
def hub():
    with serve() as hub:
        hub.add("org/plain", **{"config.json": CONFIG, "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"})
        yield hub


@pytest.fixture
def start(hub: Hub, tmp_path: Path):
    """Starts a litgpt command in an empty folder with `hub` as the hub; code in `before` runs in that process first."""

    def start(*arguments: str, before: str = "", **environment: str) -> subprocess.Popen[str]:
        names = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), **environment}
        command = [sys.executable, "-c", f"{before}\n{RUN}", *arguments]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(command, cwd=tmp_path, env=names | settings, **pipes)

    return start


@pytest.fixture
def run(start):
    """As `start`, and waits for the end."""

    def run(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        process = start(*arguments, **options)
        stdout, stderr = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    return run


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".cache"}


def one_sentence(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1, result
    lines = [line for line in result.stderr.splitlines() if line.startswith("litgpt: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    return lines[0]


def test_only_the_needed_files_arrive_and_safetensors_win(hub, run, tmp_path):
    extra = {"README.md": b"#", "model.safetensors.index.json": INDEX.encode(), "pytorch_model.bin": WEIGHTS}
    shards = {f"model-0000{n}-of-00002.safetensors": bytes([n]) * 100_000 for n in (1, 2)}
    wanted = {
        "config.json": CONFIG,
        "generation_config.json": b"{}",
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"",
    }
    other = {
        "consolidated.safetensors": WEIGHTS,
        "training_args.bin": b"x",
        "model.gguf": b"x",
        "onnx/model.onnx": b"x",
    }
    hub.add("org/sharded", **extra, **shards, **wanted, **other)
    assert run("download", "org/sharded", *BARE).returncode == 0
    folder = tmp_path / "checkpoints" / "org" / "sharded"
    assert names_in(folder) == {*wanted, *shards, "model.safetensors.index.json"}
    assert all((folder / name).read_bytes() == content for name, content in {**shards, **wanted}.items())


def test_pickles_are_taken_where_there_is_nothing_else(hub, run, tmp_path):
    hub.add("org/old", **{"config.json": CONFIG, "pytorch_model.bin": WEIGHTS, "optimizer.bin": WEIGHTS})
    assert run("download", "org/old", *BARE).returncode == 0
    assert names_in(tmp_path / "checkpoints/org/old") == {"config.json", "pytorch_model.bin"}


SMALL_PIECES = (
    "import huggingface_hub.constants, litgpt.checkpoint.hub;"
    "huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 2**16; litgpt.checkpoint.hub.RESUMABLE_BYTES = 2**19"
)


def test_a_litgpt_checkpoint_on_the_hub(hub, run, tmp_path):
    files = {
        "lit_model.pth": WEIGHTS,
        "model_config.yaml": b"name: x",
        "prompt_style.yaml": b"",
        "tokenizer.json": b"{}",
    }
    hub.add("org/lit", **files, **{"lit_model.pth.lora": b"x"})
    assert run("download", "org/lit").returncode == 0
    assert names_in(tmp_path / "checkpoints/org/lit") == set(files)


def test_a_broken_connection_is_resumed_where_it_broke(hub, run, tmp_path):
    hub.broken["model.safetensors"] = 300_000
    assert run("download", "org/plain", *BARE, before=SMALL_PIECES).returncode == 0
    first, second = hub.asked("GET", "model.safetensors")
    assert first.range is None and second.range == f"bytes={300_000 // 2**16 * 2**16}-"
    assert (tmp_path / "checkpoints/org/plain/model.safetensors").read_bytes() == WEIGHTS


def test_a_killed_download_is_resumed_by_the_next_run(hub, start, run, tmp_path):
    hub.stalled["model.safetensors"] = 5 * 2**16
    process = start("download", "org/plain", *BARE, before=SMALL_PIECES)
    assert hub.stalling.wait(60)
    part = tmp_path / "checkpoints/org/plain/.cache/huggingface/download"
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in part.glob("model.safetensors.*")) and time.monotonic() < deadline:
        time.sleep(0.01)  # what was sent is on its way to the disk
    process.kill()
    process.communicate()
    assert not (tmp_path / "checkpoints/org/plain/model.safetensors").exists()
    assert run("download", "org/plain", *BARE, before=SMALL_PIECES).returncode == 0
    second = hub.asked("GET", "model.safetensors")[-1]
    assert second.range is not None and int(second.range.removeprefix("bytes=")[:-1]) >= 2**16
    assert (tmp_path / "checkpoints/org/plain/model.safetensors").read_bytes() == WEIGHTS


def test_a_second_run_fetches_only_what_is_missing(hub, run, tmp_path):
    assert run("download", "org/plain", *BARE).returncode == 0
    (tmp_path / "checkpoints/org/plain/tokenizer.json").unlink()
    hub.requests.clear()
    assert run("download", "org/plain", *BARE).returncode == 0
    fetched = {request.path for request in hub.requests if request.method == "GET" and "/resolve/" in request.path}
    assert fetched == {f"/org/plain/resolve/{COMMIT}/tokenizer.json"}


def test_tokenizer_only(hub, run, tmp_path):
    assert run("download", "org/plain", "--tokenizer_only", "true").returncode == 0
    assert names_in(tmp_path / "checkpoints/org/plain") == {"config.json", "tokenizer.json"}


def test_a_gated_repository_says_where_to_get_access_and_opens_with_a_token_that_is_never_written(hub, run, tmp_path):
    hub.add("org/gated", gated=True, **{"config.json": CONFIG, "model.safetensors": WEIGHTS})
    hub.tokens.add(TOKEN)
    message = one_sentence(run("download", "org/gated", *BARE))
    assert f"{hub.url}/org/gated" in message and "--access_token" in message
    assert not (tmp_path / "checkpoints/org/gated").exists()
    result = run("download", "org/gated", *BARE, "--access_token", TOKEN)
    assert result.returncode == 0
    assert TOKEN not in result.stdout + result.stderr
    assert run("download", "org/gated", *BARE, "--checkpoint_dir", "other", HF_TOKEN=TOKEN).returncode == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_token_that_the_hub_refuses_is_not_repeated(run):
    result = run("download", "org/plain", *BARE, "--access_token", TOKEN)
    assert "refuses your access token" in one_sentence(result)
    assert TOKEN not in result.stdout + result.stderr


def test_a_repository_that_is_not_there_names_those_like_it(run, tmp_path):
    message = one_sentence(run("download", "EleutherAI/pythia-70mm"))
    assert "There is no repository EleutherAI/pythia-70mm" in message and "EleutherAI/pythia-70m" in message
    assert not (tmp_path / "checkpoints" / "EleutherAI" / "pythia-70mm").exists()


def test_a_name_without_an_organisation_names_those_like_it(run):
    assert "EleutherAI/pythia-14m" in one_sentence(run("download", "pythia-14m"))


def test_offline(run):
    assert "HF_HUB_OFFLINE is set" in one_sentence(run("download", "org/plain", HF_HUB_OFFLINE="1"))


def test_no_network(run):
    message = one_sentence(run("download", "org/plain", HF_ENDPOINT="http://127.0.0.1:9"))
    assert "http://127.0.0.1:9 can't be reached" in message


@pytest.mark.parametrize("free, arguments", [(500_000, BARE), (1_500_000, ())])
def test_a_full_disk_is_told_before_anything_is_fetched(hub, run, free, arguments):
    """1.5 MB hold the download of 1 MiB, but not its conversion."""
    before = (
        f"import shutil; from types import SimpleNamespace; shutil.disk_usage = lambda _: SimpleNamespace(free={free})"
    )
    message = one_sentence(run("download", "org/plain", *arguments, before=before))
    assert "of disk" in message and ("--convert_checkpoint false" in message) == (not arguments)
    assert not hub.asked("GET", "model.safetensors")


def test_a_disk_that_fills_up_leaves_nothing_half_written(hub, run, tmp_path):
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    assert "disk is full" in one_sentence(run("download", "org/plain", *BARE, before=before))
    assert not [path for path in tmp_path.rglob("*") if "model.safetensors" in path.name and path.suffix != ".lock"]


def test_a_repository_without_weights(hub, run):
    hub.add("org/gguf", **{"config.json": CONFIG, "model.Q4_0.gguf": WEIGHTS})
    assert "no weights" in one_sentence(run("download", "org/gguf"))


def test_an_index_that_names_what_is_not_there(hub, run):
    hub.add("org/torn", **{"config.json": CONFIG, "model.safetensors.index.json": INDEX.encode()})
    assert "model-00001-of-00002.safetensors" in one_sentence(run("download", "org/torn"))


def test_the_list_needs_no_network(run):
    result = run("download", "list", HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 0
    assert {"EleutherAI/pythia-14m", "meta-llama/Llama-3.2-1B"} <= set(result.stdout.split())


FIND = "from litgpt.checkpoint.hub import auto_download; print(auto_download(sys.argv[2])); sys.exit(0)"


def test_a_missing_folder_called_like_a_repository_is_fetched_once(hub, run, tmp_path):
    for _ in range(2):
        result = run("find", "org/plain", before=f"import sys; {FIND}")
        assert result.stdout.splitlines()[-1] == str(Path("checkpoints/org/plain")), result.stderr
    assert find_checkpoint(tmp_path / "checkpoints/org/plain").kind == "hf"
    assert len(hub.asked("GET", "model.safetensors")) == 1


def test_a_folder_that_is_there_is_not_asked_for(hub, run, tmp_path):
    (tmp_path / "org" / "plain").mkdir(parents=True)
    assert run("find", "org/plain", before=f"import sys; {FIND}").stdout.strip() == str(Path("org/plain"))
    assert not hub.requests


READ = "from litgpt import Config; config = Config.from_hf(sys.argv[1]); print(config.name, config.n_layer); sys.exit()"


def test_a_configuration_is_read_from_the_hub_by_its_name_alone(hub, run):
    hub.add("someone/finetuned", **{"config.json": json.dumps(TINY_LLAMA).encode()})
    result = run("someone/finetuned", before=f"import sys; {READ}")
    assert (result.stdout, result.returncode) == ("finetuned 3\n", 0)
    assert not hub.asked("GET", "model.safetensors")


@pytest.mark.parametrize(
    ("source", "environment", "words"),
    [
        ("EleutherAI/pythia-14n", {}, "no repository EleutherAI/pythia-14n.*Closest: EleutherAI/pythia-14m"),
        ("org/bare", {}, "org/bare has no config.json"),
        ("org/gated", {}, "gated"),
        ("org/plain", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("org/plain", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "can't be reached"),
        ("no-such-folder", {}, "no folder no-such-folder.*ORG/NAME"),
        ("org/mamba", {}, "MambaForCausalLM"),
    ],
)
def test_a_configuration_that_cannot_be_had_is_one_sentence(hub, run, source, environment, words):
    hub.add("org/bare", **{"model.safetensors": WEIGHTS})
    hub.add("org/gated", gated=True, **{"config.json": CONFIG})
    hub.add("org/mamba", **{"config.json": b'{"architectures": ["MambaForCausalLM"]}'})
    tell = "except LitGPTError as error: print('told:', error, file=sys.stderr); sys.exit(1)"
    impatient = "import time; time.sleep = lambda _: None"  # the client tries five times, ever more slowly
    before = f"import sys\n{impatient}\nfrom litgpt.errors import LitGPTError\ntry: {READ}\n{tell}"
    result = run(source, before=before, **environment)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert re.search(words, result.stderr.partition("told: ")[2])

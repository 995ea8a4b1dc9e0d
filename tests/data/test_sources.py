"""LitGPT's modules: where their samples come from (here from 127.0.0.1), and what a row of each says."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, file_download

from litgpt.data import (
    FLAN,
    JSON,
    Alpaca,
    AlpacaGPT4,
    DataModule,
    LitData,
    LongForm,
    MicroLlama,
    TextFiles,
    TinyLlama,
    TinyStories,
    longform,
    tinystories,
)
from litgpt.data.lit_data import LitDataBlocks
from litgpt.data.storage.combined_datasets import MixedDataset
from litgpt.data.storage.download import fetch_file
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer
from tests.hub_server import serve
from tests.paths import ROOT


class Site:
    """A server of files, on a free port; it counts what it is asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.short = self.stalled = False
        self.tag: str | None = None
        """What tells that a file is the same; with it, HEAD and ranges are understood."""
        self.starts: list[int] = []
        self.breaks: list[int] = []
        """After how many bytes each of the next answers breaks off."""
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                content = site.files.get(self.path)
                start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if site.tag else 0
                self.send_response((206 if start else 200) if content is not None else 404)
                body = content if content is not None else b"<html>not here</html>"
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                body = body[start:]
                site.starts.append(start)
                self.send_header("Content-Length", str(len(body) + 10 * site.short))
                self.end_headers()
                if site.stalled:
                    self.connection.recv(1)  # until the client gives up
                self.wfile.write(body[: site.breaks.pop(0)] if site.breaks else body)

            def do_HEAD(self) -> None:
                if site.tag is None:
                    self.send_error(501)
                    return
                self.send_response(200)
                self.send_header("ETag", f'"{site.tag}"')
                self.send_header("Content-Length", str(len(site.files[self.path])))
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    yield found
    found.server.shutdown()
    found.server.server_close()


def prepared(module: DataModule, tokenizer: Tokenizer, limit: int | None = None) -> Any:
    module.log = lambda sentence: None
    module.connect(tokenizer, max_seq_length=limit)
    module.prepare_data()
    module.setup()
    return module


def words(tokenizer: Tokenizer, sample: dict[str, Any]) -> str:
    return tokenizer.decode(sample["input_ids"])


ROWS = [{"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(30)]


@pytest.mark.parametrize("kind", [Alpaca, AlpacaGPT4])
def test_alpaca_is_downloaded_once(kind: type[Alpaca], site: Site, tokenizer: Tokenizer, tmp_path: Path) -> None:
    site.files["/a.json"] = json.dumps(ROWS).encode()
    for _ in range(2):
        module = prepared(kind(download_dir=tmp_path, file_url=f"{site.url}/a.json"), tokenizer)
    assert site.asked == ["/a.json"]
    assert len(module.train_dataset) + len(module.val_dataset) == 30
    assert "### Instruction:\nSay" in words(tokenizer, module.train_dataset[0])


def test_flan_has_subsets_with_validation_samples(site: Site, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for subset, word in (("cb", "a"), ("wnli", "b")):
        for split in ("train", "test"):
            rows = "".join(
                json.dumps({"inputs": f"{split} {i}", "targets": word, "task": "t"}) + "\n" for i in range(3)
            )
            site.files[f"/{split}/{subset}_10templates_{split}.jsonl"] = rows.encode()
    module = prepared(FLAN(subsets="cb_10templates,wnli_10templates", url=site.url, download_dir=tmp_path), tokenizer)
    assert (len(module.train_dataset), len(module.val_dataset)) == (6, 6)
    assert words(tokenizer, module.train_dataset[5]).endswith("train 2\n\n### Response:\nb")
    assert module.train_dataset.question(0)[0] == "train 0"
    with pytest.raises(LitGPTError, match="no subset 'cb'. Closest: cb_10templates"):
        FLAN(subsets="cb")
    assert len(FLAN().files()[0]) == 66


def test_longform_asks_by_its_input(
    site: Site, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longform, "URL", site.url)
    for name in ("train", "val"):
        site.files[f"/{name}.json"] = json.dumps([{"input": f"{name}?", "output": "Long.", "source": "x"}] * 2).encode()
    module = prepared(LongForm(download_dir=tmp_path), tokenizer)
    assert words(tokenizer, module.val_dataset[0]).endswith("### Instruction:\nval?\n\n### Response:\nLong.")


def test_tinystories_are_unpacked_and_the_first_file_validates(
    site: Site, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for number in range(3):
            content = json.dumps([{"story": f" Tale {number}-{i}. "} for i in range(4)]).encode()
            entry = tarfile.TarInfo(f"./../data{number:02}.json")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    site.files["/s.tar.gz"] = packed.getvalue()
    monkeypatch.setattr(tinystories, "URL", f"{site.url}/s.tar.gz")
    module = prepared(TinyStories(tmp_path / "stories"), tokenizer, 8)
    assert tokenizer.decode(module.val_dataset.tokens.tolist()) == "".join(f"Tale 0-{i}." for i in range(4))
    assert not list(tmp_path.glob("data*")), "an archive wrote beside its folder"
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "TinyStories_all_data.tar.gz").write_bytes(b"oops")
    with pytest.raises(LitGPTError, match="TinyStories_all_data.tar.gz is damaged"):
        prepared(TinyStories(tmp_path / "bad"), tokenizer, 8)
    assert not (tmp_path / "bad" / "TinyStories_all_data").exists()


@pytest.mark.parametrize(
    ("trouble", "complaint"),
    [("absent", "answers 404"), ("short", "can't be downloaded"), ("stalled", "timed out"), ("gone", "refused")],
)
def test_a_download_that_fails_is_one_sentence_and_leaves_nothing(
    site: Site, tmp_path: Path, trouble: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    if trouble != "absent":
        site.files["/a.json"] = b"[{},]"
    site.short, site.stalled = trouble == "short", trouble == "stalled"
    url = "http://127.0.0.1:9/a.json" if trouble == "gone" else f"{site.url}/a.json"
    with pytest.raises(LitGPTError, match=complaint) as caught:
        fetch_file(url, tmp_path / "data" / "a.json")
    assert "\n" not in str(caught.value) and str(tmp_path / "data" / "a.json") in str(caught.value)
    assert not list((tmp_path / "data").iterdir()) if (tmp_path / "data").exists() else True


def test_a_download_goes_on_where_it_broke_off(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    url, target = f"{site.url}/a.bin", tmp_path / "data" / "a.bin"
    site.files["/a.bin"], site.tag = bytes(range(256)) * 40, "one"
    site.breaks = [3000, 100]
    fetch_file(url, target)
    assert site.starts == [0, 3000, 3100] and target.read_bytes() == site.files["/a.bin"]
    fetch_file(url, target)
    assert len(site.starts) == 3, "what is there was fetched again"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("changed", [False, True])
def test_a_run_goes_on_with_what_an_ended_one_left_of_the_same_file(
    site: Site, tmp_path: Path, changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    url, target = f"{site.url}/a.bin", tmp_path / "data" / "a.bin"
    site.files["/a.bin"], site.tag = bytes(range(256)) * 40, "one"
    site.breaks = [5000, *[0] * 5]  # and nothing more, till the client gives up
    with pytest.raises(LitGPTError, match="can't be downloaded"):
        fetch_file(url, target)
    assert not target.exists() and [file.stat().st_size for file in target.parent.iterdir()] == [5000]
    if changed:
        site.files["/a.bin"], site.tag = site.files["/a.bin"][::-1], "two"
    site.starts.clear()
    fetch_file(url, target)
    assert site.starts == [0 if changed else 5000] and target.read_bytes() == site.files["/a.bin"]
    assert list(target.parent.iterdir()) == [target]


FROM_THE_HUB = """
import json, sys
from pathlib import Path
from litgpt import data
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer
tokenizer = Tokenizer(sys.argv[1])
found = {}
for name, cls, arguments in json.loads(sys.argv[2]):
    module = getattr(data, cls)(**arguments)
    module.log = lambda sentence: None
    module.connect(tokenizer, max_seq_length=16 if cls == "OpenWebText" else None)
    try:
        module.prepare_data()
        module.setup()
    except LitGPTError as error:
        found[name] = str(error)
        continue
    found[name] = [[tokenizer.decode(d[i]["input_ids"]) for i in range(len(d))] if d else None
                   for d in (module.train_dataset, module.val_dataset)]
print(json.dumps(found))
"""


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def dialog(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_data_sets_come_from_the_hub(tokenizer: Tokenizer, tmp_path: Path) -> None:
    talk = {"messages": dialog("q1", "a1", "q2", "a2"), "prompt": "q1"}
    asked = [
        ("alpaca2k", "Alpaca2k", {"download_dir": "2k", "repo_id": "org/2k", "prompt_style": "default"}),
        ("deita", "Deita", {"repo_id": "org/deita", "prompt_style": "chat", "download_dir": "d"}),
        ("turns", "Deita", {"repo_id": "org/deita", "prompt_style": "chat", "download_dir": "d",
                            "include_multiturn_conversations": True}),
        ("closed", "LIMA", {"repo_id": "org/lima", "prompt_style": "default"}),
        ("lima", "LIMA", {"repo_id": "org/lima", "prompt_style": "default", "access_token": "good"}),
        ("conversations", "Conversations", {"repo_id": "org/deita", "split": "train_sft", "val_split": "test_sft"}),
        ("no split", "Conversations", {"repo_id": "org/deita", "split": "dev"}),
        ("nowhere", "Conversations", {"repo_id": "org/nowhere"}),
        ("languages", "Conversations", {"repo_id": "org/languages"}),
        ("french", "Conversations", {"repo_id": "org/languages", "subset": "fr", "val_split": "dev"}),
        ("pages", "OpenWebText", {"data_path": "pages", "val_split_fraction": 0.5}),
        ("half", "OpenWebText", {"data_path": "half", "val_split_fraction": 0.5}),
    ]  # fmt: skip
    with serve() as hub:
        hub.tokens.add("good")
        hub.add("org/2k", **{"README.md": b"", "data/train.jsonl": lines([{**ROWS[i], "text": "x"} for i in range(3)])})
        hub.add("org/deita", **{"data/train_gen.jsonl": lines([{"x": 1}]), "data/train_sft.jsonl": lines([talk] * 2),
                                "data/test_sft-00000-of-00001.jsonl": lines([talk])})  # fmt: skip
        talks = lines([{"conversations": ["q", "a", "q", "a"], "source": "x"}] * 2)
        hub.add("org/lima", gated=True, **{"train.jsonl": talks, "test.jsonl": lines([{"conversations": ["q"]}])})
        parts = {f"fr/{name}.jsonl": lines([{"messages": dialog("q", "a")}] * 2) for name in ("train", "dev")}
        hub.add("org/languages", **parts, **{"de/train.jsonl": lines([talk])})
        shards = {f"plain_text/train-0000{i}-of-00002.jsonl": lines([{"text": "word " * 40}]) for i in range(2)}
        hub.add("Skylion007/openwebtext", **shards)
        broken_off = tmp_path / "half" / "plain_text" / "train-00000-of-00002.jsonl"
        broken_off.parent.mkdir(parents=True)
        broken_off.write_bytes(shards["plain_text/train-00000-of-00002.jsonl"])
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", "-c", FROM_THE_HUB, str(tokenizer.checkpoint_dir), json.dumps(asked)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted([*found["alpaca2k"][0], *found["alpaca2k"][1]]) == ["Say 0.0", "Say 1.1", "Say 2.2"]
    assert found["deita"] == [["[user]q1\n[assistant]a1"] * 2, ["[user]q1\n[assistant]a1"]]
    whole = "[user]q1\n[assistant]a1\n[user]q2\n[assistant]a2"
    assert found["turns"] == found["conversations"] == [[whole] * 2, [whole]]
    assert found["lima"] == [["qa"], ["qa"]]
    assert "gated" in found["closed"] and "\n" not in found["closed"]
    assert "no files of the split 'dev'" in found["no split"] and "data/train_gen.jsonl" in found["no split"]
    assert "no repository org/nowhere" in found["nowhere"]
    assert "several folders (de, fr)" in found["languages"]
    assert found["french"] == [["[user]q\n[assistant]a"] * 2] * 2
    assert found["pages"] == found["half"] and "word" in found["pages"][0][0]


def chunks(folder: Path, tokens: int, count: int = 1) -> Path:
    """A folder as `litdata.optimize` writes it: `count` chunks of one item of `tokens` ids each."""
    import numpy as np

    folder.mkdir(parents=True)
    ids = np.arange(tokens, dtype="<i4").tobytes()
    head = np.array([1, 12, 12 + len(ids)], dtype="<u4").tobytes()
    names = [f"chunk-0-{number}.bin" for number in range(count)]
    for name in names:
        (folder / name).write_bytes(head + ids)
    of_each = {"chunk_bytes": len(head + ids), "chunk_size": 1, "dim": tokens}
    listed = [{**of_each, "filename": name} for name in names]
    spec = '[1, {"type": null, "context": null, "children_spec": []}]'
    config = {"chunk_bytes": 10**6, "chunk_size": None, "compression": None, "data_format": ["no_header_tensor:16"],
              "data_spec": spec, "encryption": None, "item_loader": "TokensLoader"}  # fmt: skip
    (folder / "index.json").write_text(json.dumps({"chunks": listed, "config": config, "updated_at": "0"}))
    return folder


def test_chunks_of_litdata_are_read_and_mixed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("litdata")
    chunks(tmp_path / "slimpajama" / "train", 100), chunks(tmp_path / "slimpajama" / "val", 30)
    chunks(tmp_path / "starcoder", 60)
    module = prepared(LitData(tmp_path / "slimpajama", ("train", "val")), tokenizer, 9)
    assert (len(module.train_dataset), len(module.val_dataset)) == (10, 3)
    assert module.train_dataset[2]["input_ids"].tolist() == list(range(20, 30))
    with pytest.raises(LitGPTError, match="token id 99"):
        module.check_vocabulary(99)
    mixed = prepared(TinyLlama(tmp_path), tokenizer, 9).train_dataset
    assert len(mixed) == 16 and mixed.counts == [11, 5]
    assert len(prepared(MicroLlama(tmp_path), tokenizer, 9).train_dataset) == 10


def test_chunks_of_litdata_are_read_one_after_the_other(tmp_path: Path) -> None:
    pytest.importorskip("litdata")
    dataset = LitDataBlocks(str(chunks(tmp_path / "train", 100, count=3)), 9)
    order = dataset.order(5)
    assert sorted(order) == list(range(30)) and order[:10] != sorted(order[:10])
    assert [len({number // 10 for number in order[start : start + 10]}) for start in (0, 10, 20)] == [1, 1, 1]
    assert [dataset.known_length(index) for index in range(30)] == [len(each["input_ids"]) for each in dataset]
    mixed = MixedDataset([dataset, dataset], [1, 1], None, seed=1)
    assert mixed.known_length(3) == 10
    of_first = [mixed._locate(place)[1] // 10 for place in range(30)]
    assert all(len(set(of_first[start : start + 10])) == 1 for start in (0, 10, 20))


def test_prepared_data_that_is_not_there_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(LitGPTError, match="slimpajama/val, slimpajama/train, starcoder, as chunks"):
        prepared(TinyLlama(tmp_path), tokenizer, 9)
    with pytest.raises(LitGPTError, match=r"no index\.json|install it by"):
        prepared(LitData(tmp_path), tokenizer, 9)


@pytest.mark.parametrize("source", [lambda folder: TextFiles(folder), lambda folder: TinyStories(folder)])
def test_what_litgpt_has_prepared_of_texts_is_read(source: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("litdata")
    chunks(tmp_path / "train", 100), chunks(tmp_path / "val", 30)
    module = prepared(source(tmp_path), tokenizer, 9)
    assert (len(module.train_dataset), len(module.val_dataset)) == (10, 3)
    with pytest.raises(LitGPTError, match="token id 99"):
        module.check_vocabulary(99)


def test_code_that_microllama_leaves_out_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("litdata")
    for name in ("slimpajama/train", "slimpajama/val", "starcoder"):
        chunks(tmp_path / name, 60)
    for chosen in (True, False):
        module, said = MicroLlama(tmp_path, use_starcoder=chosen), list[str]()
        module.log = said.append
        module.connect(tokenizer, max_seq_length=9)
        module.setup()
        assert any("starcoder is not read" in line for line in said) == chosen


def test_a_bad_number_of_workers_is_refused(tmp_path: Path) -> None:
    module = JSON(tmp_path / "a.json", num_workers=-1)
    module.train_dataset = [1]
    for use in (module.train_dataloader, module.read_ahead):
        with pytest.raises(LitGPTError, match="num_workers is a whole number, 0 or more, not -1"):
            use()

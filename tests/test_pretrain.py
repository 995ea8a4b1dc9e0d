"""`litgpt pretrain`: from text to a checkpoint folder, and nanoGPT's numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from litgpt.args import EvalArgs, TrainArgs
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.cli.parser import parse
from litgpt.config import Config
from litgpt.data import TextFiles, TokenFiles
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.pretrain import setup
from litgpt.runtime import make_fabric
from litgpt.tokenizer import Tokenizer
from litgpt.training.loop import fit
from litgpt.training.metrics.loggers import read_metrics
from litgpt.training.run import Run
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("no_picture")

RECIPE = ROOT / "config_hub" / "pretrain" / "shakespeare_char.yaml"
TEXT = "".join(f"The {noun} {verb} the {noun}.\n" for noun in ("cat", "dog", "fox") for verb in ("saw", "met")) * 20


def tiny(**changes: Any) -> Config:
    """nanoGPT's structure, smaller."""
    recipe = yaml.safe_load(RECIPE.read_text())["model_config"]
    sizes = dict(block_size=16, n_layer=1, n_head=2, n_embd=16, vocab_size=24, padded_vocab_size=24)
    return Config(**{**recipe, **sizes, **changes})


def arguments(folder: Path, text: str = TEXT, **changes: Any) -> dict[str, Any]:
    """A run of three steps on a few characters."""
    (folder / "text.txt").write_text(text)
    train = dict(
        max_steps=3,
        max_tokens=None,
        global_batch_size=4,
        micro_batch_size=2,
        lr_warmup_steps=1,
        max_norm=1.0,
        min_lr=0.0,
    )
    values: dict[str, Any] = dict(
        model_name="tiny",
        model_config=tiny(),
        out_dir=folder / "out",
        precision="32-true",
        data=TextFiles(folder / "text.txt", characters=True, val_split_fraction=0.2, cache_dir=folder / "cache"),
        train=TrainArgs(**{**train, **changes.pop("train", {})}),
        eval=EvalArgs(interval=2, max_iters=2),
        devices=1,
        logger_name="csv",
    )
    return {**values, **changes}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The `out_dir` of a run with a saved step."""
    folder = tmp_path_factory.mktemp("trained")
    setup(**arguments(folder, train={"save_interval": 2}))
    return folder / "out"


def test_the_final_folder_is_a_whole_checkpoint(trained):
    final = trained / "final"
    files = {"hyperparameters.yaml", "lit_model.pth", "model_config.yaml", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in final.iterdir()} == files
    model = load_model(final)
    assert model.config == tiny()
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 24)
    tokenizer = Tokenizer(final)
    assert tokenizer.decode(tokenizer.encode("The cat.")) == "The cat."


def test_weights_are_written_as_litgpt_has_them_and_tied_ones_once(trained):
    (content,) = (whole := torch.load(trained / "final" / "lit_model.pth", weights_only=True)).values()
    assert whole.keys() == {"model"}
    assert content["lm_head.weight"].data_ptr() == content["transformer.wte.weight"].data_ptr()


def test_steps_are_numbered_with_eight_digits(trained):
    assert (trained / "step-00000002" / "training_state.pt").is_file()


def test_hyperparameters_are_a_configuration_that_repeats_the_run(trained):
    content = yaml.safe_load((trained / "final" / "hyperparameters.yaml").read_text())
    assert content["data"]["class_path"] == "litgpt.data.TextFiles"
    assert content["train"]["max_steps"] == 3
    assert content["model_config"]["n_embd"] == 16


def test_the_loss_falls_and_is_logged(tmp_path):
    setup(**arguments(tmp_path, train={"max_steps": 60}, optimizer={"class_path": "AdamW", "init_args": {"lr": 1e-2}}))
    rows = read_metrics(tmp_path / "out" / "logs" / "csv" / "version_0" / "metrics.csv")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 60
    assert losses[-1] < losses[0] - 1


def test_an_interrupted_run_goes_on(trained, tmp_path):
    setup(**arguments(tmp_path, train={"max_steps": 3}))
    fresh = load_pth(tmp_path / "out" / "final" / "lit_model.pth")
    setup(**arguments(tmp_path, out_dir=tmp_path / "again", resume=trained / "step-00000002"))
    again = load_pth(tmp_path / "again" / "final" / "lit_model.pth")
    assert all(torch.equal(tensor, again[name]) for name, tensor in fresh.items())


def test_training_goes_on_from_a_checkpoint(trained, tmp_path):
    setup(
        **arguments(
            tmp_path,
            model_name="whatever",
            model_config=None,
            initial_checkpoint_dir=trained / "final",
            data=TextFiles(tmp_path / "text.txt", val_split_fraction=0.2, cache_dir=tmp_path / "cache"),
            optimizer={"class_path": "SGD", "init_args": {"lr": 1e-9}},
        )
    )
    before, after = (load_pth(folder / "final" / "lit_model.pth") for folder in (trained, tmp_path / "out"))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)
    assert (tmp_path / "out" / "final" / "tokenizer.json").is_file()


def test_another_model_than_the_checkpoints_is_refused(trained, tmp_path):
    with pytest.raises(LitGPTError, match="holds another model"):
        setup(**arguments(tmp_path, model_config=tiny(n_layer=2), initial_checkpoint_dir=trained / "final"))


def test_a_head_of_its_own_is_not_thrown_away(tmp_path):
    setup(**arguments(tmp_path, model_config=tiny(tie_embeddings=False), train={"max_steps": 1}))
    start = dict(initial_checkpoint_dir=tmp_path / "out" / "final", model_config=tiny(tie_embeddings=False))
    with pytest.raises(LitGPTError, match=r"train\.tie_embeddings would throw away the head"):
        setup(**arguments(tmp_path, out_dir=tmp_path / "tied", train={"tie_embeddings": True}, **start))


def test_embeddings_are_tied_on_request(tmp_path):
    setup(
        **arguments(tmp_path, model_config=tiny(tie_embeddings=False), train={"tie_embeddings": True, "max_steps": 1})
    )
    assert load_model(tmp_path / "out" / "final").tied


def test_blocks_are_as_long_as_asked(tmp_path):
    run = arguments(tmp_path, train={"max_seq_length": 8, "max_steps": 1})
    setup(**run)
    assert {len(sample["input_ids"]) for sample in (run["data"].train_dataset[i] for i in range(3))} == {9}


def test_token_files_are_read(tmp_path):
    ids = torch.randint(24, (500,), dtype=torch.int16).numpy()
    ids.tofile(tmp_path / "train.bin")
    setup(**arguments(tmp_path, data=TokenFiles(tmp_path)))
    assert (tmp_path / "out" / "final" / "lit_model.pth").is_file()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(data=None), "Nothing says what to train on"),
        (dict(model_config=tiny(vocab_size=5, padded_vocab_size=5)), r"outside 0 \.\.\. 4, the model's vocabulary"),
        (dict(model_config=None, model_name="pythia-14"), "Closest: .*pythia-14m"),
        (dict(resume=True), "nothing to resume from"),
        (dict(train={"max_seq_length": 17}), "context is 16 tokens"),
        (dict(train={"max_steps": None}), "when to stop"),
        (dict(optimizer="Adan"), "no optimizer 'Adan'"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(LitGPTError, match=sentence):
        setup(**arguments(tmp_path, **changes))


def test_list_prints_the_names(capsys):
    setup("list")
    assert {"pythia-14m", "Llama-3.2-1B"} <= set(capsys.readouterr().out.split())


# ------------------------------------------------------------------------------------------------------ nanoGPT


def nanogpt_weights(config: Config) -> dict[str, Tensor]:
    """The random weights that nanoGPT starts from, drawn in the order in which it makes its layers."""
    assert config.padded_vocab_size is not None
    C, V, L = config.n_embd, config.padded_vocab_size, config.n_layer
    shapes = {"attn.qkv": (3 * C, C), "attn.proj": (C, C), "mlp.fc": (4 * C, C), "mlp.proj": (C, 4 * C)}
    nn.Embedding(V, C), nn.Embedding(config.block_size, C)
    for out, inner in (*(shapes.values()),) * L:
        nn.Linear(inner, out, bias=False)
    nn.Linear(C, V, bias=False)
    weights: dict[str, Tensor] = {}

    def draw(name: str, shape: tuple[int, int], std: float = 0.02) -> None:
        weights[f"{name}.weight"] = torch.empty(shape).normal_(0.0, std)

    draw("transformer.wte", (V, C))
    draw("transformer.wpe", (config.block_size, C))
    for layer in range(L):
        for name, shape in shapes.items():
            draw(f"transformer.h.{layer}.{name}", shape)
    draw("transformer.wte", (V, C))  # once more, as the head it is tied to
    for layer in range(L):
        for name in ("attn.proj", "mlp.proj"):
            draw(f"transformer.h.{layer}.{name}", shapes[name], 0.02 / (2 * L) ** 0.5)
    for name in (f"transformer.h.{layer}.norm_{n}" for layer in range(L) for n in (1, 2)):
        weights[f"{name}.weight"] = torch.ones(C)
    weights["transformer.ln_f.weight"] = torch.ones(C)
    return {**weights, "lm_head.weight": weights["transformer.wte.weight"]}


class NanoGPTBatches:
    """Samples in the order nanoGPT draws them: 12 offsets a step, and 40 batches of an evaluation after the first."""

    def __init__(self, ids: Tensor, n_val: int, length: int, steps: int) -> None:
        self.ids, self.length = ids, length
        draws = [torch.randint(len(ids) - length, (12,))]
        for n in (len(ids), n_val):
            for _ in range(20):
                torch.randint(n - length, (12,))
        draws += [torch.randint(len(ids) - length, (12,)) for _ in range(steps - 1)]
        self.offsets = torch.cat(draws).tolist()
        self.read = 0

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        offset = self.offsets[self.read]  # in order, whatever the loop's permutation
        self.read += 1
        ids = self.ids[offset : offset + self.length + 1]
        return {"input_ids": ids, "labels": ids}


def test_losses_are_nanogpts_from_its_weights_and_batches(shared_assets, tmp_path):
    recipe = parse("pretrain", setup, ["--config", str(RECIPE)])
    text = (shared_assets / "text" / "tinyshakespeare.txt").read_text()
    symbol_ids = {symbol: number for number, symbol in enumerate(sorted(set(text)))}
    ids = torch.tensor([symbol_ids[symbol] for symbol in text])
    config = recipe["model_config"]
    cut = int(0.9 * len(ids))
    model = GPT(config)
    torch.manual_seed(1337)
    model.load_state_dict(nanogpt_weights(config))
    batches = NanoGPTBatches(ids[:cut], len(ids) - cut, 64, steps=11)
    run = Run(
        model=model,
        train_dataset=batches,
        val_dataset=None,
        train=replace(recipe["train"], log_interval=1),
        eval=EvalArgs(),
        out_dir=tmp_path,
        save=lambda folder: None,
        fabric=make_fabric(1, precision="32-true", device="cpu"),
        optimizer=recipe["optimizer"],
    )
    losses = first_losses(run, steps=11)
    assert [round(losses[step], 4) for step in (0, 1, 2, 10)] == [4.1828, 4.1373, 4.1347, 3.7366]


def first_losses(run: Run, steps: int) -> list[float]:
    """The losses of the first steps of a longer run."""

    class Enough(Exception):
        pass

    class Listening:
        losses: list[float] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.losses.append(metrics["loss"])
            if len(self.losses) == steps:
                raise Enough

        def finalize(self, status: str) -> None: ...

    listener = Listening()
    run.loggers = [listener]
    with pytest.raises(Enough):
        fit(run)
    return listener.losses


@pytest.mark.slow
def test_the_recipe_reaches_nanogpts_validation_loss(shared_assets, tmp_path):
    """Published: 1.88; nanoGPT measured on the whole validation part: 1.898; 20 random batches scatter by 0.01."""
    text = shared_assets / "text" / "tinyshakespeare.txt"
    changed = ["--data.train_data_path", str(text), "--data.cache_dir", str(tmp_path / "cache")]
    changed += ["--eval.interval", "1000", "--out_dir", str(tmp_path / "out")]
    setup(**parse("pretrain", setup, ["--config", str(RECIPE), *changed]))
    rows = read_metrics(tmp_path / "out" / "logs" / "csv" / "version_0" / "metrics.csv")
    assert [row["val_loss"] for row in rows if "val_loss" in row][-1] == pytest.approx(1.898, abs=0.02)

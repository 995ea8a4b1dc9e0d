"""What LitGPT's users write with its data modules: arguments by position, `connect`, `token_counts`, a `Trainer`."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt import data
from litgpt.data.storage.token_cache import code_identity
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer
from tests.paths import GOLDEN

ROWS = [{"instruction": f"Say {number}.", "input": "now", "output": str(number)} for number in range(12)]


def rows_file(folder: Path) -> Path:
    (folder / "a.json").write_text(json.dumps(ROWS))
    return folder / "a.json"


GIVEN = {
    "prompt_style": "flan",
    "split_names": ("a", "b"),
    "val_split_fraction": 0.5,
    "subsets": "qnli_10templates",
    "val_data_path": None,
    "num_workers": 3,
    "use_starcoder": False,
}
"""Arguments that not every text will do for."""


def test_arguments_by_position_are_litgpts() -> None:
    for name, arguments in json.loads((GOLDEN / "data_modules.json").read_text()).items():
        typed = [GIVEN.get(argument, f"value of {argument}") for argument in arguments]
        module = getattr(data, name)(*typed)
        for argument, value in zip(arguments, typed, strict=True):
            if argument != "prompt_style":
                assert str(getattr(module, argument)) == str(value), (name, argument)
    with pytest.raises(TypeError, match="multiple values for .* 'mask_prompt'"):
        data.Alpaca(True, mask_prompt=False)
    with pytest.raises(TypeError, match="by position"):
        data.Alpaca(*range(20))


def test_a_module_of_ones_own_may_be_connected_to_more() -> None:
    class Own(data.DataModule):
        def setup(self, stage: str = "") -> None: ...

    Own().connect(None, 2, 8, shards=3)
    with pytest.raises(LitGPTError, match="Alpaca.connect has no argument 'shards'"):
        data.Alpaca().connect(shards=3)


@pytest.mark.parametrize("style", ["alpaca", "default", "chat"])
def test_samples_and_batches_count_their_tokens(style: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    module = data.JSON(rows_file(tmp_path), False, 0.5, style, num_workers=0)
    module.log = lambda sentence: None
    module.connect(tokenizer, batch_size=3)
    module.setup()
    batch = next(iter(module.val_dataloader()))
    for number, row in enumerate(module.val_dataset.data[:3]):
        raw = len(tokenizer.encode(row["instruction"])) + len(tokenizer.encode(row["output"], bos=False, eos=True))
        assert batch["token_counts"]["raw"][number].tolist() == [raw]
        size = len(module.val_dataset[number]["input_ids"])
        assert batch["token_counts"]["raw_plus_prompt_template"][number].tolist() == [size]


def test_what_looks_like_a_special_token_is_counted_as_the_text_that_it_is(tokenizer: Tokenizer) -> None:
    row = {"instruction": f"Say {sorted(tokenizer.special_tokens)[0]}.", "output": "it"}
    sample = data.SFTDataset([row], tokenizer, "default")[0]
    assert sample["token_counts"] == {name: len(sample["input_ids"]) for name in ("raw", "raw_plus_prompt_template")}


@pytest.mark.parametrize("fraction", [-0.1, 1, 2])
def test_a_share_to_validate_on_is_checked_before_anything_is_read(fraction: float) -> None:
    for module in (data.Alpaca, data.LIMA, lambda **given: data.JSON("a.json", **given)):
        with pytest.raises(LitGPTError, match="val_split_fraction must lie between"):
            module(val_split_fraction=fraction)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.filterwarnings("ignore")
def test_a_trainer_takes_them(package: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    lightning, lightning_pytorch = pytest.importorskip(package), pytest.importorskip("lightning.pytorch")

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = torch.nn.Embedding(len(tokenizer), 1), 0

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            self.seen += 1
            return self.layer(batch["input_ids"]).mean()

        def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
            self.seen += 100

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    module, model = data.JSON(rows_file(tmp_path), val_split_fraction=0.25, num_workers=0), Model()
    name = code_identity(module)
    module.log = lambda sentence: None
    module.connect(tokenizer, batch_size=3)
    wrapped = data.lightning(module)
    assert isinstance(wrapped, lightning_pytorch.LightningDataModule) and wrapped.module is module
    assert isinstance(module, data.JSON) and isinstance(module, lightning.LightningDataModule)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, num_sanity_val_steps=0, **quiet)
    trainer.fit(model, module)
    assert model.seen == 103
    if package == "lightning.pytorch":
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, num_sanity_val_steps=0, **quiet)
        trainer.fit(again := Model(), wrapped)
        assert again.seen == 103
    assert code_identity(module) == name
    connected = data.Alpaca()
    connected.connect()
    assert type(pickle.loads(pickle.dumps(connected))) is data.Alpaca

"""A mixture of several sources, each with a weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from litgpt.data.base import DataModule
from litgpt.data.registry import MODULES, find_module
from litgpt.data.storage.combined_datasets import ConcatDataset, MixedDataset
from litgpt.errors import LitGPTError, closest, quoted


@dataclass
class Mixture(DataModule):
    """Samples of several sources, in proportion to their weights; all of the validation samples validate."""

    sources: list[dict[str, Any]]
    """The sources, each with `weight` (1 if left out) and the arguments of Conversations (`path: a.jsonl`), or with
    `class_path` and `init_args` of any data module."""
    epoch_size: int | None = None
    """Samples of an epoch; null: as many as the sources have together."""
    seed: int = 42
    """Of the order in which each source is gone through."""
    num_workers: int = 4
    """Steps that training reads ahead; processes of `train_dataloader()` and `val_dataloader()`. 0: none."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise LitGPTError("data.sources names no source to mix.")
        if self.epoch_size is not None and self.epoch_size < 1:
            raise LitGPTError(f"data.epoch_size must be at least 1, not {self.epoch_size}.")
        self.weights = [_weight(number, source) for number, source in enumerate(self.sources)]
        self.modules = [_module(number, source) for number, source in enumerate(self.sources)]

    def on_connect(self) -> None:
        for module in self.modules:
            module.log, module.pretraining = self.log, self.pretraining
            module.connect(self.tokenizer, self.batch_size, self.max_seq_length)

    def prepare_data(self) -> None:
        for module in self.modules:
            module.prepare_data()

    def setup(self, stage: str = "") -> None:
        for module in self.modules:
            module.setup(stage)
        self._check_styles()
        self.train_dataset = MixedDataset(
            [module.train_dataset for module in self.modules], self.weights, self.epoch_size, self.seed
        )
        validating = [module.val_dataset for module in self.modules if module.val_dataset is not None]
        self.val_dataset = ConcatDataset(validating) if validating else None
        names = [source.get("path") or source.get("repo_id") or source.get("class_path") for source in self.sources]
        shown = (f"{count:,} of {name}" for count, name in zip(self.train_dataset.counts, names, strict=True))
        self.log(f"Each epoch has {len(self.train_dataset):,} samples: {', '.join(shown)}.")

    @property
    def prompt_style(self) -> Any:
        """How the samples are rendered, the same for all sources; None: they are tokens already."""
        return getattr(self.modules[0], "prompt_style", None)

    def check_vocabulary(self, size: int) -> None:
        """Raises a LitGPTError when a token id of a source is `size` or more."""
        for module in self.modules:
            check: Callable[[int], None] | None = getattr(module, "check_vocabulary", None)
            if check is not None:
                check(size)

    def _check_styles(self) -> None:
        """A model can be prompted in one way only."""
        from litgpt.data.sft.encoding import style_key
        from litgpt.prompts import PromptStyle

        styles = [getattr(module, "prompt_style", None) for module in self.modules]
        keys = {style_key(style) for style in styles if isinstance(style, PromptStyle)}
        if len(keys) > 1:
            names = ", ".join(sorted({type(style).__name__ for style in styles}))
            raise LitGPTError(
                f"The sources of the mixture have different prompt styles ({names}); give all the same prompt_style."
            )


def _weight(number: int, source: Any) -> float:
    if not isinstance(source, dict):
        raise LitGPTError(f"data.sources[{number}] is `name: value` lines with a weight, not {quoted(source)}.")
    weight = source.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise LitGPTError(f"data.sources[{number}].weight must be a number above 0, not {quoted(weight)}.")
    return float(weight)


def _module(number: int, source: dict[str, Any]) -> DataModule:
    """The data module of a source."""
    arguments = {key: value for key, value in source.items() if key != "weight"}
    path = arguments.pop("class_path", None)
    if path is not None:
        own = arguments.pop("init_args", None) or {}
        if not isinstance(own, dict):
            raise LitGPTError(f"data.sources[{number}].init_args is `name: value` lines, not {quoted(own)}.")
        arguments = {**own, **arguments}
    name = str(path or "Conversations").removeprefix("litgpt.data.")
    if name not in MODULES and "." not in name:
        raise LitGPTError(f"data.sources[{number}]: unknown data module {quoted(path)}.{closest(name, MODULES)}")
    try:
        module, _, attribute = name.rpartition(".")
        cls = find_module(name) if name in MODULES else getattr(import_module(module), attribute)
        found: DataModule = cls(**arguments)
        if getattr(found, "compares", False):
            raise LitGPTError(f"data.sources[{number}]: {name} has answers to compare, which can't be mixed with text.")
        if getattr(found, "asks", False):
            raise LitGPTError(f"data.sources[{number}]: {name} has prompts alone, which can't be mixed with text.")
        return found
    except LitGPTError:
        raise
    except (TypeError, ImportError, AttributeError) as error:
        reason = str(error).replace(".__init__()", "")
        raise LitGPTError(f"data.sources[{number}]: {reason}.") from None

"""Data modules in Lightning's `Trainer`, which takes no other than its own kind: `lightning` wraps one.

As in LitGPT, a module that `connect` was called on may go into a `Trainer` by itself, too. That imports nothing of
Lightning: where a program has its `Trainer`, it has its data module as well.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from litgpt.args import PLAIN_CLASS, import_path, plain_class

MODULES = ("lightning.pytorch.core.datamodule", "pytorch_lightning.core.datamodule")
"""Where the class is, in either of the packages that have it."""


def lightning(module: Any) -> Any:
    """Wraps a data module for Lightning's `Trainer`: a `LightningDataModule` with its loaders; `connect` it first.

    Example:
        trainer.fit(model, litgpt.data.lightning(data))
    """
    from lightning.pytorch import LightningDataModule

    class Wrapped(LightningDataModule):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def prepare_data(self) -> None:
            module.prepare_data()

        def setup(self, stage: str) -> None:
            module.setup(stage)

        def train_dataloader(self) -> Any:
            return module.train_dataloader()

        def val_dataloader(self) -> Any:
            return module.val_dataloader()

    return Wrapped()


def as_lightning(module: Any) -> None:
    """Makes a data module one of Lightning's as well, if Lightning is imported; its own methods stay what they are."""
    kinds = tuple(sys.modules[name].LightningDataModule for name in MODULES if name in sys.modules)
    missing = tuple(kind for kind in kinds if not isinstance(module, kind))
    if not missing:
        return
    cls: Any = type(module)
    module.__class__ = _joined(cls, missing)
    for kind in missing:
        kind.__init__(module)


@lru_cache(maxsize=64)
def _joined(cls: type, kinds: tuple[type, ...]) -> type:
    """A class that is both, by the name of the first, so that it is no other to a command line; it is pickled as the
    first, and hashed as it."""
    module, _, name = import_path(cls).rpartition(".")
    body = {"__module__": module, "__qualname__": name, "__doc__": cls.__doc__, PLAIN_CLASS: cls}
    return type(cls)(cls.__name__, (cls, *kinds), {**body, "__reduce_ex__": _reduce})


def _reduce(module: Any, protocol: Any) -> Any:
    return _restored, (plain_class(type(module)), {k: v for k, v in vars(module).items() if k != "trainer"})


def _restored(cls: Any, state: dict[str, Any]) -> Any:
    module = cls.__new__(cls)
    vars(module).update(state)
    return module

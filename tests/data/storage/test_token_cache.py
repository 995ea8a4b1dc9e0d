"""Token files: their names outlive the modules' own."""

from __future__ import annotations

from typing import Any

import pytest

from litgpt.data import Deita
from litgpt.data.storage.token_cache import identity
from litgpt.prompts import PromptStyle


@pytest.mark.parametrize(
    ("thing", "names"),
    [
        (
            Deita(),
            "litgpt.data.deita.Deita litgpt.data.turns.TurnsModule litgpt.data.instructions.SFTModule "
            "litgpt.data.base.DataModule abc.ABC",
        ),
        (PromptStyle.from_name("alpaca"), "litgpt.prompts.Alpaca litgpt.prompt_style.PromptStyle"),
    ],
)
def test_hashes_keep_the_names_of_classes_that_moved(thing: Any, names: str) -> None:
    """Else every cache written before a move would be written anew."""
    assert identity(thing).decode().split("\n")[1:] == names.split()

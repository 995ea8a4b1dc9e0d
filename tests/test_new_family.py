"""The skeleton of a new family's file names every tensor, and is a family."""

from __future__ import annotations

import re

import pytest

from litgpt.families.base import Family
from tests import new_family


@pytest.mark.parametrize("kind", ["helium", "jais2", "gptj"])
def test_a_skeleton_is_a_family_whose_table_has_every_tensor(kind):
    text = new_family.skeleton(kind)
    module: dict[str, object] = {"__name__": "skeleton"}
    exec(compile(text, "skeleton", "exec"), module)
    family = module["FAMILY"]
    assert isinstance(family, Family)
    architecture, modules = new_family.their_modules(new_family.their_config(kind))
    assert family.architectures == (architecture,)
    named = {name for parts in new_family.modules_of(family).values() for name in parts}
    assert modules - {"lm_head"} <= named
    missing = re.findall(r"Same\('(.+?)'", text)
    assert not set(missing) - modules


def test_what_the_nearest_family_does_not_know_is_listed():
    assert "attention_out_bias = False" in new_family.skeleton("seed_oss")


def test_a_family_whose_table_asks_for_the_sizes_is_found_and_names_are_those_of_files():
    text = new_family.skeleton("lfm3")
    assert "from litgpt.families import lfm\n" in text and "lfm.DENSE.rules(config)" in text
    assert "self_attn.gate_proj" in text and "g_proj'" not in text.replace("gate_proj", "")
    compile(text, "skeleton", "exec")


def test_a_model_that_sees_as_well_gives_the_family_of_its_text():
    text = new_family.skeleton("muse_glimmer")
    assert "name='muse_glimmer_text'" in text and "'num_key_value_heads': 2" in text
    assert "vision" not in text


def test_a_file_that_exists_is_left_alone(tmp_path, capsys):
    file = tmp_path / "helium.py"
    assert new_family.main(["helium", str(file)]) == 0
    written = file.read_text()
    file.write_text("mine")
    assert new_family.main(["helium", str(file)]) == 1
    assert file.read_text() == "mine"
    assert "exists" in capsys.readouterr().err
    assert "helium" in written

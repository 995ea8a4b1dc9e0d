"""What an import costs, and the public names."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

PUBLIC = (
    "LLM GPT Config PromptStyle Tokenizer CheckpointValidationResult validate_checkpoint estimate_model_memory".split()
)
HEAVY = {"torch", "lightning", "transformers", "numpy", "tokenizers", "huggingface_hub", "litserve", "matplotlib"}


def python(code: str) -> tuple[str, float]:
    """What a new interpreter prints for `code`, and the CPU seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return printed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imported(code: str) -> set[str]:
    printed, _ = python(
        f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    return set(json.loads(printed.splitlines()[-1]))


def test_importing_litgpt_loads_nothing_heavy_and_takes_no_time():
    assert not imported("import litgpt") & (HEAVY | {"yaml", "jsonargparse"})
    assert min(python("import litgpt")[1] for _ in range(3)) <= 0.1


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_resolve(name):
    import litgpt

    assert getattr(litgpt, name).__name__ == name
    assert name in litgpt.__all__ and name in dir(litgpt)


def test_an_unknown_name_is_an_attribute_error():
    import litgpt

    with pytest.raises(AttributeError, match="no attribute 'LLMM'"):
        litgpt.LLMM  # noqa: B018


def test_config_and_prompts_need_no_torch():
    assert "torch" not in imported("import litgpt.config, litgpt.prompts, litgpt.args, litgpt.families")


def test_commands_without_training_import_no_lightning():
    code = "import litgpt.api, litgpt.engine.engine, litgpt.runtime, litgpt.checkpoint.reader, litgpt.scripts.validate"
    assert not imported(code) & {"lightning", "pytorch_lightning", "litserve"}

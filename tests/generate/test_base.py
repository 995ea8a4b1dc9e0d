"""`litgpt generate` as a user sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from litgpt.checkpoint.reader import load_model
from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError
from litgpt.generate.base import generate, main
from litgpt.tokenizer import Tokenizer
from tests.engine.oracle import naive, tiny_model
from tests.generate.folder import END, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("generate") / "tiny")


def expected(folder: Path, prompt: str, n: int, sys_prompt: str | None = None) -> str:
    """Prompt and greedy answer as text, by the oracle."""
    inference_model = InferenceModel.load(folder, precision="32-true")
    ids = inference_model.encode(prompt, sys_prompt)
    answer = naive(load_model(folder), ids, n)
    return Tokenizer(folder).decode(ids + (answer[: answer.index(END)] if END in answer else answer))


@pytest.mark.parametrize("kind", ["hf", "litgpt"])
def test_it_prints_prompt_and_answer(tmp_path, capsys, kind):
    folder = make_folder(tmp_path / "tiny", kind)
    main(folder, "What food?", max_new_tokens=25, temperature=0.0, precision="32-true")
    out, err = capsys.readouterr()
    assert out == expected(folder, "What food?", 25) + "\n"
    assert "user\nWhat food?\nassistant\n" in out
    assert "Time for inference 1: " in err and "tokens/sec" in err and "sec to the first token" in err
    assert "Memory used: " in err


def test_the_system_prompt_is_in_the_prompt(folder, capsys):
    main(folder, "Hi", sys_prompt="Be brief.", max_new_tokens=5, temperature=0.0, precision="32-true")
    assert capsys.readouterr().out == expected(folder, "Hi", 5, "Be brief.") + "\n"


def test_samples_differ_and_come_again(folder, capsys):
    def samples(n: int) -> list[str]:
        main(folder, "Hi", num_samples=n, max_new_tokens=20, precision="32-true")
        return capsys.readouterr().out.split("user\nHi\nassistant\n")[1:]

    three = samples(3)
    assert len(set(three)) == 3
    assert samples(3) == three
    assert samples(1) == three[:1]


def test_a_base_models_prompt_is_continued(tmp_path, capsys):
    folder = make_folder(tmp_path / "base", template=None)
    main(folder, "Once upon", max_new_tokens=9, temperature=0.0, precision="32-true")
    out = capsys.readouterr().out
    assert out.startswith("Once upon") and out == expected(folder, "Once upon", 9) + "\n"


def test_more_tokens_than_the_context_has_end_with_the_context(folder, capsys):
    main(folder, "a" * 60, max_new_tokens=1000, temperature=0.0, precision="32-true")
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(prompt="hay " * 200), "the context only 128; shorten the prompt"),
        (dict(quantize="bnb.nf4", precision="bf16-mixed"), "bnb.nf4 computes in one dtype"),
        (dict(num_samples=0), "num_samples is 0"),
        (dict(max_new_tokens=0), "max_new_tokens is 0"),
        (dict(max_new_tokens=-1), "max_new_tokens is -1"),
        (dict(temperature=-1.0), "temperature is -1.0"),
        (dict(top_k=0), "top_k is 0"),
        (dict(precision="8-true"), "Unknown precision '8-true'"),
        (dict(checkpoint_dir=Path("nowhere/at-all")), "There is no checkpoint folder nowhere/at-all"),
    ],
)
def test_a_mistake_is_one_sentence(folder, arguments, words):
    with pytest.raises(LitGPTError, match=words):
        main(**{"checkpoint_dir": folder, **arguments})


def test_it_needs_no_lightning(folder):
    code = (
        "import sys; from litgpt.generate.base import main;"
        "assert 'torch' not in sys.modules, 'the help text must not cost torch';"
        f"main({str(folder)!r}, max_new_tokens=2);"
        "print([name for name in ('lightning', 'transformers', 'fastapi', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n"), done.stdout


def test_the_function_that_code_written_for_litgpt_imports():
    model = tiny_model()
    prompt = torch.tensor([3, 4, 5], dtype=torch.int32)
    answer = naive(model, [3, 4, 5], 9)
    whole = generate(model, prompt, 12, temperature=0.0)
    assert whole.dtype == torch.int32 and whole.tolist() == [3, 4, 5, *answer]
    end = answer[4]
    upto = answer[: answer.index(end) + 1]
    assert generate(model, prompt, 12, temperature=0.0, eos_id=end, include_prompt=False).tolist() == upto
    cut = generate(model, prompt, 12, temperature=0.0, eos_id=end, include_prompt=False, include_eos=False)
    assert cut.tolist() == upto[:-1]

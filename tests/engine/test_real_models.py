"""Real models answer, token for token, as they do in `transformers` with float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.sampling import Sampling

GREEDY = Sampling(temperature=0)
QUESTIONS = """What is the capital of France?
Write a haiku about the sea.
Explain photosynthesis to a child.
List three primary colours.
Translate "good morning" into Spanish.
What is 17 times 23?
Who wrote Pride and Prejudice?
Give me a recipe for pancakes.
Why is the sky blue?
Write a Python function that reverses a string.
Summarise the plot of Romeo and Juliet in one sentence.
What does HTTP stand for?
Name a mammal that lays eggs.
How do I boil an egg?
Tell me a joke about cats.
What is the boiling point of water in Fahrenheit?
Was ist der Unterschied zwischen Äpfeln und Birnen?
Describe the taste of a lemon without using the word "sour".
What are the planets of the solar system, in order?
Finish this sentence: Once upon a time, in a village by the river,""".splitlines()


def check_golden(folder: Path, golden: Path) -> None:
    inference_model = InferenceModel.load(folder, "cpu", "32-true")
    for case in json.loads(golden.read_text())["cases"]:
        request = inference_model.engine().submit(case["input_ids"], GREEDY, max_new_tokens=len(case["greedy_ids"]))
        assert request.result() == case["greedy_ids"]


def test_stories260k_continues_as_recorded(stories260k: Path, shared_assets: Path):
    check_golden(stories260k, shared_assets / "golden" / "stories260k.json")


@pytest.mark.slow
def test_smollm2_continues_as_recorded(smollm2: Path, shared_assets: Path):
    check_golden(smollm2, shared_assets / "golden" / "smollm2-135m-instruct.json")


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_answers_as_in_transformers(smollm2: Path):
    """20 questions in the model's chat template, 64 tokens each; ours alone, and all in one running batch."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    inference_model = InferenceModel.load(smollm2, "cpu", "32-true")
    together = inference_model.engine(8, 256)
    alone = inference_model.engine(1, 256)
    assert len(QUESTIONS) == 20
    requests = [
        together.submit(inference_model.encode(question), GREEDY, inference_model.stops, max_new_tokens=64)
        for question in QUESTIONS
    ]
    for question, request in zip(QUESTIONS, requests, strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        assert request.prompt == ids[0].tolist()
        answer = request.result()
        assert alone.submit(request.prompt, GREEDY, inference_model.stops, max_new_tokens=64).result() == answer
        # Greedy decoding gives exactly the tokens that are each the likeliest after all before them.
        likeliest = theirs(torch.cat([ids, torch.tensor([answer])], 1)).logits[0, ids.size(1) - 1 :].argmax(-1).tolist()
        assert likeliest[:-1] == answer
        stopped = likeliest[-1] in inference_model.tokenizer.stop_ids
        assert (request.finish_reason, len(answer) == 64) in (("stop", False), ("length", True))
        assert stopped or request.finish_reason == "length"

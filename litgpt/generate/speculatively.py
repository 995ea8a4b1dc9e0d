"""`litgpt generate_speculatively`: a small model drafts, a large one checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.args import Quantization, inherits
from litgpt.generate.base import PROMPT, answer
from litgpt.generate.options import Options

if TYPE_CHECKING:
    from litgpt.engine.inference_model import InferenceModel


@inherits(Options)
def main(
    draft_model_checkpoint_dir: Path,
    target_model_checkpoint_dir: Path,
    prompt: str = PROMPT,
    *,
    sys_prompt: str | None = None,
    num_samples: int = 1,
    max_new_tokens: int = 50,
    speculative_k: int = 3,
    top_k: int | None = 50,
    top_p: float = 1.0,
    temperature: float = 0.8,
    quantize: Quantization | None = None,
    precision: str | None = None,
    compile: bool = False,
    **options: Any,
) -> None:
    """Generate text with a small model that drafts for a large one.

    The large model checks several drafted tokens in the time that it needs for one of its own. The text is as likely
    as without the small one; with temperature 0 it is the same.

    Args:
        draft_model_checkpoint_dir: The folder of the small model.
        target_model_checkpoint_dir: The folder of the large model; both have the same tokenizer.
        prompt: What to answer or continue.
        sys_prompt: The system prompt, for prompt styles that have one.
        num_samples: How many answers to generate.
        max_new_tokens: The most tokens an answer may have.
        speculative_k: How many tokens to draft at a time.
        top_k: Choose among this many most likely tokens; null: all.
        top_p: Choose among the most likely tokens that have this much probability together.
        temperature: Higher is more random; 0 always takes the most likely token.
        quantize: Keep the weights of both in 4 or 8 bits: bnb.* by bitsandbytes; int8 and int4 are faster on CPUs.
        precision: 32-true, bf16-true, 16-true, bf16-mixed or 16-mixed; null: 16 bits where the device has them.
        compile: Not for drafted tokens, whose number changes from step to step.
    """
    arguments = dict(locals())
    import sys
    from dataclasses import replace

    from litgpt.engine.inference_model import InferenceModel
    from litgpt.engine.speculative import SpeculativeEngine
    from litgpt.errors import LitGPTError

    if compile:
        raise LitGPTError("--compile true is not for speculative decoding, whose steps differ in size; leave it out.")

    def load() -> InferenceModel:
        folders = (target_model_checkpoint_dir, draft_model_checkpoint_dir)
        target, draft = (InferenceModel.load(folder, precision=precision, quantize=quantize) for folder in folders)
        return replace(target, draft=draft.model, speculative_k=speculative_k)

    engine = answer(arguments, load)
    assert isinstance(engine, SpeculativeEngine)
    print(engine.acceptance, file=sys.stderr)

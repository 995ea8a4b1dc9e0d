"""`litgpt generate_speculatively`: a small model drafts, a large one checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.args import Quantization, inherits
from litgpt.generate.options import prompt_flags

if TYPE_CHECKING:
    from litgpt.engine.inference_model import InferenceModel


@inherits(prompt_flags)
def main(
    draft_model_checkpoint_dir: Path,
    target_model_checkpoint_dir: Path,
    *,
    max_new_tokens: int = 50,
    speculative_k: int = 3,
    quantize: Quantization | None = None,
    compile: bool = False,
    **flags: Any,
) -> None:
    """Generate text with a small model that drafts for a large one.

    The large model checks several drafted tokens in the time that it needs for one of its own. The text is as likely
    as without the small one; with temperature 0 it is the same.

    Args:
        draft_model_checkpoint_dir: The folder of the small model.
        target_model_checkpoint_dir: The folder of the large model; both have the same tokenizer.
        speculative_k: How many tokens to draft at a time.
        quantize: Keep the weights of both in 4 or 8 bits: bnb.* by bitsandbytes; int8 and int4 are faster on CPUs.
        compile: Not for drafted tokens, whose number changes from step to step.

    Example:
        litgpt generate_speculatively HuggingFaceTB/SmolLM2-135M-Instruct HuggingFaceTB/SmolLM2-1.7B-Instruct
    """
    from dataclasses import replace

    from litgpt.engine.inference_model import InferenceModel
    from litgpt.engine.speculative import SpeculativeEngine
    from litgpt.errors import LitGPTError, progress
    from litgpt.generate.answer import answer

    if compile:
        raise LitGPTError("--compile true is not for speculative decoding, whose steps differ in size; leave it out.")

    def load(precision: str | None) -> InferenceModel:
        folders = (target_model_checkpoint_dir, draft_model_checkpoint_dir)
        target, draft = (InferenceModel.load(folder, precision=precision, quantize=quantize) for folder in folders)
        return replace(target, draft=draft.model, speculative_k=speculative_k)

    engine = answer(load, max_new_tokens=max_new_tokens, **flags)
    assert isinstance(engine, SpeculativeEngine)
    progress(str(engine.acceptance))

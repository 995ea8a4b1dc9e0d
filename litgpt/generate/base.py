"""`litgpt generate`: continues or answers one prompt, or all of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.args import inherits
from litgpt.generate.options import prompt_flags

if TYPE_CHECKING:
    from torch import Tensor

    from litgpt.model import GPT


@inherits(prompt_flags)
def main(checkpoint_dir: Path, **flags: Any) -> None:
    """Generate text from a prompt.

    The prompt is put into the model's prompt style. Prints prompt and answer, and to standard error what it cost.

    Args:
        checkpoint_dir: The checkpoint folder, LitGPT's or Hugging Face's.

    Example:
        litgpt generate HuggingFaceTB/SmolLM2-135M-Instruct --prompt "Name three rivers."
    """
    from functools import partial

    from litgpt.engine.inference_model import InferenceModel
    from litgpt.generate.answer import answer

    answer(partial(InferenceModel.load, checkpoint_dir), **flags)


def generate(
    model: GPT,
    prompt: Tensor,
    max_returned_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    eos_id: int | None = None,
    include_prompt: bool = True,
    include_eos: bool = True,
) -> Tensor:
    """LitGPT's function of this name: continues token ids in one call, for code that imports it.

    Args:
        model: The model.
        prompt: Token ids `(T,)`.
        max_returned_tokens: The most tokens of prompt and answer together.
        temperature: Higher is more random; 0 always takes the most likely token.
        top_k: Choose among this many most likely tokens; None: all.
        top_p: Choose among the most likely tokens that have this much probability together.
        eos_id: The token that ends the answer.
        include_prompt: Return the prompt's ids too.
        include_eos: Return the token that ended the answer too.

    Returns:
        Token ids `(T,)` of the prompt's type.
    """
    import torch

    from litgpt.engine.engine import Engine
    from litgpt.engine.sampling import Sampling

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    engine = Engine(model, length=min(max_returned_tokens, model.max_seq_length))
    stop = [] if eos_id is None else [eos_id]
    request = engine.submit(prompt, sampling, stop, max_returned_tokens - prompt.numel())
    answer = request.result() + (stop if include_eos and request.finish_reason == "stop" else [])
    answered = torch.tensor(answer, dtype=prompt.dtype, device=prompt.device)
    return torch.cat([prompt, answered]) if include_prompt else answered

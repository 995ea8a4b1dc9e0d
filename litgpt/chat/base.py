"""`litgpt chat`: talk with a model in the terminal."""

from __future__ import annotations

from pathlib import Path

from litgpt.args import Quantization

SEED = 1234
"""Of the first answer; the next one has the next number."""


def main(
    checkpoint_dir: Path,
    *,
    max_new_tokens: int = 50,
    top_k: int | None = 50,
    top_p: float = 1.0,
    temperature: float = 0.8,
    quantize: Quantization | None = None,
    precision: str | None = None,
    compile: bool = False,
    multiline: bool = False,
    access_token: str | None = None,
    sys_prompt: str | None = None,
) -> None:
    """Chat with a model.

    The model sees the whole conversation, as far as its context reaches.

    Args:
        checkpoint_dir: The checkpoint folder, LitGPT's or Hugging Face's; a name on the hub (ORG/NAME) is downloaded.
        max_new_tokens: The most tokens an answer may have.
        top_k: Choose among this many most likely tokens; null: all.
        top_p: Choose among the most likely tokens that have this much probability together.
        temperature: Higher is more random; 0 always takes the most likely token.
        quantize: Keep the weights in 4 or 8 bits: bnb.* by bitsandbytes; int8 and int4 are faster on CPUs.
        precision: 32-true, bf16-true, 16-true, bf16-mixed or 16-mixed; null: 16 bits where the device has them.
        compile: Compile the model first.
        multiline: A prompt may have several lines; the line `!submit` ends it.
        access_token: For repositories on the hub that ask for one.
        sys_prompt: The system prompt, for prompt styles that have one.

    Example:
        litgpt chat HuggingFaceTB/SmolLM2-135M-Instruct
    """
    from litgpt.chat.session import ChatSession
    from litgpt.chat.terminal import Terminal, prepare_input
    from litgpt.checkpoint.hub import auto_download
    from litgpt.engine.inference_model import InferenceModel
    from litgpt.engine.sampling import Sampling
    from litgpt.errors import LitGPTError, progress

    if max_new_tokens < 1:
        raise LitGPTError(f"max_new_tokens is {max_new_tokens}; it must be 1 or more.")
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=SEED)
    folder = auto_download(checkpoint_dir, access_token)
    inference_model = InferenceModel.load(folder, precision=precision, quantize=quantize, compile=compile)
    engine = inference_model.engine(log=progress)
    progress(f"Chatting with {folder.name}; a conversation may have {engine.length} tokens.")
    session = ChatSession(inference_model, engine, sampling, max_new_tokens)
    prepare_input(lambda: session.settings)
    session.set_system_prompt(inference_model.fitting_system_prompt(sys_prompt))
    Terminal(session, multiline).run()

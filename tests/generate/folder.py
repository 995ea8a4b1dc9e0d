"""A small, complete checkpoint folder with random weights and a tokenizer and chat template of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from litgpt.checkpoint.weights import lazy
from litgpt.checkpoint.writer import save_state, write_hf
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.tokenizer import save_tokenizer
from tests.engine.oracle import LLAMA

TEXT = """The quick brown fox jumps over the lazy dog. It was the best of times, it was the worst of times. Grüße!
What food do llamas eat? Llamas eat grass and hay. Once upon a time there was a little girl. Paris is a city."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END = SPECIAL.index("<|im_end|>")


def make_folder(
    folder: Path, kind: str = "hf", template: str | None = TEMPLATE, block_size: int = 128, n_layer: int = 2
) -> Path:
    """Writes a folder of either kind; the same weights each time."""
    processor = Tokenizer(models.BPE())
    processor.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    processor.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    processor.train_from_iterator([TEXT], trainer)
    settings = {"chat_template": template} if template else {}
    save_tokenizer(processor, folder, eos_token="<|im_end|>", **settings)
    vocab_size = processor.get_vocab_size()
    sizes = dict(n_layer=n_layer, n_embd=32, n_head=4, n_query_groups=2, intermediate_size=48, block_size=block_size)
    config = Config(name="tiny", vocab_size=vocab_size, padded_vocab_size=vocab_size, **sizes, **LLAMA)
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.4) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    if kind == "hf":
        write_hf(folder, config, lazy(model.state_dict()))
    else:
        config.save(folder)
        save_state(folder / "lit_model.pth", model.state_dict())
    return folder

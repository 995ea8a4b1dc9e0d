"""Small tokenizers of each kind, made in a second: byte-level BPE, BPE with byte fallback, sentencepiece."""

from __future__ import annotations

import io
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from litgpt.tokenizer import save_tokenizer

TEXT = """It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want
of a wife. However little known the feelings or views of such a man may be on his first entering a
neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he is considered
as the rightful property of some one or other of their daughters. "My dear Mr. Bennet," said his lady to him
one day, "have you heard that Netherfield Park is let at last?" Mr. Bennet replied that he had not. "But it
is," returned she; "for Mrs. Long has just been here, and she told me all about it."
"""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(folder: Path, **settings: object) -> Path:
    """As GPT-2, Llama 3 and Qwen have it: any byte is a token."""
    processor = Tokenizer(models.BPE())
    processor.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    processor.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    processor.train_from_iterator([TEXT], trainer)
    save_tokenizer(processor, folder, **{"eos_token": "<|im_end|>", **settings})
    return folder


def byte_fallback(folder: Path, **settings: object) -> Path:
    """As Llama 2 and Mistral have it: `▁` for a space, and bytes where a character has no token."""
    letters = ["▁", *sorted(set(TEXT) - set(" \n"))]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("i", "n"), ("▁", "▁")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    processor = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    processor.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    processor.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    processor.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    processor.add_special_tokens(["<unk>", "<s>", "</s>"])
    save_tokenizer(processor, folder, **{"bos_token": "<s>", "eos_token": "</s>", **settings})
    return folder


def unigram(folder: Path, **settings: object) -> Path:
    """Metaspace on both sides, no bytes: what has no token is `<unk>`."""
    processor = Tokenizer(models.Unigram([("<unk>", 0.0), *((c, -2.0) for c in sorted(set(TEXT) | {"▁"}))], 0, False))
    processor.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n"), "isolated"), pre_tokenizers.Metaspace()]
    )
    processor.decoder = decoders.Metaspace()
    save_tokenizer(processor, folder, **settings)
    return folder


def sentencepiece(folder: Path, **trainer: object) -> Path:
    """`tokenizer.model` alone, with byte fallback."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        **{
            "sentence_iterator": iter(TEXT.splitlines()),
            "model_writer": model,
            "vocab_size": 420,
            "model_type": "bpe",
            "byte_fallback": True,
            "minloglevel": 2,
            "num_threads": 1,
            "hard_vocab_limit": False,
            **trainer,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


MAKERS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "unigram": unigram, "sentencepiece": sentencepiece}

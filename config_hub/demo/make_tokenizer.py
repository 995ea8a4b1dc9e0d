"""Train a byte-level BPE tokenizer on text files.

    python make_tokenizer.py ../text/train ../austen-2m 1536

Writes `tokenizer.json` and `tokenizer_config.json`. One special token, `<|endoftext|>`, opens and ends a text.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"


def main() -> None:
    text, target, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    files = sorted(str(file) for file in text.glob("*.txt"))
    tokenizer.train(files, trainer)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(target / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "bos_token": END,
        "eos_token": END,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    characters = sum(len(Path(file).read_text(encoding="utf-8")) for file in files)
    tokens = sum(len(tokenizer.encode(Path(file).read_text(encoding="utf-8")).ids) for file in files)
    print(f"{target}: {tokenizer.get_vocab_size()} tokens, {characters / tokens:.2f} characters a token")


if __name__ == "__main__":
    main()

"""Text ↔ token ids: one class over `tokenizers` and `sentencepiece`, and text out of a stream of ids."""

from litgpt.tokenizer.tokenizer import Tokenizer as Tokenizer
from litgpt.tokenizer.tokenizer import char_tokenizer as char_tokenizer
from litgpt.tokenizer.tokenizer import save_tokenizer as save_tokenizer

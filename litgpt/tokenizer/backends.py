"""The two libraries behind `Tokenizer`, with one face: text to ids and back, nothing that opens or closes a text."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from litgpt.errors import LitGPTError, quoted
from litgpt.reading import reading
from litgpt.tokenizer.literal import MARK, LiteralEncoder, MarkedText
from litgpt.tokenizer.stream import ByteStream, PieceStream, StreamDecoder, byte_level_bytes

if TYPE_CHECKING:
    import tokenizers

BOS_BY_DEFAULT = frozenset({"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"})
"""Tokenizer classes that open a text with BOS where nothing says (`tokenizer.model` alone)."""

MAX_ADDED = 1_000_000
"""How far beyond a model's own ids an added token may be."""
FOREIGN = "foreign"
"""The `backend` of a tokenizer that is another library's object, or the caller's own."""

UNKNOWN_SIZE = 1 << 31
"""Ids of a tokenizer that doesn't say how many it has."""

MATCHING = ("special", "lstrip", "rstrip", "single_word", "normalized")
"""How a token is found in a text."""

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


PlacedIds = tuple[list[int], list[tuple[int, int]] | None]
"""The ids of a text, and the characters that each stands for, `[start, end)`; None: that isn't known."""


class TokenizerBackend(Protocol):
    """What `Tokenizer` needs of a library."""

    name: str
    processor: Any
    vocab_size: int

    def __len__(self) -> int: ...
    @property
    def marked(self) -> MarkedText: ...
    @property
    def largest_id(self) -> int: ...
    def token_to_id(self, token: str) -> int | None: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def encode_marked(self, texts: Sequence[str]) -> list[PlacedIds]: ...
    def decode(self, ids: list[int], skip_special_tokens: bool) -> str: ...
    def stream(self, skip_special_tokens: bool, shown: Collection[int]) -> StreamDecoder: ...
    def token_bytes(self, index: int, skip_special_tokens: bool) -> bytes: ...
    def opening(self) -> list[int]: ...
    def own_ids(self, kind: str) -> list[int]: ...


class TokenizersBackend:
    """A `tokenizers.Tokenizer` as its file has it, but for the length limit and the padding that some files ask for."""

    name = "huggingface"

    def __init__(self, processor: tokenizers.Tokenizer, added: Sequence[dict[str, Any]] = ()) -> None:
        self.processor = processor
        processor.no_truncation()
        processor.no_padding()
        self._add_missing(added)
        self.vocab_size: int = processor.get_vocab_size(with_added_tokens=False)
        self._added = processor.get_added_tokens_decoder()
        self._special_ids = frozenset(index for index, token in self._added.items() if token.special)

    def __len__(self) -> int:
        return self.processor.get_vocab_size(with_added_tokens=True)

    @property
    def largest_id(self) -> int:
        return max(self.processor.get_vocab(with_added_tokens=True).values(), default=-1)

    def token_to_id(self, token: str) -> int | None:
        return self.processor.token_to_id(token)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if len(texts) == 1:  # Its thread pool stays asleep: processes that are forked later may use it.
            return [self.processor.encode(texts[0], add_special_tokens=False).ids]
        return [encoding.ids for encoding in self.processor.encode_batch_fast(texts, add_special_tokens=False)]

    @cached_property
    def marked(self) -> MarkedText:
        """Finds special tokens in texts."""
        tokens = self._added.values()
        special = [token.content for token in tokens if token.special]
        others = [token.content for token in tokens if not (token.special or token.normalized)]
        return MarkedText(special, others, {token.content for token in tokens if token.single_word})

    def encode_marked(self, texts: Sequence[str]) -> list[PlacedIds]:
        """The ids of texts with marks, and where in them each stands."""
        if len(texts) == 1 and MARK not in texts[0]:
            plain = iter([self.processor.encode(texts[0], add_special_tokens=False)])
        else:
            unmarked = [text for text in texts if MARK not in text]
            plain = iter(self.processor.encode_batch(unmarked, add_special_tokens=False))
        return [
            self._literal.encode(text) if MARK in text else ((found := next(plain)).ids, found.offsets)
            for text in texts
        ]

    @cached_property
    def _literal(self) -> LiteralEncoder:
        return LiteralEncoder(self.processor, self.marked)

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self.processor.decode(ids, skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool, shown: Collection[int]) -> StreamDecoder:
        def token(index: int) -> str:
            return self._shown(index, skip_special_tokens and index not in shown)

        if self._is_byte_level:
            return ByteStream(lambda index: byte_level_bytes(token(index)))
        return PieceStream(
            decode=lambda ids: self.decode(list(ids), False),
            is_byte=lambda index: self._is_byte(token(index)),
            is_silent=lambda index: not token(index),
            anchor=self._anchor,
        )

    def token_bytes(self, index: int, skip_special_tokens: bool) -> bytes:
        shown = self._shown(index, skip_special_tokens)
        if not shown or index in self._added:
            return shown.encode()
        if self._is_byte_level:
            return byte_level_bytes(shown)
        if self._is_byte(shown):
            return byte_of(shown)
        before = [] if self._anchor is None else [self._anchor]
        return self.decode([*before, index], False)[len(self.decode(before, False)) :].encode()

    def _shown(self, index: int, skip_special_tokens: bool) -> str:
        """The token that an id shows; empty where it shows nothing."""
        skipped = skip_special_tokens and index in self._special_ids
        return "" if skipped else self.processor.id_to_token(index) or ""

    def _is_byte(self, token: str) -> bool:
        return "ByteFallback" in self._decoders and BYTE_TOKEN.fullmatch(token) is not None

    def opening(self) -> list[int]:
        """What the post-processor puts before a text."""
        if self.processor.post_processor is None:
            return []
        return before(*(self.processor.encode("a", add_special_tokens=special).ids for special in (False, True)))

    def own_ids(self, kind: str) -> list[int]:
        """`tokenizer.json` doesn't say which of its tokens are `bos` and `eos`."""
        return []

    @cached_property
    def _is_byte_level(self) -> bool:
        return bool(self._decoders) and self._decoders <= {"ByteLevel", "Fuse"}

    @cached_property
    def _decoders(self) -> set[str]:
        """The kinds of decoder that make text of the tokens."""
        if self.processor.decoder is None:
            return set()
        state = json.loads(self.processor.decoder.__getstate__())
        return {part["type"] for part in state.get("decoders", [state])}

    @cached_property
    def _anchor(self) -> int | None:
        for index in range(len(self)):
            token = self.processor.id_to_token(index)
            if token and index not in self._special_ids and token[-1].isalnum() and self.decode([index], False):
                return index
        return None

    def _add_missing(self, added: Sequence[dict[str, Any]]) -> None:
        """Tokens that other files list and `tokenizer.json` lacks, or matches in another way."""
        import tokenizers

        known = {(token.content, repr(token)) for token in self.processor.get_added_tokens_decoder().values()}
        listed = {content for content, _ in known}
        for given in added:
            flags = {key: bool(given[key]) for key in MATCHING if given.get(key) is not None}
            token = tokenizers.AddedToken(given["content"], **flags)
            if (token.content, repr(token)) not in known and ("id" in given or token.content not in listed):
                self.processor.add_tokens([token])


class SentencePieceBackend:
    """A sentencepiece model; the special tokens written out in a text become their ids, as with `tokenizer.json`."""

    name = "sentencepiece"

    def __init__(
        self, file: Path, settings: dict[str, Any], special: dict[str, str], added: Sequence[dict[str, Any]] = ()
    ) -> None:
        from sentencepiece import SentencePieceProcessor

        with reading(file, "no sentencepiece model", "download the checkpoint again"):
            self.processor = SentencePieceProcessor(model_file=str(file))
        self._bos_by_default = str(settings.get("tokenizer_class", "")).removesuffix("Fast") in BOS_BY_DEFAULT
        self._bos_token = special.get("bos_token", "")
        self.vocab_size: int = self.processor.vocab_size()
        self._special = {
            index: self.processor.id_to_piece(index)
            for index in range(self.vocab_size)
            if self.processor.is_control(index) or self.processor.is_unknown(index)
        }
        self._added: dict[int, str] = {}
        self._add(added)
        self._ids = {token: index for index, token in (self._special | self._added).items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._written_out = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _add(self, added: Sequence[dict[str, Any]]) -> None:
        """Tokens beyond the model's own; those that no file gives an id come last."""
        for token in sorted(added, key=lambda token: "id" not in token):
            own = self.processor.piece_to_id(token["content"])
            is_own = self.processor.id_to_piece(own) == token["content"]
            index = own if is_own else token.get("id", len(self))
            if not is_own and index >= self.vocab_size:
                self._add_token(index, token["content"])
            if token["special"] and (is_own or index >= self.vocab_size):
                self._special[index] = token["content"]

    def _add_token(self, index: Any, content: Any) -> None:
        if not isinstance(content, str) or not 0 <= int(index) < self.vocab_size + MAX_ADDED:
            raise LitGPTError(f"The tokenizer adds {quoted(content)} as its id {quoted(index)}, which is no token.")
        self._added[int(index)] = content

    def __len__(self) -> int:
        return max([self.vocab_size, *(index + 1 for index in self._added)])

    @property
    def largest_id(self) -> int:
        return len(self) - 1

    def token_to_id(self, token: str) -> int | None:
        if token in self._ids:
            return self._ids[token]
        index = self.processor.piece_to_id(token)
        return index if self.processor.id_to_piece(index) == token else None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        at = 0
        for found in self._written_out.finditer(text):
            ids += self.processor.encode(text[at : found.start()])
            ids.append(self._ids[found[0]])
            at = found.end()
        return ids + self.processor.encode(text[at:])

    @cached_property
    def marked(self) -> MarkedText:
        """Finds special tokens in texts."""
        return MarkedText(self._special.values(), self._added.values())

    def encode_marked(self, texts: Sequence[str]) -> list[PlacedIds]:
        return [(self._encode_marked(text), None) for text in texts]

    def _encode_marked(self, text: str) -> list[int]:
        ids, run = list[int](), ""
        for piece in self.marked.pieces(text):
            if piece.is_token or piece.text in self._ids:
                index, own = self._ids[piece.text], piece.text
                if piece.is_marked and index not in self.processor.encode(own):
                    run += own
                    continue
                ids += self.processor.encode(run)
                run = ""
                if piece.is_marked:  # the model itself would make it the token again
                    ids += [*self.processor.encode(own[:1]), *self.processor.encode(own[1:])]
                else:
                    ids.append(index)
            else:
                run += piece.text
        return ids + self.processor.encode(run)

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        if skip_special_tokens:
            ids = [index for index in ids if index not in self._special]
        text, run = "", list[int]()
        for index in ids:
            if index in self._special or index in self._added:
                text += self._join(run, bool(text)) + (self._added.get(index) or self._special[index])
                run = []
            elif 0 <= index < self.vocab_size:
                run.append(index)
        return text + self._join(run, bool(text))

    def _join(self, run: list[int], follows: bool) -> str:
        """The text of a run of the model's own pieces; one that follows other text keeps its leading space."""
        if follows and self._anchor is not None:
            return self.processor.decode([self._anchor, *run])[len(self.processor.decode([self._anchor])) :]
        return self.processor.decode(run) if run else ""

    def stream(self, skip_special_tokens: bool, shown: Collection[int]) -> StreamDecoder:
        def is_silent(index: int) -> bool:
            skipped = skip_special_tokens and index in self._special and index not in shown
            return skipped or not (0 <= index < self.vocab_size or index in self._added)

        return PieceStream(
            decode=lambda ids: self.decode(list(ids), False),
            is_byte=lambda index: index < self.vocab_size and self.processor.is_byte(index),
            is_silent=is_silent,
            anchor=self._anchor,
        )

    def token_bytes(self, index: int, skip_special_tokens: bool) -> bytes:
        if index in self._special or index in self._added or not 0 <= index < self.vocab_size:
            return self.decode([index], skip_special_tokens).encode()
        if self.processor.is_byte(index):
            return byte_of(self.processor.id_to_piece(index))
        return self._join([index], follows=True).encode()

    def opening(self) -> list[int]:
        bos = self.token_to_id(self._bos_token)
        return ([bos] if bos is not None else self.own_ids("bos")) if self._bos_by_default else []

    def own_ids(self, kind: str) -> list[int]:
        """The id of `bos` or `eos` in the model itself, if it has any."""
        index = self.processor.bos_id() if kind == "bos" else self.processor.eos_id()
        return [index] if index >= 0 else []

    @cached_property
    def _anchor(self) -> int | None:
        def is_text(index: int) -> bool:
            plain = index not in self._special and not self.processor.is_byte(index)
            return plain and self.processor.id_to_piece(index)[-1:].isalnum()

        return next(filter(is_text, range(self.vocab_size)), None)


def before(part: list[int], whole: list[int]) -> list[int]:
    """What stands before `part` in `whole`."""
    at = next((at for at in range(len(whole)) if whole[at : at + len(part)] == part), 0)
    return whole[:at]


def byte_of(token: str) -> bytes:
    """The byte that `<0xE2>` stands for."""
    return bytes([int(token[3:-1], 16)])


class ForeignBackend:
    """Any object with `encode(text)` and `decode(ids)`: a tokenizer of the caller's own, or of `transformers`.

    `bos_id`, `eos_id` (or `bos_token_id`, `eos_token_id`), `token_to_id` and `vocab_size` are read where it has them.
    """

    name = FOREIGN
    marked = MarkedText(())
    """Which of its tokens are special isn't known."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        named = inspect.signature(processor.encode).parameters
        self._plain = {name: False for name in ("bos", "eos", "add_special_tokens") if name in named}
        self._skips = "skip_special_tokens" in inspect.signature(processor.decode).parameters
        size = len(processor) if hasattr(processor, "__len__") else getattr(processor, "vocab_size", UNKNOWN_SIZE)
        self.vocab_size: int = getattr(processor, "vocab_size", size)
        self._size: int = size

    def __len__(self) -> int:
        return self._size

    @property
    def largest_id(self) -> int:
        return self._size - 1

    def token_to_id(self, token: str) -> int | None:
        find = getattr(self.processor, "token_to_id", None) or getattr(self.processor, "convert_tokens_to_ids", None)
        try:
            return find(token) if find and token else None
        except (ValueError, KeyError):
            return None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [as_ids(self.processor.encode(text, **self._plain)) for text in texts]

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        import torch

        options = {"skip_special_tokens": skip_special_tokens} if self._skips else {}
        return self.processor.decode(torch.tensor(ids, dtype=torch.long), **options)

    def encode_marked(self, texts: Sequence[str]) -> list[PlacedIds]:
        bare = ["".join(piece.text for piece in self.marked.pieces(text)) for text in texts]
        return [(ids, None) for ids in self.encode_batch(bare)]

    def stream(self, skip_special_tokens: bool, shown: Collection[int]) -> StreamDecoder:
        return PieceStream(
            decode=lambda ids: self.decode(list(ids), skip_special_tokens) if ids else "",
            is_byte=lambda index: False,
            is_silent=lambda index: False,
            anchor=None,
        )

    def token_bytes(self, index: int, skip_special_tokens: bool) -> bytes:
        return self.decode([index], skip_special_tokens).encode()

    def opening(self) -> list[int]:
        """What it puts before a text when it isn't told."""
        return before(self.encode_batch(["a"])[0], as_ids(self.processor.encode("a")))

    def own_ids(self, kind: str) -> list[int]:
        found = getattr(self.processor, f"{kind}_id", getattr(self.processor, f"{kind}_token_id", None))
        return [] if found is None else [int(found)]


def as_ids(tokens: Any) -> list[int]:
    """Token ids as a list: of a tensor, a list, a single one, or what `tokenizers` returns."""
    ids = tokens.tolist() if hasattr(tokens, "tolist") else getattr(tokens, "ids", tokens)
    return [ids] if isinstance(ids, int) else list(ids)

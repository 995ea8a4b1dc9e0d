"""The tokenizer in a GGUF file: read into `tokenizer.json` and its settings, written from a checkpoint folder's.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.checkpoint.gguf.pre_tokenizers import (
    PRE_TOKENIZER_BY_NAME,
    PRE_TOKENIZERS,
    PreTokenizer,
    steps_before_model,
)
from litgpt.errors import LitGPTError, closest, quoted
from litgpt.prompts.chat_template import read_templates
from litgpt.tokenizer import Tokenizer, save_tokenizer
from litgpt.tokenizer.backends import BYTE_TOKEN
from litgpt.tokenizer.files import TOKENIZER_MODEL, special_tokens

if TYPE_CHECKING:
    import tokenizers

PREFIX = "tokenizer.ggml."
CHAT_TEMPLATE = "tokenizer.chat_template"
SPECIAL_TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
"""`tokenizer.ggml.NAME_token_id` ↔ `tokenizer_config.json`."""
END_TOKENS = ("eos", "eot", "eom")
"""Tokens that end an answer: of text, turn, message; the format has room for three."""
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
"""`tokenizer.ggml.model`, named after the first models that had them."""
SPACE = "▁"
"""What sentencepiece writes for a space."""


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


ADDED_TYPES = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Vocabulary:
    """What a file's metadata says about its tokenizer."""

    metadata: Mapping[str, Any]
    default_pre: str | None

    def __getitem__(self, key: str) -> Any:
        try:
            return self.metadata[PREFIX + key]
        except KeyError:
            raise LitGPTError(f"The GGUF file has no `{PREFIX}{key}`, which its tokenizer needs.") from None

    def get(self, key: str, default: Any = None) -> Any:
        """A setting, `default` where the file leaves it out."""
        return self.metadata.get(PREFIX + key, default)

    @cached_property
    def tokens(self) -> list[str]:
        """By id, without the unused ones that only fill the embedding up."""
        tokens, types = list(self["tokens"]), self.get("token_type")
        while types and tokens and types[len(tokens) - 1] == TokenType.UNUSED:
            tokens.pop()
        return tokens

    @cached_property
    def types(self) -> list[int]:
        """By id: what `TokenType` a token is of."""
        return list(self.get("token_type", [TokenType.NORMAL] * len(self.tokens)))[: len(self.tokens)]

    @cached_property
    def own(self) -> dict[str, int]:
        """The model's own vocabulary; special tokens that follow it are added to it later."""
        last = max((i for i, kind in enumerate(self.types) if kind not in ADDED_TYPES), default=-1)
        size = last + 1 if TokenType.UNUSED not in self.types[last:] else len(self.tokens)
        return {token: index for index, token in enumerate(self.tokens[:size])}

    @cached_property
    def pre_tokenizer(self) -> PreTokenizer:
        """How text is cut into words.

        Raises:
            LitGPTError: The file names none, or one that is not known here.
        """
        name = self.get("pre") or self.default_pre
        if name == "default":
            name = self.default_pre or name
        if name in PRE_TOKENIZER_BY_NAME:
            return PRE_TOKENIZER_BY_NAME[name]
        said = (
            f"cuts text into words as {quoted(name)} does, which is not known here"
            if name
            else "doesn't say how text is cut"
        )
        raise LitGPTError(
            f"The tokenizer in the GGUF file {said} (`{PREFIX}pre`).{closest(name or '', PRE_TOKENIZER_BY_NAME)} "
            "Put the model's tokenizer.json beside the file, in a folder of their own, and give the folder."
        )

    def token(self, name: str) -> str | None:
        """The token that `NAME_token_id` points to."""
        index = self.get(f"{name}_token_id")
        return self.tokens[index] if index is not None and 0 <= index < len(self.tokens) else None


def write_tokenizer(metadata: Mapping[str, Any], folder: Path, default_pre: str | None, words: bool = True) -> None:
    """Writes a GGUF file's tokenizer: `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`.

    Args:
        metadata: The file's.
        folder: An existing folder.
        default_pre: The `tokenizer.ggml.pre` of a file that has none.
        words: Write `tokenizer.json` too, not the settings only.

    Raises:
        LitGPTError: A tokenizer of a kind that is not known here.
    """
    kind = metadata.get(PREFIX + "model")
    if kind in (None, "none", "no_vocab"):
        return
    makers = {BYTE_LEVEL: _byte_level, SENTENCEPIECE: _sentencepiece}
    if kind not in makers:
        raise LitGPTError(f"The GGUF file has a tokenizer of the kind {quoted(kind)}; known here: {', '.join(makers)}.")
    vocabulary = Vocabulary(metadata, default_pre)
    settings: dict[str, Any] = {
        key: token for name, key in SPECIAL_TOKENS.items() if (token := vocabulary.token(name)) is not None
    }
    templates = read_chat_templates(metadata)
    if templates:
        settings["chat_template"] = templates
    if words:
        processor = makers[kind](vocabulary)
        processor.add_tokens(list(_added(vocabulary)))
        add_bos = vocabulary.get("add_bos_token", kind == SENTENCEPIECE or vocabulary.pre_tokenizer.adds_bos)
        save_tokenizer(processor, folder, **settings, add_bos_token=bool(add_bos))
    else:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    ends = dict.fromkeys(vocabulary.get(f"{name}_token_id") for name in END_TOKENS)
    stop_ids = [index for index in ends if index is not None]
    generation = {"bos_token_id": vocabulary.get("bos_token_id"), "eos_token_id": stop_ids or None}
    content = {key: value for key, value in generation.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_chat_templates(metadata: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    """A file's chat template; where it has several, `[{"name": …, "template": …}]`."""
    default, start = metadata.get(CHAT_TEMPLATE), CHAT_TEMPLATE + "."
    named = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
    if not named:
        return default
    if default is not None:
        named = {"default": default, **named}
    return [{"name": name, "template": template} for name, template in named.items()]


def _byte_level(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """BPE over bytes, as GPT-2's (https://github.com/openai/gpt-2): merges by rank."""
    from tokenizers import Tokenizer, decoders, models

    merges = [_merge(merge) for merge in vocabulary["merges"]]
    try:
        model = models.BPE(vocab=vocabulary.own, merges=merges, ignore_merges=vocabulary.pre_tokenizer.ignore_merges)
    except Exception as error:  # `tokenizers` raises a bare Exception
        raise LitGPTError(f"The GGUF file's tokens and merges don't fit together ({error}).") from None
    processor = Tokenizer(model)
    vocabulary.pre_tokenizer.apply_to(processor)
    processor.decoder = decoders.ByteLevel()
    return processor


def _merge(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentencepiece(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """sentencepiece's BPE: a piece's score is its merges' rank; unknown characters fall back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    own, scores = vocabulary.own, vocabulary["scores"]
    words = {t: i for t, i in own.items() if vocabulary.types[i] in (TokenType.NORMAL, TokenType.USER_DEFINED)}
    merges = [
        (-scores[index], own[left], own[right], left, right)
        for token, index in words.items()
        for left, right in _halves(token)
        if left in words and right in words
    ]
    pairs = [(left, right) for *_, left, right in sorted(merges)]
    has_bytes = TokenType.BYTE in vocabulary.types
    unknown = vocabulary.token("unknown")
    processor = Tokenizer(models.BPE(own, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes))
    spaced = bool(vocabulary.get("add_space_prefix", True))
    first: list[Any] = [normalizers.Prepend(SPACE)] if spaced else []
    processor.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", SPACE)])
    last: list[Any] = [decoders.Strip(" ", 1, 0)] if spaced else []
    bytes_and_all = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    processor.decoder = decoders.Sequence(bytes_and_all)
    return processor


def _halves(token: str) -> Iterator[tuple[str, str]]:
    return ((token[:at], token[at:]) for at in range(1, len(token)))


def _added(vocabulary: Vocabulary) -> Iterator[tokenizers.AddedToken]:
    """The tokens that are found in a text before it is cut."""
    from tokenizers import AddedToken

    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in ADDED_TYPES:
            yield AddedToken(token, special=kind != TokenType.USER_DEFINED, normalized=False)


# ---------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Token:
    """A row of the list of tokens."""

    text: str
    kind: TokenType
    score: float = 0.0
    """sentencepiece's: pairs that make tokens of higher scores are merged first."""


@dataclass
class TokenList:
    """A tokenizer on its way into a file."""

    model: str
    """`tokenizer.ggml.model`."""
    tokens: dict[int, Token]
    settings: dict[str, Any]
    """The keys that only its kind of model has."""


def tokenizer_metadata(folder: Path, rows: int) -> dict[str, Any]:
    """The tokenizer of a checkpoint folder as GGUF keys.

    Args:
        folder: A folder that `Tokenizer` opens.
        rows: Rows of the model's embedding; the list of tokens is filled up to them, as llama.cpp wants it.

    Raises:
        LitGPTError: It is of a kind that llama.cpp doesn't have, or has more tokens than the model.
    """
    tokenizer = Tokenizer(folder)
    if len(tokenizer) > rows:
        raise LitGPTError(f"The tokenizer in {folder} has {len(tokenizer)} tokens and its model only {rows} of them.")
    token_list = _token_list(tokenizer)
    tokens = [token_list.tokens.get(index) or Token(f"[PAD{index}]", TokenType.UNUSED, -1e4) for index in range(rows)]
    found: dict[str, Any] = {
        "model": token_list.model,
        **token_list.settings,
        "tokens": [token.text for token in tokens],
        "token_type": [int(token.kind) for token in tokens],
        "add_bos_token": tokenizer.use_bos,
    }
    if token_list.model == SENTENCEPIECE:
        found["scores"] = [float(token.score) for token in tokens]
    ids = {"bos": tokenizer.bos_id, **dict(zip(END_TOKENS, tokenizer.stop_ids, strict=False))}
    by_text = {token.text: index for index, token in token_list.tokens.items()}
    for name, key in SPECIAL_TOKENS.items():
        ids.setdefault(name, by_text.get(special_tokens(folder).get(key, "")))
    found |= {f"{name}_token_id": index for name, index in ids.items() if index is not None}
    return {PREFIX + key: value for key, value in found.items()} | _chat_templates(folder)


def _chat_templates(folder: Path) -> dict[str, Any]:
    templates = read_templates(folder)
    named = [name for name in templates if name != "default"]
    written: dict[str, Any] = {f"{CHAT_TEMPLATE}.{name}": templates[name] for name in named}
    if named:
        written["tokenizer.chat_templates"] = named
    return written | ({CHAT_TEMPLATE: templates["default"]} if "default" in templates else {})


def _token_list(tokenizer: Tokenizer) -> TokenList:
    where = tokenizer.checkpoint_dir
    if tokenizer.backend == "sentencepiece":
        return _from_sentencepiece_model(tokenizer)
    state = json.loads(tokenizer.processor.to_str())
    kind = state["model"].get("type", "BPE")
    if kind != "BPE":
        raise LitGPTError(f"The tokenizer in {where} is a {kind} model, which GGUF files here cannot hold; known: BPE.")
    has_bytes = state["model"].get("byte_fallback")
    token_list = _from_sentencepiece_json(state) if has_bytes else _from_byte_level_json(state, where)
    for token in state["added_tokens"]:
        unknown = token_list.model == SENTENCEPIECE and token["content"] == state["model"].get("unk_token")
        special = TokenType.UNKNOWN if unknown else TokenType.CONTROL
        kind = special if token["special"] else TokenType.USER_DEFINED
        token_list.tokens[token["id"]] = Token(token["content"], kind)
    return token_list


def _from_byte_level_json(state: Mapping[str, Any], where: Path) -> TokenList:
    """A byte-level BPE from `tokenizer.json`.

    Raises:
        LitGPTError: It cuts text in a way that llama.cpp has no name for.
    """
    pre = next((pre for pre in PRE_TOKENIZERS if pre.matches(state)), None)
    if pre is None:
        raise LitGPTError(
            f"The tokenizer in {where} cuts text into words in a way that has no name in GGUF known here; "
            f"known: {', '.join(PRE_TOKENIZER_BY_NAME)}."
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    tokens = {index: Token(text, TokenType.NORMAL) for text, index in state["model"]["vocab"].items()}
    return TokenList(BYTE_LEVEL, tokens, {"pre": pre.names[0], "merges": merges})


def _from_sentencepiece_json(state: Mapping[str, Any]) -> TokenList:
    """A sentencepiece BPE from `tokenizer.json`: the merges' order tells the scores' order."""
    model = state["model"]
    scores: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        scores.setdefault("".join(_merge(merge) if isinstance(merge, str) else merge), -rank)
    tokens = {}
    for text, index in model["vocab"].items():
        kind = TokenType.BYTE if BYTE_TOKEN.fullmatch(text) else TokenType.NORMAL
        kind = TokenType.UNKNOWN if text == model.get("unk_token") else kind
        tokens[index] = Token(text, kind, scores.get(text, -len(model["merges"])) if kind == TokenType.NORMAL else 0.0)
    spaced = any(
        step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never"
        for step in steps_before_model(state)
    )
    return TokenList(SENTENCEPIECE, tokens, {"pre": "default", "add_space_prefix": spaced})


def _from_sentencepiece_model(tokenizer: Tokenizer) -> TokenList:
    """A sentencepiece BPE from `tokenizer.model`, read by hand: the library doesn't tell users' own pieces from others.

    https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.

    Raises:
        LitGPTError: It is no BPE model.
    """
    message = list(_protobuf(memoryview(tokenizer.processor.serialized_model_proto())))
    trainer = {key: value for number, spec in message if number == 2 for key, value in _protobuf(spec)}
    normalizer = {key: value for number, spec in message if number == 3 for key, value in _protobuf(spec)}
    if trainer.get(3, 1) != 2:
        where = tokenizer.checkpoint_dir / TOKENIZER_MODEL
        raise LitGPTError(
            f"{where} is a sentencepiece model of another kind than BPE, which GGUF files here cannot hold."
        )
    tokens: dict[int, Token] = {}
    for number, piece in message:
        if number == 1:
            fields = dict(_protobuf(piece))
            score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
            tokens[len(tokens)] = Token(str(fields[1], "utf-8"), TokenType(fields.get(3, TokenType.NORMAL)), score)
    for index in range(len(tokens), len(tokenizer)):
        shown = tokenizer.decode([index]) != ""
        text = tokenizer.decode([index], skip_special_tokens=False)
        tokens[index] = Token(text, TokenType.USER_DEFINED if shown else TokenType.CONTROL)
    return TokenList(SENTENCEPIECE, tokens, {"pre": "default", "add_space_prefix": bool(normalizer.get(3, True))})


def _protobuf(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message (https://protobuf.dev/programming-guides/encoding)."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        size = varint() if wire == 2 else 8 if wire == 1 else 4
        yield number, data[at : at + size]
        at += size

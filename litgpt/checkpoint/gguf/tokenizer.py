"""The tokenizer in a GGUF file: read into `tokenizer.json` and its settings, written from a checkpoint folder's.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.errors import LitGPTError, closest
from litgpt.prompts.chat_template import read_templates
from litgpt.tokenizer import Tokenizer, save_tokenizer
from litgpt.tokenizer.backends import BYTE_TOKEN
from litgpt.tokenizer.files import TOKENIZER_MODEL, special_tokens

if TYPE_CHECKING:
    import tokenizers

PREFIX = "tokenizer.ggml."
CHAT_TEMPLATE = "tokenizer.chat_template"
SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
"""`tokenizer.ggml.NAME_token_id` ↔ `tokenizer_config.json`."""
ENDS = ("eos", "eot", "eom")
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


ADDED = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTED + "|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTED + "|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Cut:
    """A way of cutting text into words before byte-level BPE."""

    names: tuple[str, ...]
    """`tokenizer.ggml.pre`; the first one is written."""
    patterns: tuple[str, ...] = ()
    """Words, as regular expressions, one after the other; none: GPT-2's."""
    digits: bool = False
    """Each digit is a word."""
    nfc: bool = False
    """Text is composed first (Unicode NFC)."""
    whole_words: bool = False
    """A word in the vocabulary is one token whatever the merges say."""
    adds_bos: bool = False
    """Texts open with BOS where the file doesn't say."""
    steps: Callable[[], list[Any]] | None = None
    """The cutting itself, where it is none of this."""

    def apply_to(self, processor: tokenizers.Tokenizer) -> None:
        """Makes a tokenizer cut text this way."""
        from tokenizers import Regex, normalizers, pre_tokenizers

        if self.nfc:
            processor.normalizer = normalizers.NFC()
        first: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        first += [pre_tokenizers.Digits(individual_digits=True)] if self.digits else []
        steps = [*first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not self.patterns)]
        steps = self.steps() if self.steps else steps
        processor.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]


def falcon_steps() -> list[Any]:
    """Falcon cuts at punctuation first, and numbers last, every three digits."""
    from tokenizers import Regex, pre_tokenizers

    return [
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]


CUTS = (
    Cut(("gpt-2",)),
    Cut(("olmo", "mpt"), nfc=True),
    Cut(("smollm", "starcoder", "refact", "command-r"), digits=True),
    Cut(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), patterns=(LLAMA_3,), whole_words=True, adds_bos=True
    ),
    Cut(("smaug-bpe",), patterns=(LLAMA_3,)),
    Cut(("qwen2", "deepseek-r1-qwen"), patterns=(QWEN_2,), nfc=True),
    Cut(("tekken",), patterns=(TEKKEN,), whole_words=True, adds_bos=True),
    Cut(("gpt-4o",), patterns=(O200K,), whole_words=True),
    Cut(("gpt-4o", "llama4"), patterns=(O200K,)),
    Cut(("deepseek-v3",), patterns=DEEPSEEK_3),
    Cut(("falcon",), steps=falcon_steps),
)
CUT_BY_NAME = {name: cut for cut in CUTS for name in cut.names}


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
        last = max((i for i, kind in enumerate(self.types) if kind not in ADDED), default=-1)
        size = last + 1 if TokenType.UNUSED not in self.types[last:] else len(self.tokens)
        return {token: index for index, token in enumerate(self.tokens[:size])}

    @cached_property
    def cut(self) -> Cut:
        """How text is cut into words.

        Raises:
            LitGPTError: The file names none, or one that is not known here.
        """
        name = self.get("pre") or self.default_pre
        if name == "default":
            name = self.default_pre or name
        if name in CUT_BY_NAME:
            return CUT_BY_NAME[name]
        said = (
            f"cuts text into words as {name!r} does, which is not known here" if name else "doesn't say how text is cut"
        )
        raise LitGPTError(
            f"The tokenizer in the GGUF file {said} (`{PREFIX}pre`).{closest(name or '', CUT_BY_NAME)} Put the model's "
            "tokenizer.json beside the file, in a folder of their own, and give the folder."
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
        raise LitGPTError(f"The GGUF file has a tokenizer of the kind {kind!r}; known here: {', '.join(makers)}.")
    vocabulary = Vocabulary(metadata, default_pre)
    settings: dict[str, Any] = {
        key: token for name, key in SPECIAL.items() if (token := vocabulary.token(name)) is not None
    }
    templates = read_chat_templates(metadata)
    if templates:
        settings["chat_template"] = templates
    if words:
        processor = makers[kind](vocabulary)
        processor.add_tokens(list(_added(vocabulary)))
        add_bos = vocabulary.get("add_bos_token", kind == SENTENCEPIECE or vocabulary.cut.adds_bos)
        save_tokenizer(processor, folder, **settings, add_bos_token=bool(add_bos))
    else:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    ends = [vocabulary.get(f"{name}_token_id") for name in ENDS]
    generation = {"bos_token_id": vocabulary.get("bos_token_id"), "eos_token_id": list(dict.fromkeys(ends))}
    generation["eos_token_id"] = [index for index in generation["eos_token_id"] if index is not None]
    content = {key: value for key, value in generation.items() if value not in (None, [])}
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
        model = models.BPE(vocab=vocabulary.own, merges=merges, ignore_merges=vocabulary.cut.whole_words)
    except Exception as error:  # `tokenizers` raises a bare Exception
        raise LitGPTError(f"The GGUF file's tokens and merges don't fit together ({error}).") from None
    processor = Tokenizer(model)
    vocabulary.cut.apply_to(processor)
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
        if kind in ADDED:
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
class Listing:
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
    listing = _listing(tokenizer)
    tokens = [listing.tokens.get(index) or Token(f"[PAD{index}]", TokenType.UNUSED, -1e4) for index in range(rows)]
    found: dict[str, Any] = {
        "model": listing.model,
        **listing.settings,
        "tokens": [token.text for token in tokens],
        "token_type": [int(token.kind) for token in tokens],
        "add_bos_token": tokenizer.use_bos,
    }
    if listing.model == SENTENCEPIECE:
        found["scores"] = [float(token.score) for token in tokens]
    ids = {"bos": tokenizer.bos_id, **dict(zip(ENDS, tokenizer.stop_ids, strict=False))}
    by_text = {token.text: index for index, token in listing.tokens.items()}
    for name, key in SPECIAL.items():
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


def _listing(tokenizer: Tokenizer) -> Listing:
    where = tokenizer.checkpoint_dir
    if tokenizer.backend == "sentencepiece":
        return _list_model(tokenizer)
    state = json.loads(tokenizer.processor.to_str())
    kind = state["model"].get("type", "BPE")
    if kind != "BPE":
        raise LitGPTError(f"The tokenizer in {where} is a {kind} model, which GGUF files here cannot hold; known: BPE.")
    listing = _list_pieces(state) if state["model"].get("byte_fallback") else _list_bytes(state, where)
    for token in state["added_tokens"]:
        unknown = listing.model == SENTENCEPIECE and token["content"] == state["model"].get("unk_token")
        special = TokenType.UNKNOWN if unknown else TokenType.CONTROL
        kind = special if token["special"] else TokenType.USER_DEFINED
        listing.tokens[token["id"]] = Token(token["content"], kind)
    return listing


def _list_bytes(state: Mapping[str, Any], where: Path) -> Listing:
    """A byte-level BPE from `tokenizer.json`.

    Raises:
        LitGPTError: It cuts text in a way that llama.cpp has no name for.
    """
    cut = next((cut for cut in CUTS if _cuts_like(cut, state)), None)
    if cut is None:
        raise LitGPTError(
            f"The tokenizer in {where} cuts text into words in a way that has no name in GGUF known here; "
            f"known: {', '.join(CUT_BY_NAME)}."
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    tokens = {index: Token(text, TokenType.NORMAL) for text, index in state["model"]["vocab"].items()}
    return Listing(BYTE_LEVEL, tokens, {"pre": cut.names[0], "merges": merges})


def _cuts_like(cut: Cut, state: Mapping[str, Any]) -> bool:
    from tokenizers import Tokenizer, models

    other = Tokenizer(models.BPE())
    cut.apply_to(other)
    same_words = bool(state["model"].get("ignore_merges")) == cut.whole_words
    return same_words and _cutting(state) == _cutting(json.loads(other.to_str()))


def _cutting(state: Mapping[str, Any]) -> list[Any]:
    """What a tokenizer does before its model, as a flat list."""
    return [_flat(state["normalizer"], "normalizers"), _flat(state["pre_tokenizer"], "pretokenizers")]


def _flat(part: Mapping[str, Any] | None, inner: str) -> list[Any]:
    if part is None:
        return []
    if inner in part:
        return [step for other in part[inner] for step in _flat(other, inner)]
    return [{key: value for key, value in part.items() if key != "trim_offsets"}]  # which is about places, not ids


def _list_pieces(state: Mapping[str, Any]) -> Listing:
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
    steps = [*_flat(state["normalizer"], "normalizers"), *_flat(state["pre_tokenizer"], "pretokenizers")]
    spaced = any(step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never" for step in steps)
    return Listing(SENTENCEPIECE, tokens, {"pre": "default", "add_space_prefix": spaced})


def _list_model(tokenizer: Tokenizer) -> Listing:
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
    return Listing(SENTENCEPIECE, tokens, {"pre": "default", "add_space_prefix": bool(normalizer.get(3, True))})


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

"""Text ↔ token ids: one class over `tokenizers` (`tokenizer.json`) and `sentencepiece` (`tokenizer.model`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from litgpt.errors import LitGPTError, MissingFileError, MissingFolderError, UnsupportedError, one_line, quoted
from litgpt.reading import is_failure, optional_json, reading
from litgpt.tokenizer.backends import (
    ForeignBackend,
    PlacedIds,
    SentencePieceBackend,
    TokenizerBackend,
    TokenizersBackend,
    as_ids,
)
from litgpt.tokenizer.files import (
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    TOKENIZER_MODEL,
    added_tokens,
    generation_config,
    special_tokens,
)
from litgpt.tokenizer.literal import MARK
from litgpt.tokenizer.stream import StreamDecoder

if TYPE_CHECKING:
    import tokenizers
    import torch

MAX_ID = 2**31
T = TypeVar("T")


class Tokenizer:
    """The tokenizer of a checkpoint folder.

    Which tokens open and end a text is what the folder's own files say, never its name: `tokenizer_config.json`, the
    post-processor in `tokenizer.json`, `special_tokens_map.json`, `generation_config.json`, `config.json`.

    Args:
        checkpoint_dir: A folder with `tokenizer.json` (preferred), `tokenizer.model`, or GPT-2's `vocab.json` and
            `merges.txt`.

    Raises:
        LitGPTError: No such folder, no tokenizer in it, or one that cannot be read.
    """

    backend: str
    """`"huggingface"` or `"sentencepiece"`."""
    use_bos: bool
    """Whether `encode` opens a text with `bos_id` when it isn't told."""
    bos_id: int | None
    eos_id: int | None
    stop_ids: tuple[int, ...]
    """Every id that ends a generated text: `eos_id` first, then those that `generation_config.json` adds."""

    parse_special_tokens: bool = False
    """Whether special tokens that are written out in a message become their ids, too."""

    def __init__(self, checkpoint_dir: str | Path) -> None:
        self.checkpoint_dir = Path(checkpoint_dir)
        self.model_name = self.checkpoint_dir.name
        if not self.checkpoint_dir.is_dir():
            raise MissingFolderError(f"There is no folder {self.checkpoint_dir} to take a tokenizer from.")
        with reading(self.checkpoint_dir, "no folder with a tokenizer", "download the checkpoint again"):
            self._open()

    def _open(self) -> None:
        self._settings = optional_json(self.checkpoint_dir / TOKENIZER_CONFIG)
        self._special = special_tokens(self.checkpoint_dir)
        self._take(_open_backend(self.checkpoint_dir, self._settings, self._special))

    @classmethod
    def of(cls, tokenizer: Any) -> Tokenizer:
        """A tokenizer as one of this class: any object with `encode(text)` and `decode(ids)`, of the caller's own or of
        another library."""
        if isinstance(tokenizer, Tokenizer):
            return tokenizer
        found = cls.__new__(cls)
        found.model_name = type(tokenizer).__name__
        found.checkpoint_dir = Path(getattr(tokenizer, "checkpoint_dir", f"<{found.model_name}>"))
        found._settings, found._special = {}, {}
        found._take(ForeignBackend(tokenizer))
        return found

    def _take(self, backend: TokenizerBackend) -> None:
        self._backend, self.backend, self.processor = backend, backend.name, backend.processor
        bos_ids, self.stop_ids = self._ids_of("bos"), self._ids_of("eos")
        self.bos_id = bos_ids[0] if bos_ids else None
        self.eos_id = self.stop_ids[0] if self.stop_ids else None
        self._opening = self._find_opening()
        self.use_bos = self.bos_id is not None and self.bos_id in self._opening

    def __len__(self) -> int:
        """How many ids there are, added tokens included."""
        return len(self._backend)

    @property
    def largest_id(self) -> int:
        """The largest id that a text can become."""
        return self._backend.largest_id

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary without added tokens; `len(tokenizer)` counts those too."""
        return self._backend.vocab_size

    @property
    def special_tokens(self) -> frozenset[str]:
        """The special tokens, as they are written."""
        return self._backend.marked.special

    def token_to_id(self, token: str) -> int:
        """The id of one token, written as in the vocabulary.

        Raises:
            LitGPTError: There is no such token.
        """
        found = self._backend.token_to_id(token)
        if found is None:
            raise LitGPTError(f"The tokenizer in {self.checkpoint_dir} has no token {quoted(token)}.")
        return found

    def encode(
        self,
        string: str,
        device: torch.device | str | None = None,
        bos: bool | None = None,
        eos: bool = False,
        max_length: int = -1,
    ) -> torch.Tensor:
        """The ids of a text, `(T,)` int32.

        Args:
            string: Special tokens written out in it (`<s>`, `<|im_end|>`) become their ids.
            device: Where the tensor goes.
            bos: Open with BOS: yes, no, or (`None`) with whatever the tokenizer's files say a text opens with. A text
                that already begins with it gets no second one.
            eos: End with EOS. A text that already ends with it keeps that one.
            max_length: Cut to this many tokens; -1: no limit.

        Raises:
            LitGPTError: BOS or EOS is asked for and the tokenizer has none, or a character it cannot represent.
        """
        import torch

        ids = self.encode_ids(string, bos, eos)
        return torch.tensor(ids[:max_length] if max_length >= 0 else ids, dtype=torch.int32, device=device)

    def encode_ids(self, string: str, bos: bool | None = None, eos: bool = False, protected: bool = False) -> list[int]:
        """As `encode`, as a list and without torch; `protected`: parts of it went through `protect`."""
        return self.encode_batch([string], bos, eos, protected)[0]

    def encode_batch(
        self, texts: Sequence[str], bos: bool | None = None, eos: bool = False, protected: bool = False
    ) -> list[list[int]]:
        """The ids of each text, as `encode_ids` gives them; `tokenizers` works on several texts at once."""
        opening = self._opening_for(bos)
        closing = self._closing_for(eos)
        if protected and any(MARK in text for text in texts):
            rows = [ids for ids, _ in self.encode_protected(texts)]
        else:
            rows = self._explained(self._backend.encode_batch, texts)
        return [
            [
                *([] if ids[: len(opening)] == opening else opening),
                *ids,
                *([] if ids[-1:] == closing else closing),
            ]
            for ids in rows
        ]

    def protect(self, text: str) -> str:
        """The text of a message so that what looks like a special token in it is encoded as text.

        It holds marks; encode what a prompt style makes of it with `protected=True`. Nothing changes where
        `parse_special_tokens` is set.
        """
        return text if self.parse_special_tokens else self._backend.marked.protect(text)

    def encode_protected(self, texts: Sequence[str]) -> list[PlacedIds]:
        """The ids of texts with parts from `protect`, nothing opened or closed, and the characters each stands for."""
        return self._explained(self._backend.encode_marked, texts)

    def decode(self, tensor: torch.Tensor | Sequence[int] | int, skip_special_tokens: bool = True) -> str:
        """The text of some ids: `(T,)`, a list, or a single one. Ids outside the vocabulary show nothing.

        Args:
            tensor: The ids.
            skip_special_tokens: Leave out `<s>`, `<|im_end|>` and the like, as LitGPT does (`transformers` keeps them
                unless told).
        """
        with reading(str(self.checkpoint_dir), "no folder with a tokenizer that can decode"):
            return self._backend.decode(as_ids(tensor), skip_special_tokens)

    def token_bytes(self, token: int, skip_special_tokens: bool = False) -> bytes:
        """What an id adds to a text that it stands in the middle of: those of a text, joined, are its UTF-8."""
        return self._backend.token_bytes(token, skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True, shown: Collection[int] = ()) -> StreamDecoder:
        """A decoder that takes ids one at a time; its texts, joined, are what `decode` gives for all of them.

        Args:
            skip_special_tokens: As for `decode`.
            shown: Special tokens that aren't left out.
        """
        return self._backend.stream(skip_special_tokens, shown)

    def decode_stream(
        self, token_stream: Iterable[torch.Tensor | int], device: torch.device | str | None = None
    ) -> Iterator[str]:
        """The texts of a stream of tokens, each as soon as it is certain.

        Args:
            token_stream: Ids, or tensors of some.
            device: LitGPT's callers pass it; ids are read from wherever they are.
        """
        decoder = self.stream()
        texts = (decoder.push(token_id) for tokens in token_stream for token_id in as_ids(tokens))
        yield from filter(None, texts)
        if rest := decoder.flush():
            yield rest

    def _ids_of(self, kind: str) -> tuple[int, ...]:
        """The ids of `bos` or `eos`, the tokenizer's own first."""
        own = self._backend.token_to_id(self._special.get(f"{kind}_token", ""))
        ids = [] if own is None else [own]
        for content in (generation_config(self.checkpoint_dir), optional_json(self.checkpoint_dir / "config.json")):
            found = content.get(f"{kind}_token_id")
            if found is not None:
                ids += found if isinstance(found, list) else [found]
                if not all(type(index) is int and 0 <= index < MAX_ID for index in ids):
                    raise LitGPTError(f"{self.checkpoint_dir} has {kind}_token_id: {quoted(found)}, which is no token.")
                break
        return tuple(dict.fromkeys(ids or self._backend.own_ids(kind)))

    def _find_opening(self) -> list[int]:
        """The ids that a text opens with unless the caller says otherwise."""
        add_bos = self._settings.get("add_bos_token")
        if add_bos is None:
            return self._backend.opening()
        return [self.bos_id] if add_bos and self.bos_id is not None else []

    def _opening_for(self, bos: bool | None) -> list[int]:
        if bos is None:
            return self._opening
        if not bos:
            return []
        if self.bos_id is None:
            raise UnsupportedError(f"The tokenizer in {self.checkpoint_dir} has no BOS token to open a text with.")
        return self._opening if self.use_bos else [self.bos_id]

    def _closing_for(self, eos: bool) -> list[int]:
        if not eos:
            return []
        if self.eos_id is None:
            raise UnsupportedError(f"The tokenizer in {self.checkpoint_dir} has no EOS token to end a text with.")
        return [self.eos_id]

    def _explained(self, encode: Callable[[Sequence[str]], T], texts: Sequence[str]) -> T:
        """What the backend makes of texts.

        Raises:
            LitGPTError: It fails, which `tokenizers` tells by a bare Exception, or by a panic.
        """
        try:
            return encode(texts)
        except LitGPTError:
            raise
        except BaseException as error:
            if not is_failure(error):
                raise
            raise self._cannot_encode(texts, error) from None

    def _cannot_encode(self, texts: Sequence[str], error: BaseException) -> LitGPTError:
        """What stands in the way, in one sentence."""
        characters = dict.fromkeys(character for text in texts for character in text if character != MARK)
        broken = next((c for c in characters if "\ud800" <= c <= "\udfff"), None)
        if broken is not None:
            return LitGPTError(
                f"The text holds {quoted(broken)}, half a character, which no tokenizer can encode; remove it."
            )
        unknown = next((c for c in characters if self._backend.token_to_id(c) is None), None)
        if unknown is not None and "UNK" in str(error):
            return LitGPTError(
                f"The tokenizer in {self.checkpoint_dir} has no token for the character {quoted(unknown)}; "
                "it knows only those of the text it was made from."
            )
        return LitGPTError(f"The tokenizer in {self.checkpoint_dir} cannot encode this text: {one_line(error)}.")


def _open_backend(folder: Path, settings: dict[str, Any], special: dict[str, str]) -> TokenizerBackend:
    added = added_tokens(folder)
    if (folder / TOKENIZER_JSON).exists():
        return TokenizersBackend(_read_tokenizer_json(folder / TOKENIZER_JSON), added)
    if (folder / TOKENIZER_MODEL).exists():
        return SentencePieceBackend(folder / TOKENIZER_MODEL, settings, special, added)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return TokenizersBackend(_read_gpt2_files(folder, settings), added)
    other = next((name for name in ("tekken.json", "tiktoken.model") if (folder / name).is_file()), None)
    if other:
        raise MissingFileError(
            f"{folder} has its tokenizer as {other} only, which is not read here; add its {TOKENIZER_JSON}."
        )
    raise MissingFileError(
        f"{folder} has no {TOKENIZER_JSON} or {TOKENIZER_MODEL}; "
        "`litgpt download ORG/NAME --tokenizer_only true` fetches a tokenizer."
    )


def _read_tokenizer_json(file: Path) -> tokenizers.Tokenizer:
    import tokenizers

    with reading(file, "no tokenizer", "download the checkpoint again"):
        return tokenizers.Tokenizer.from_file(str(file))


def _read_gpt2_files(folder: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's own two files. Others with such files cut words differently, which only their `tokenizer.json` says."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    kinds = (settings.get("tokenizer_class", ""), optional_json(folder / "config.json").get("model_type", ""))
    if not any(str(kind).lower().startswith("gpt2") for kind in kinds):
        raise LitGPTError(
            f"{folder} has vocab.json and merges.txt but no {TOKENIZER_JSON}, and nothing says they are GPT-2's."
        )
    with reading(folder / "vocab.json", "no BPE model with the merges.txt beside it"):
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    processor = tokenizers.Tokenizer(model)
    processor.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    processor.decoder = decoders.ByteLevel()
    processor.add_special_tokens(["<|endoftext|>"])
    return processor


def char_tokenizer(text: str) -> tokenizers.Tokenizer:
    """A tokenizer whose tokens are the characters of `text`, in their order, as nanoGPT has it.

    Any other character is an error on encoding.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    if not text:
        raise LitGPTError("A character-level tokenizer needs a text that is not empty.")
    vocabulary = {character: index for index, character in enumerate(sorted(set(text)))}
    processor = Tokenizer(models.WordLevel(vocabulary))
    processor.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    processor.decoder = decoders.Fuse()
    return processor


def save_tokenizer(processor: tokenizers.Tokenizer, folder: str | Path, **settings: Any) -> None:
    """Write a tokenizer as `tokenizer.json` and `tokenizer_config.json`, which `Tokenizer` and `transformers` open.

    Args:
        processor: The tokenizer.
        folder: Made if it isn't there.
        settings: More entries of `tokenizer_config.json`: `bos_token`, `eos_token`, `add_bos_token`, `chat_template` …
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    processor.save(str(folder / TOKENIZER_JSON), pretty=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **settings}
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

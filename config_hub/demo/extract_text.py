"""Take Jane Austen's novels out of the Debian package `r-cran-janeaustenr`, for training and for validation.

    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb unpacked
    python extract_text.py unpacked/usr/lib/R/site-library/janeaustenr/data ../text

R keeps a package's data in two files: `Rdata.rdx` lists (offset, length) for each object, `Rdata.rdb` holds the
objects, each compressed and in R's serialization format (R Internals, section 1.8). No R is needed to read them.
"""

import bz2
import gzip
import lzma
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

NOVELS = {
    "sensesensibility": "sense-and-sensibility",
    "prideprejudice": "pride-and-prejudice",
    "mansfieldpark": "mansfield-park",
    "emma": "emma",
    "northangerabbey": "northanger-abbey",
    "persuasion": "persuasion",
}
"""Name in the package -> name of the file."""
HELD_OUT_FROM, HELD_OUT_CHAPTER = "prideprejudice", "Chapter 57"
"""This novel, from this chapter to its end, is for validation."""
EDITORS_NOTE = "A NOTE ON THE TEXT"
"""What follows this heading is not the author's."""


class Serialized:
    """Reads the few R types that the package holds: character, integer and list vectors with attributes."""

    SYMBOL, PAIRLIST, STRING, LOGICAL, INTEGER, STRINGS, LIST, NULL, REFERENCE = 1, 2, 9, 10, 13, 16, 19, 254, 255

    def __init__(self, data: bytes) -> None:
        if data[:2] != b"X\n":
            raise ValueError("not R's XDR serialization")
        self.data, self.at, self.references = data, 2, []
        version, _, _ = self.integers(3)
        if version == 3:
            (encoding_length,) = self.integers(1)
            self.at += encoding_length

    def integers(self, count: int) -> tuple[int, ...]:
        values = struct.unpack_from(f">{count}i", self.data, self.at)
        self.at += 4 * count
        return values

    def value(self) -> Any:
        (flags,) = self.integers(1)
        kind = flags & 0xFF
        if kind == self.NULL:
            return None
        if kind == self.REFERENCE:
            return self.references[(flags >> 8) - 1]
        if kind == self.SYMBOL:
            self.references.append(self.value())
            return self.references[-1]
        if kind == self.STRING:
            (length,) = self.integers(1)
            self.at += max(length, 0)
            return self.data[self.at - length : self.at].decode("utf-8", "replace") if length >= 0 else None
        if kind == self.PAIRLIST:
            pairs = {}
            while kind == self.PAIRLIST:
                if flags & 0x200:
                    self.value()
                name = self.value()
                pairs[name] = self.value()
                (flags,) = self.integers(1)
                kind = flags & 0xFF
            return pairs
        (length,) = self.integers(1)
        if kind in (self.INTEGER, self.LOGICAL):
            vector: Any = list(self.integers(length))
        elif kind in (self.STRINGS, self.LIST):
            vector = [self.value() for _ in range(length)]
        else:
            raise ValueError(f"R type {kind} is not expected in this package")
        attributes = self.value() if flags & 0x200 else None
        if attributes and "names" in attributes:
            return dict(zip(attributes["names"], vector, strict=True))
        return vector


def stored_object(chunk: bytes) -> Any:
    """One object of an `.rdb` file: a big-endian length, then zlib data, or a letter and xz or bzip2 data."""
    body = chunk[4:]
    if body[:1] == b"Z":
        raw_lzma = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
        body = lzma.decompress(body[1:], format=lzma.FORMAT_RAW, filters=raw_lzma)
    elif body[:1] == b"2":
        body = bz2.decompress(body[1:])
    else:
        body = zlib.decompress(body)
    return Serialized(body).value()


def paragraphs(folder: Path, name: str) -> list[str]:
    """The novel `name`, title page and all, without the marks for italics."""
    index = Serialized(gzip.decompress((folder / "Rdata.rdx").read_bytes())).value()
    offset, length = index["variables"][name]
    lines = stored_object((folder / "Rdata.rdb").read_bytes()[offset : offset + length])
    text = "\n".join(line.rstrip() for line in lines).replace("_", "")
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n{2,}", text) if paragraph.strip()]


def write(file: Path, text: list[str]) -> None:
    """A paragraph a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(f"{file}: {file.stat().st_size} bytes")


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    for name, file_name in NOVELS.items():
        text = paragraphs(source, name)
        if EDITORS_NOTE in text:
            text = text[: text.index(EDITORS_NOTE)]
        if name == HELD_OUT_FROM:
            first = text.index(HELD_OUT_CHAPTER)
            write(target / "val" / f"{file_name}.txt", text[first:])
            text = text[:first]
        write(target / "train" / f"{file_name}.txt", text)


if __name__ == "__main__":
    main()

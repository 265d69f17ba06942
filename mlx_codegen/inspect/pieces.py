"""Tokens as a person can read them: every blank, line end, control character and lone byte is visible."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from mlx_codegen.tokenizer import Tokenizer

SIGNS = {" ": "·", "\n": "↵", "\t": "⇥"}
# Control characters, those that change the direction or the spacing of their neighbours, line separators.
INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")


@dataclass(frozen=True)
class Piece:
    """One token."""

    id: int
    text: str
    """What to show: one line, nothing invisible, nothing that steers a terminal."""
    bytes: int
    """UTF-8 bytes that it stands for; 0 for a control token."""
    kind: str
    """`text`, `byte` (a part of a character, or one that the vocabulary lacks) or `control`."""
    ends_line: bool
    """True if its text ends in a newline."""


def pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> list[Piece]:
    """The tokens of `ids`, readable."""
    lengths = tokenizer.byte_lengths()
    return [_piece(tokenizer, index, lengths[index]) for index in ids]


def _piece(tokenizer: Tokenizer, index: int, length: int) -> Piece:
    raw = tokenizer.piece(index)
    if tokenizer.is_control(index):
        return Piece(index, raw, 0, "control", False)
    # A lone byte is named like <0xE2>; a piece that spells those six characters itself has six bytes.
    is_byte = length == 1 and len(raw) > 1
    return Piece(index, raw if is_byte else visible(raw), length, "byte" if is_byte else "text", raw.endswith("\n"))


def visible(text: str) -> str:
    """Blanks as `·`, newlines as `↵`, tabs as `⇥`, control characters as `^[` or `<U+202E>`."""
    return "".join(SIGNS.get(character) or _visible(character) for character in text)


def _visible(character: str) -> str:
    number = ord(character)
    if number < 32 or number == 127:
        return f"^{chr(number ^ 64)}"
    return f"<U+{number:04X}>" if unicodedata.category(character) in INVISIBLE else character

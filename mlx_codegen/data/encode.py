"""Documents to token ids, line by line, with the lines that come again remembered.

No piece of our tokenizers joins a line's end to anything, so the ids of a text are the ids of its lines with the
newline's between them. Scripts repeat most of their lines, and a line that is known costs a look into a table.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from mlx_codegen.tokenizer import Tokenizer

TOKEN_DTYPE = np.dtype("<u2")
REMEMBERED_CHARACTERS = 8_000_000
"""Text of the lines in the table (about 60 MB then). When there is more, all are forgotten: frequent lines are back soon."""
CALL_CHARACTERS = 1_000_000
"""Text handed to SentencePiece at once: enough for all threads, and its lists of Python numbers stay small."""


class DocumentEncoder:
    """Encodes documents to the bytes of a token file."""

    def __init__(self, tokenizer: Tokenizer, num_threads: int = 1) -> None:
        self._tokenizer = tokenizer
        self._num_threads = num_threads
        self._by_lines = tokenizer.ends_pieces_at_newline
        self._newline = _as_bytes(tokenizer.encode("\n"))
        self._end_of_text = _as_bytes([tokenizer.end_of_text_id])
        self._known: dict[str, bytes] = {}
        self._known_characters = 0

    def encode(self, documents: Sequence[str]) -> list[bytes]:
        """The ids of each document as little-endian uint16, closed by end-of-text. The ids of `Tokenizer.encode`."""
        if self._known_characters > REMEMBERED_CHARACTERS:
            self._known, self._known_characters = {}, 0
        known = self._known
        texts = [document.split("\n") if self._by_lines else [document] for document in documents]
        new = [line for line in dict.fromkeys(chain.from_iterable(texts)) if line not in known]
        known.update(zip(new, self._encode_lines(new), strict=True))
        self._known_characters += sum(map(len, new))
        return [self._newline.join([known[line] for line in lines]) + self._end_of_text for lines in texts]

    def _encode_lines(self, lines: list[str]) -> list[bytes]:
        encoded: list[bytes] = []
        for call in _calls(lines):
            ids = self._tokenizer.encode_batch(call, self._num_threads)
            # One array for all: an array for each short line would take longer than its encoding
            data = np.fromiter(chain.from_iterable(ids), TOKEN_DTYPE).tobytes()
            start = 0
            for each in ids:
                encoded.append(data[start : start + 2 * len(each)])
                start += 2 * len(each)
        return encoded


def _as_bytes(ids: list[int]) -> bytes:
    return np.array(ids, TOKEN_DTYPE).tobytes()


def _calls(lines: list[str]) -> list[list[str]]:
    """The lines in portions of about CALL_CHARACTERS."""
    calls: list[list[str]] = []
    characters = CALL_CHARACTERS
    for line in lines:
        if characters >= CALL_CHARACTERS:
            calls.append([])
            characters = 0
        calls[-1].append(line)
        characters += len(line)
    return calls

"""SentencePiece tokenizer for English and code: train, encode, decode. Every text comes back exactly as it went in.

Three things make it lossless. Unknown characters fall back to their bytes; nothing is normalised, trimmed or split at
blanks; and U+2581, the character that SentencePiece itself writes for a space, is encoded as its three bytes.
Control tokens (end of text, padding, ...) are no text: no string encodes to one, whatever it spells.
"""

import codecs
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sentencepiece as spm

from mlx_codegen.config import TokenizerConfig
from mlx_codegen.errors import UserError

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
FILL_IN_THE_MIDDLE = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
# Later features (roles, languages) take one of these instead of changing the vocabulary of trained models.
SPARE = tuple(f"<|spare_{number}|>" for number in range(8))
CONTROL_TOKENS = (END_OF_TEXT, PADDING, *FILL_IN_THE_MIDDLE, *SPARE)

SPACE_MARK = "\u2581"
# Room for the unknown piece, the control tokens, 256 bytes, newline and tab, and the characters of ASCII.
SMALLEST_VOCABULARY = 384
# What a model must give back unchanged to count as one of ours: blanks, line ends, no normalising, unknown characters.
PROBE = " a  b \t\r\n\0\ufb01\U0001f600 " + SPACE_MARK
# Long enough for `#!/bin/bash` and common idioms, short enough that whole lines do not become one piece.
LONGEST_PIECE = 24
# Training joins pairs anywhere in its "sentence": short ones keep it fast and its memory small.
TRAINING_CHUNK_CHARACTERS = 2000


class Tokenizer:
    """A trained tokenizer. Ids fit uint16. Read-only; safe to share between threads."""

    def __init__(self, model_bytes: bytes, origin: str = "tokenizer") -> None:
        """From the bytes of a SentencePiece model file. Raises UserError if they are none, or not one of ours."""
        try:
            self._processor = spm.SentencePieceProcessor(model_proto=model_bytes or b"empty")  # b"" means "none yet"
            self.vocab_size: int = self._processor.get_piece_size()
            self._bytes = [self._piece_bytes(index) for index in range(self.vocab_size)]
        except (RuntimeError, UnicodeDecodeError):
            raise UserError(f"{origin}: not a SentencePiece model, or damaged; train it again") from None
        self.model_bytes = model_bytes
        self.end_of_text_id = self._control_id(END_OF_TEXT, origin)
        self.padding_id = self._control_id(PADDING, origin)
        self._space_mark_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        if self.decode(self.encode(PROBE)) != PROBE:
            raise UserError(
                f"{origin}: does not give every text back unchanged; train one with mlx-codegen and a larger vocab_size"
            )

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.model` file, or the folder that holds one."""
        file = Path(path)
        if file.is_dir():
            file = file / "tokenizer.model"
        try:
            return cls(file.read_bytes(), origin=str(file))
        except OSError as error:
            raise UserError(f"no tokenizer at {file} ({error.strerror}); train one: mlx-codegen tokenizer train") from None

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the model file: the tokenizer's name in other files."""
        return hashlib.sha256(self.model_bytes).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without end-of-text. Raises UserError for lone surrogates, which UTF-8 cannot hold."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Token ids of several texts, on `num_threads` threads outside Python's lock."""
        marked = {index for index, text in enumerate(texts) if SPACE_MARK in text}
        ids = self._encode_plain(["" if index in marked else text for index, text in enumerate(texts)], num_threads)
        for index in marked:
            ids[index] = self._encode_around_space_marks(texts[index])
        return ids

    def decode(self, ids: Iterable[int], *, show_control: bool = False) -> str:
        """Text of token ids. Control tokens vanish, or appear by name with `show_control`; half characters become U+FFFD."""
        if show_control:
            return self._join(ids, [self._named_bytes(index) for index in range(self.vocab_size)])
        return self._join(ids, self._bytes)

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text of each id as it comes. A character of several tokens appears with its last one, never in halves."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for index in ids:
            yield decoder.decode(self._bytes[index])
        yield decoder.decode(b"", final=True)

    def piece(self, index: int) -> str:
        """A token as a person reads it: its text, `<0xE2>` for a lone byte, or the control token's name."""
        if self._processor.is_byte(index) or not self._bytes[index]:
            return str(self._processor.id_to_piece(index))
        return self._bytes[index].decode("utf-8")

    def is_control(self, index: int) -> bool:
        """True for tokens that stand for no text."""
        return not self._bytes[index]

    def is_byte(self, index: int) -> bool:
        """True for the pieces of one byte each that spell what the learned pieces cannot."""
        return bool(self._processor.is_byte(index))

    @property
    def ends_pieces_at_newline(self) -> bool:
        """True if the newline is in no piece but its own: then the ids of a text are those of its lines, one by one."""
        return not any(b"\n" in piece and piece != b"\n" for piece in self._bytes)

    def byte_lengths(self) -> list[int]:
        """UTF-8 bytes that each id stands for; control tokens 0. Turns a loss per token into bits per byte."""
        return [len(piece) for piece in self._bytes]

    def piece_scores(self) -> dict[str, float]:
        """Every piece that stands for a text, by that text, and its score: SentencePiece joins to the best first."""
        kept = (i for i in range(self.vocab_size) if self._bytes[i] and not self._processor.is_byte(i))
        return {self.piece(index): self._processor.get_score(index) for index in kept}

    def _control_id(self, name: str, origin: str) -> int:
        index: int = self._processor.piece_to_id(name)
        if self._processor.id_to_piece(index) != name or not self._processor.is_control(index):
            raise UserError(f"{origin}: has no {name} token, so this project did not train it; train one with mlx-codegen")
        return index

    def _piece_bytes(self, index: int) -> bytes:
        if self._processor.is_control(index) or self._processor.is_unknown(index):
            return b""
        piece: str = self._processor.id_to_piece(index)
        if self._processor.is_byte(index):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE_MARK, " ").encode()

    def _named_bytes(self, index: int) -> bytes:
        return self._bytes[index] or str(self._processor.id_to_piece(index)).encode()

    def _encode_plain(self, texts: list[str], num_threads: int) -> list[list[int]]:
        try:
            ids: list[list[int]] = self._processor.encode([text.encode() for text in texts], num_threads=num_threads)
        except UnicodeEncodeError:
            raise UserError("the text holds a lone surrogate (half a character), which is not valid Unicode") from None
        return ids

    def _encode_around_space_marks(self, text: str) -> list[int]:
        parts = self._encode_plain(text.split(SPACE_MARK), num_threads=1)
        ids = parts[0]
        for part in parts[1:]:
            ids += self._space_mark_ids + part
        return ids

    @staticmethod
    def _join(ids: Iterable[int], table: list[bytes]) -> str:
        return b"".join(table[index] for index in ids).decode("utf-8", errors="replace")


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, vocab_size: int) -> Tokenizer:
    """Train a tokenizer on texts. A corpus too small for `vocab_size` pieces gets the largest vocabulary it can carry:
    compare `vocab_size` of the result.

    Raises UserError for an empty corpus and for a vocabulary too small to hold every byte.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(f"vocab_size {vocab_size} is too small: bytes and control tokens alone need {SMALLEST_VOCABULARY}")
    chunks = [chunk for text in texts for chunk in _training_chunks(text) if chunk.strip()]
    if not chunks:
        raise UserError("the corpus is empty: there is no text to train a tokenizer on")
    output = io.BytesIO()
    with _native_messages_silenced():
        try:
            spm.SentencePieceTrainer.train(
                sentence_iterator=iter(chunks),
                model_writer=output,
                vocab_size=vocab_size,
                **_training_options(config),
            )
        except RuntimeError as error:
            raise UserError(f"the tokenizer cannot be trained on this corpus: {error}") from None
    return Tokenizer(output.getvalue())


def _training_options(config: TokenizerConfig) -> dict[str, Any]:
    return {
        "model_type": config.type,
        # A limit, not a demand: a small corpus yields fewer pieces instead of an error.
        "hard_vocab_limit": False,
        "byte_fallback": True,
        # A corpus with few or no blanks would leave the blank out; its byte fallback spells U+2581, another character.
        "required_chars": SPACE_MARK,
        "character_coverage": 0.9999,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_by_whitespace": False,
        "split_by_unicode_script": False,
        "split_digits": True,
        "max_sentencepiece_length": LONGEST_PIECE,
        "max_sentence_length": 1 << 24,
        # SentencePiece's own names for end and padding, so that other tools find them.
        "unk_id": 0,
        "bos_id": -1,
        "eos_id": 1,
        "eos_piece": END_OF_TEXT,
        "pad_id": 2,
        "pad_piece": PADDING,
        "control_symbols": list(CONTROL_TOKENS[2:]),
        "user_defined_symbols": ["\n", "\t"],
        "num_threads": 4,
        "minloglevel": 2,
    }


def _training_chunks(text: str) -> Iterator[str]:
    """Pieces of a text that end at line ends, near TRAINING_CHUNK_CHARACTERS long."""
    text = text.replace(SPACE_MARK, "").replace("\0", "")
    start = 0
    while start < len(text):
        end = start + TRAINING_CHUNK_CHARACTERS
        line_end = text.find("\n", end) if end < len(text) else -1
        stop = line_end + 1 if 0 <= line_end < end + TRAINING_CHUNK_CHARACTERS else end
        yield text[start:stop]
        start = stop


@contextmanager
def _native_messages_silenced() -> Iterator[None]:
    """SentencePiece's C++ code writes progress to file descriptor 2 whatever its log level says."""
    import os
    import sys

    sys.stderr.flush()
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)

"""Packed batches: windows of T + 1 tokens cut from one long shuffled stream of documents, without any padding.

Each epoch, the documents are put in a new order and laid end to end; the stream is cut into windows; the windows are
put in a new order again, so that a batch does not hold ten pieces of one book. Order depends on the seed and the epoch
alone, and the position is two numbers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlx_codegen.data.encode import TOKEN_DTYPE
from mlx_codegen.data.prepare import INDEX_DTYPE, read_manifest, token_files_whole
from mlx_codegen.data.sources import Split
from mlx_codegen.errors import UserError

Tokens = NDArray[np.uint16]


@dataclass(frozen=True)
class TokenFile:
    """One source's documents of one split, mapped into memory: nothing is read until it is used."""

    name: str
    weight: float
    tokens: Tokens
    document_ends: NDArray[np.uint64]


def open_token_files(folder: Path, split: Split, weights: dict[str, float], tokenizer_hash: str) -> list[TokenFile]:
    """Map the token files of a prepared phase. Raises UserError if they are damaged or belong to another tokenizer."""
    manifest = read_manifest(folder)
    if manifest["tokenizer_hash"] != tokenizer_hash:
        raise UserError(
            f"the token files in {folder} belong to tokenizer {manifest['tokenizer_hash']}, not {tokenizer_hash}; "
            "remove that folder to prepare them again"
        )
    if not token_files_whole(folder, manifest):
        raise UserError(f"the token files in {folder} are not as large as its manifest says; remove that folder to prepare again")
    return [
        read_token_file(folder / f"{source['name']}-{split}", source["name"], weights.get(source["name"], 1.0))
        for source in manifest["sources"]
    ]


def read_token_file(stem: Path, name: str, weight: float = 1.0) -> TokenFile:
    """Map a pair of `.bin` and `.idx`. Raises OSError where one is not there."""
    bin_file, idx_file = stem.with_name(f"{stem.name}.bin"), stem.with_name(f"{stem.name}.idx")
    if bin_file.stat().st_size == 0:  # an empty file cannot be mapped
        return TokenFile(name, weight, np.zeros(0, TOKEN_DTYPE), np.zeros(0, INDEX_DTYPE))
    return TokenFile(name, weight, np.memmap(bin_file, TOKEN_DTYPE, mode="r"), np.memmap(idx_file, INDEX_DTYPE, mode="r"))


class PackedStream:
    """One epoch's stream: documents of several files in a given order, readable at any position."""

    def __init__(self, files: list[TokenFile], file_numbers: NDArray[np.int64], document_numbers: NDArray[np.int64]) -> None:
        self._files = files
        self._file_numbers = file_numbers
        self._starts = np.empty(len(document_numbers), np.int64)
        lengths = np.empty(len(document_numbers), np.int64)
        for number, file in enumerate(files):
            chosen = file_numbers == number
            ends = file.document_ends.astype(np.int64)
            starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(ends) else ends
            self._starts[chosen] = starts[document_numbers[chosen]]
            lengths[chosen] = (ends - starts)[document_numbers[chosen]]
        self._stream_ends = np.cumsum(lengths)
        self.length = int(self._stream_ends[-1]) if len(lengths) else 0

    def read(self, start: int, length: int) -> Tokens:
        """`length` tokens from position `start`; past the end it goes on at the beginning."""
        parts: list[Tokens] = []
        position, missing = start % self.length, length
        document = int(np.searchsorted(self._stream_ends, position, side="right"))
        while missing > 0:
            part = self._read_within_document(document, position, missing)
            parts.append(part)
            missing -= len(part)
            position = (position + len(part)) % self.length
            document = (document + 1) % len(self._stream_ends)
        return np.concatenate(parts)

    def _read_within_document(self, document: int, position: int, at_most: int) -> Tokens:
        left = int(self._stream_ends[document]) - position
        length_of_document_left = min(left, at_most)
        document_end = self._document_end(document)
        begin = document_end - left
        return self._files[self._file_numbers[document]].tokens[begin : begin + length_of_document_left]

    def _document_end(self, document: int) -> int:
        previous = int(self._stream_ends[document - 1]) if document else 0
        return int(self._starts[document]) + int(self._stream_ends[document]) - previous


class Batches(Protocol):
    """What training reads: TrainingBatches, or MixedBatches where a source is streamed."""

    @property
    def context_length(self) -> int:
        """Tokens of a row that the model reads."""

    @property
    def tokens_per_batch(self) -> int:
        """Tokens in one global batch: those of all ranks."""

    @property
    def tokens_per_epoch(self) -> int | None:
        """Tokens in one pass over the mix; None where nobody knows."""

    def next(self) -> Tokens:
        """The next batch of token ids `(batch_size, context_length + 1)`; column t + 1 is the target of column t."""

    def state(self) -> dict[str, Any]:
        """Where the next batch begins, in plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state()` was taken."""

    def close(self) -> None:
        """Nothing more is read."""


def shuffled_windows(
    files: list[TokenFile],
    file_numbers: NDArray[np.int64],
    document_numbers: NDArray[np.int64],
    context_length: int,
    generator: np.random.Generator,
) -> tuple[PackedStream, NDArray[np.int64]]:
    """Documents end to end in a new order, and an order of the windows of `context_length` tokens that they make."""
    order = generator.permutation(len(file_numbers))
    stream = PackedStream(files, file_numbers[order], document_numbers[order])
    return stream, generator.permutation(stream.length // context_length)


class TrainingBatches:
    """Endless shuffled batches. `state()` and `restore()` save and set the position.

    Several processes (`ranks`) share one stream: a global batch has `ranks · batch_size` rows, and rank r gets the r-th
    `batch_size` of them. The position counts rows of global batches: any other number of ranks can go on from it.
    """

    def __init__(
        self, files: list[TokenFile], batch_size: int, context_length: int, seed: int, *, rank: int = 0, ranks: int = 1
    ) -> None:
        """Raises UserError if the files hold less than one window."""
        self._files = files
        self.batch_size = batch_size
        self.context_length = context_length
        self.rank = rank
        self.ranks = ranks
        self._seed = seed
        self._start_epoch(0)

    def next(self) -> Tokens:
        """The next batch of token ids `(batch_size, context_length + 1)`; column t + 1 is the target of column t."""
        windows = [self.next_window() for _ in range(self.ranks * self.batch_size)]
        own = windows[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        return np.stack([stream.read(start, self.context_length + 1) for stream, start in own])

    def state(self) -> dict[str, int]:
        """Where the next batch begins."""
        return {"epoch": self._epoch, "window": self._window}

    def restore(self, state: dict[str, int]) -> None:
        """Go on where `state()` was taken."""
        self._start_epoch(state["epoch"])
        self._window = state["window"]

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens in one pass over the mix, repeats by weight included."""
        return round(sum(file.weight * len(file.tokens) for file in self._files))

    @property
    def tokens_per_batch(self) -> int:
        """Tokens in one global batch: those of all ranks."""
        return self.ranks * self.batch_size * self.context_length

    def close(self) -> None:
        """Nothing to do: the files are mapped."""

    def next_window(self) -> tuple[PackedStream, int]:
        """The stream and the position in it where the next window begins."""
        if self._window == len(self._order):
            self._start_epoch(self._epoch + 1)
        start = int(self._order[self._window]) * self.context_length
        self._window += 1
        return self._stream, start

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._window = epoch, 0
        generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        file_numbers, document_numbers = self._draw_documents(generator)
        self._stream, self._order = shuffled_windows(self._files, file_numbers, document_numbers, self.context_length, generator)
        if len(self._order) == 0:
            raise UserError(
                f"the training text has {self._stream.length} tokens, fewer than one window of {self.context_length}; "
                "add text, or lower model.context_length"
            )

    def _draw_documents(self, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """File and document number of everything in one epoch: whole repeats, then a random share for the fraction."""
        file_numbers, document_numbers = [], []
        for number, file in enumerate(self._files):
            documents = len(file.document_ends)
            whole, fraction = int(file.weight), file.weight - int(file.weight)
            chosen = [np.arange(documents)] * whole
            chosen.append(generator.permutation(documents)[: round(fraction * documents)])
            document_numbers.append(np.concatenate(chosen))
            file_numbers.append(np.full(len(document_numbers[-1]), number))
        return np.concatenate(file_numbers), np.concatenate(document_numbers)


def validation_batches(files: list[TokenFile], batch_size: int, context_length: int, max_tokens: int) -> list[Tokens]:
    """Fixed batches `(≤ batch_size, context_length + 1)` from the validation documents, an even share of each source.

    The same for every evaluation of a phase. Documents follow each other as in training; a text shorter than one
    window is repeated to fill it, because a model is never shown padding.
    """
    windows: list[Tokens] = []
    filled = [file for file in files if len(file.tokens)]
    for file in filled:
        documents = np.arange(len(file.document_ends))
        stream = PackedStream([file], np.zeros_like(documents), documents)
        wanted = max(1, max_tokens // len(filled) // context_length)
        available = max(1, (stream.length - 1) // context_length)
        chosen = np.unique(np.linspace(0, available - 1, min(wanted, available)).astype(int))
        windows += [stream.read(int(index) * context_length, context_length + 1) for index in chosen]
    return [np.stack(windows[start : start + batch_size]) for start in range(0, len(windows), batch_size)]

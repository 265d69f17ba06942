"""Batches of several sources, each with a fixed share: what a phase reads when one of its sources is streamed."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlx_codegen.config import PhaseConfig, SourceConfig
from mlx_codegen.data.batches import Batches, PackedStream, Tokens, TrainingBatches, open_token_files
from mlx_codegen.data.prepare import read_manifest
from mlx_codegen.data.shards import ShardSource, ShardWindows
from mlx_codegen.tokenizer import Tokenizer


class Windows(Protocol):
    """An endless row of windows with a position: TrainingBatches of one prepared source, ShardWindows of a streamed one."""

    def next_window(self) -> tuple[PackedStream, int]:
        """A stream and the position in it where the next window begins."""

    def state(self) -> dict[str, Any]:
        """Where the next window begins."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state()` was taken."""

    def close(self) -> None:
        """Nothing more is read."""


def open_batches(
    folder: Path, settings: PhaseConfig, tokenizer: Tokenizer, context_length: int, seed: int, *, rank: int = 0, ranks: int = 1
) -> Batches:
    """The training batches of a prepared phase. Raises UserError for damaged token files and too little text."""
    weights = {source.name: source.weight for source in settings.sources}
    files = open_token_files(folder, "train", weights, tokenizer.hash)
    manifest = read_manifest(folder)
    if not any(source["settings"].get("stream") for source in manifest["sources"]):
        return TrainingBatches(files, settings.batch_size, context_length, seed, rank=rank, ranks=ranks)
    cache_bytes = {source.name: source.cache_bytes for source in settings.sources}
    parts: dict[str, Windows] = {}
    for described, file in zip(manifest["sources"], files, strict=True):
        source = SourceConfig.model_validate(described["settings"])  # what was prepared, whatever --resume --set says now
        if source.stream:
            source = source.model_copy(update={"cache_bytes": cache_bytes.get(source.name, source.cache_bytes)})
            shards = folder / f"{source.name}.shards" / str(rank)  # ranks on one machine must not write the same files
            origin = ShardSource(source, file, shards, manifest["fingerprint"], tokenizer, manifest["validation_fraction"])
            parts[source.name] = ShardWindows(origin, context_length, seed)
        else:
            parts[source.name] = TrainingBatches([replace(file, weight=1.0)], 1, context_length, seed)
    weights = {file.name: file.weight for file in files}
    return MixedBatches(parts, weights, settings.batch_size, context_length, rank=rank, ranks=ranks)


class MixedBatches:
    """Endless batches in which each part has its weight's share of the rows, as evenly as can be.

    Ranks share the rows as those of TrainingBatches do, and the position counts rows of global batches here, too.
    """

    tokens_per_epoch = None

    def __init__(
        self, parts: dict[str, Windows], weights: dict[str, float], batch_size: int, context_length: int, *, rank: int, ranks: int
    ) -> None:
        self._parts = parts
        self._shares = {name: weights[name] / sum(weights[each] for each in parts) for name in parts}
        self._taken = dict.fromkeys(parts, 0)
        self.batch_size = batch_size
        self.context_length = context_length
        self._rank = rank
        self._ranks = ranks

    @property
    def tokens_per_batch(self) -> int:
        """Tokens in one global batch: those of all ranks."""
        return self._ranks * self.batch_size * self.context_length

    def next(self) -> Tokens:
        """The next batch of token ids `(batch_size, context_length + 1)`; column t + 1 is the target of column t."""
        windows = [self._next_window() for _ in range(self._ranks * self.batch_size)]
        own = windows[self._rank * self.batch_size : (self._rank + 1) * self.batch_size]
        return np.stack([stream.read(start, self.context_length + 1) for stream, start in own])

    def state(self) -> dict[str, Any]:
        """Where the next batch begins: rows so far, and for each source its rows and its own position."""
        parts = {name: {"rows": self._taken[name], **part.state()} for name, part in self._parts.items()}
        return {"rows": sum(self._taken.values()), "sources": parts}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state()` was taken."""
        for name, part in self._parts.items():
            self._taken[name] = state["sources"][name]["rows"]
            part.restore(state["sources"][name])

    def close(self) -> None:
        """Stop reading ahead."""
        for part in self._parts.values():
            part.close()

    def _next_window(self) -> tuple[PackedStream, int]:
        """From the part that is furthest behind its share."""
        row = sum(self._taken.values()) + 1
        name = max(self._parts, key=lambda each: self._shares[each] * row - self._taken[each])
        window = self._parts[name].next_window()
        self._taken[name] += 1
        return window

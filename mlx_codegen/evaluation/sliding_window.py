"""The loss of every token of a text that may be longer than the model's window.

The text is read in windows of T tokens that begin half a window apart. Each token is scored once: in the first window all
of them are, in every later one only those of its second half, which have at least half a window of text before them.
Scoring whole windows side by side instead would judge each window's first tokens without any context.

    tokens    ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁
    window 1  ████████                     █ scored
    window 2      ░░░░████                 ░ read only
    window 3          ░░░░████
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_codegen import backend
from mlx_codegen.model import Transformer
from mlx_codegen.training.step import split_rows, token_losses

POSITIONS = 4096
"""Tokens of one forward pass, padding included: enough to keep a CPU busy, 131 MB of scores with 8,000 pieces."""


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of a document are read, and those after `scored_from` are scored."""

    document: int
    start: int
    scored_from: int
    stop: int


def windows(document: int, length: int, context_length: int) -> Iterator[Window]:
    """Cuts `length` predictions of a document into windows of at most `context_length`."""
    stride = max(1, context_length // 2)
    scored = 0
    while scored < length:
        stop = min(scored + (stride if scored else context_length), length)
        start = max(0, scored - (context_length - stride)) if scored else 0
        yield Window(document, start, scored, stop)
        scored = stop


def document_losses(
    model: Transformer,
    documents: Sequence[Sequence[int]],
    end_of_text_id: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[NDArray[np.float64]]:
    """Cross-entropy in nats of every token of each document, `(N,)` for N tokens; a document follows an end-of-text."""
    texts = [np.array([end_of_text_id, *ids], np.int32) for ids in documents]
    losses = [np.zeros(len(ids)) for ids in documents]
    limit = model.config.context_length
    cut = [window for number, text in enumerate(texts) for window in windows(number, len(text) - 1, limit)]
    done, total = 0, sum(map(len, losses))
    streams = backend.compute_streams()
    for batch in batches(cut):
        rows = np.full((len(batch), max(w.stop - w.start for w in batch) + 1), end_of_text_id, np.int32)
        for row, window in zip(rows, batch, strict=True):
            # Padded on the right: no token sees what comes after it
            row[: window.stop - window.start + 1] = texts[window.document][window.start : window.stop + 1]
        values = _row_losses(model, mx.array(rows), streams)
        for row_values, window in zip(values, batch, strict=True):
            scored = row_values[window.scored_from - window.start : window.stop - window.start]
            losses[window.document][window.scored_from : window.stop] = scored
            done += len(scored)
        on_progress(done, total)
    backend.set_blas_threads(backend.cpu_count())  # as it was: writing has but one stream
    return losses


def _row_losses(model: Transformer, rows: mx.array, streams: list[mx.Stream]) -> NDArray[np.float32]:
    """Losses `(B, T)` of rows `(B, T + 1)`, a share of the rows on every stream."""
    parts = []
    for stream, part in zip(streams, split_rows(rows, len(streams)), strict=False):
        with mx.stream(stream):
            parts.append(token_losses(model, part))
    mx.eval(parts)  # together, or the streams would take turns
    return np.concatenate([np.array(part) for part in parts])


def batches(cut: list[Window]) -> Iterator[list[Window]]:
    """Windows of about one length together, as many as one forward pass takes."""
    batch: list[Window] = []
    # The longest first: where memory is short, that shows at once
    for window in sorted(cut, key=lambda w: w.start - w.stop):
        longest = batch[0].stop - batch[0].start if batch else 0
        if batch and longest * (len(batch) + 1) > POSITIONS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch

"""A 3-gram model: each token guessed from the two before it, by counting. What a neural network must beat to be worth it.

Interpolated Kneser-Ney smoothing: a fixed discount D is taken off every count, and what that frees goes to the model of
one token less, down to equal chances. For tokens u v w, with c how often they were seen:

    p(w | u v) = max(c(u v w) - D, 0) / c(u v) + D · N(u v) / c(u v) · p(w | v)

N(u v) is how many different tokens followed u v. Below the top, a count is not how often but after how many different
tokens something was seen: `York` is frequent and still a poor guess, for it only follows `New`.

Sources: Kneser and Ney (1995); Chen and Goodman (1999), equation for interpolated Kneser-Ney; the discount is
n1 / (n1 + 2 n2) (Ney, Essen and Kneser, 1994), with n1 and n2 how many were seen once and twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_codegen.config import ModelConfig
from mlx_codegen.model import KVCache

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]
TOKENS_AT_ONCE = 8_000_000
"""So many are counted at a time: sorting them takes about 200 MB."""
USUAL_DISCOUNT = 0.5
"""Where too little was counted to estimate one."""


@dataclass(frozen=True)
class Level:
    """What was counted for contexts of one length: rows of contexts, each with the tokens that followed it."""

    contexts: Integers
    """Numbers of the contexts, sorted."""
    starts: Integers
    """Where each context's tokens begin, and the end of the last."""
    tokens: Integers
    chances: Floats
    """Of each token: its count less the discount, as a share of its context's."""
    left_over: Floats
    """Of each context: the share that goes to the level below."""

    def refine(self, chances: Floats, contexts: Integers) -> None:
        """Turns the chances `(N, V)` of the level below into those of this one, in place, for N contexts."""
        places = np.minimum(np.searchsorted(self.contexts, contexts), len(self.contexts) - 1)
        for row in np.flatnonzero(self.contexts[places] == contexts):  # a context never seen leaves all to the level below
            place = places[row]
            seen = slice(self.starts[place], self.starts[place + 1])
            chances[row] *= self.left_over[place]
            chances[row, self.tokens[seen]] += self.chances[seen]


def level(keys: Integers, counts: Integers, vocab_size: int) -> Level:
    """From sorted keys (context · V + token) and their counts."""
    seen_once, seen_twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = seen_once / (seen_once + 2 * seen_twice) if seen_once and seen_twice else USUAL_DISCOUNT
    contexts, starts, followers = np.unique(keys // vocab_size, return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, starts)
    return Level(
        contexts=contexts,
        starts=np.append(starts, len(keys)),
        tokens=keys % vocab_size,
        chances=((counts - discount) / np.repeat(totals, followers)).astype(np.float32),
        left_over=(discount * followers / totals).astype(np.float32),
    )


def count(streams: Iterable[NDArray[np.uint16]], vocab_size: int, end_of_text_id: int) -> tuple[Integers, Integers]:
    """Sorted keys (u · V² + v · V + w) of all 3-grams in streams of documents, and how often each was seen.

    Each document ends in an end-of-text. What stood before one tells nothing of the document after it: both tokens of
    that context are end-of-text.
    """
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for stream in streams:
        for start in range(0, len(stream), TOKENS_AT_ONCE):
            part = stream[max(0, start - 2) : start + TOKENS_AT_ONCE].astype(np.int64)
            if start == 0:
                part = np.concatenate([np.full(2, end_of_text_id), part])
            u, v, w = part[:-2], part[1:-1], part[2:]
            found = np.unique((np.where(v == end_of_text_id, v, u) * vocab_size + v) * vocab_size + w, return_counts=True)
            keys, counts = _merge(np.concatenate([keys, found[0]]), np.concatenate([counts, found[1]]))
    return keys, counts


def _merge(keys: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """Equal keys become one, with their counts added up."""
    order = np.argsort(keys, kind="stable")
    distinct, starts = np.unique(keys[order], return_index=True)
    return distinct, np.add.reduceat(counts[order], starts)


class NgramModel(nn.Module):
    """The part of `Transformer` that writing and measuring need, so that a 3-gram model can stand in its place.

    What a transformer computes from all earlier tokens is here the last two of them, as they are (int32, so nobody takes
    them for activations); the cache of keys remembers the token before.
    """

    def __init__(self, config: ModelConfig, streams: Iterable[NDArray[np.uint16]], end_of_text_id: int) -> None:
        """Counts the 3-grams of `streams` (as in `count`) over the config's vocabulary. ValueError for empty streams."""
        super().__init__()
        self.config = config
        self.end_of_text_id = end_of_text_id
        V = config.vocab_size
        keys, counts = count(streams, V, end_of_text_id)
        if not len(keys):
            raise ValueError("no tokens to count")
        pairs, before_pairs = np.unique(keys % V**2, return_counts=True)
        singles, before_singles = np.unique(pairs % V, return_counts=True)
        # From no context to two tokens of it
        self._levels = level(singles, before_singles, V), level(pairs, before_pairs, V), level(keys, counts, V)

    @property
    def blocks(self) -> list[str]:
        """As many as there are caches to be made."""
        return ["the token before"]

    def __call__(self, tokens: mx.array, cache: list[KVCache] | None = None) -> mx.array:
        """Logarithms of probabilities `(B, T, V)` of the token after each of `tokens` `(B, T)`."""
        return self.logits(self.hidden_states(tokens, cache))

    def hidden_states(self, tokens: mx.array, cache: list[KVCache] | None = None, starts: mx.array | None = None) -> mx.array:
        """Each token with the one before it `(B, T, 2)`; `starts` changes nothing, as padding stands before end-of-text."""
        newest = tokens.astype(mx.int32)[:, None, :, None]
        so_far = cache[0].append(newest, newest)[0] if cache is not None else newest
        so_far = mx.pad(so_far[:, 0, :, 0], [(0, 0), (1, 0)], constant_values=self.end_of_text_id)
        before = so_far[:, -tokens.shape[1] - 1 : -1]
        return mx.stack([mx.where(tokens == self.end_of_text_id, tokens, before), tokens], axis=-1).astype(mx.int32)

    def logits(self, hidden: mx.array) -> mx.array:
        """Logarithms of probabilities `(..., V)` after pairs of tokens `(..., 2)`."""
        chances = self.probabilities(np.array(hidden).reshape(-1, 2))
        return mx.log(mx.array(chances)).reshape(*hidden.shape[:-1], -1)

    def probabilities(self, pairs: NDArray[np.integer]) -> Floats:
        """Chances `(N, V)` of each token after pairs `(N, 2)` of tokens; each row's sum is 1."""
        V = self.config.vocab_size
        # The same pair comes again and again in a text
        distinct, places = np.unique(pairs.astype(np.int64) @ np.array([V, 1]), return_inverse=True)
        chances = np.full((len(distinct), V), 1 / V, np.float32)
        for level_contexts, counted in zip((distinct * 0, distinct % V, distinct), self._levels, strict=True):
            counted.refine(chances, level_contexts)
        return chances[places.reshape(-1)]

    def size(self) -> int:
        """How many different 3-grams were counted."""
        return len(self._levels[-1].tokens)

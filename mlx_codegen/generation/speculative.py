"""A small model guesses ahead, the large one checks all guesses at once: the same texts as from the large one alone, sooner.

Reading several tokens costs the large model little more than reading one, since either way every weight is read once.
A guess x that the draft drew with probability q(x) is accepted with probability min(1, p(x) / q(x)), where p is the large
model's; in place of the first one refused, a token is drawn from max(p - q, 0), normalised. That gives exactly p.

Source: Leviathan, Kalman and Matias, 2023, arXiv 2211.17192, algorithm 1.
"""

from collections.abc import Callable, Iterator

import mlx.core as mx

from mlx_codegen.model import KVCache, Transformer

GUESSES = 4
"""Tokens that the draft guesses in one round."""

Distribution = Callable[[mx.array, bool], mx.array]
"""From logits `(T, V)` and whether the first row is an answer's first token: the probabilities `(T, V)` that are drawn from."""


def speculate(
    model: Transformer, draft: Transformer, prompt: list[int], seed: int, distribution: Distribution, guesses: int = GUESSES
) -> Iterator[int]:
    """Yields token ids without end, drawn from `model`'s distribution; the caller stops."""
    history = list(prompt)
    target, guesser = _Reader(model), _Reader(draft)
    key = mx.random.key(seed)
    first = True
    while True:
        count = min(guesses, target.room(history), guesser.room(history) + 1)
        key, for_draft, for_target = mx.random.split(key, 3)
        guessed, q = guesser.guess(history, count, for_draft, distribution, first)
        p = distribution(target.read(history, guessed), first)
        accepted, token = _verify(p, q, guessed, for_target)
        values = [*guessed[: int(accepted.item())].tolist(), int(token.item())]
        history += values
        # What was read of refused guesses is forgotten
        target.keep(history)
        guesser.keep(history)
        first = False
        yield from values


def _verify(p: mx.array, q: mx.array, guessed: mx.array, key: mx.array) -> tuple[mx.array, mx.array]:
    """How many of `guessed` `(n,)` are accepted, and the token that follows them; p `(n + 1, V)`, q `(n, V)`."""
    count = guessed.shape[0]
    for_acceptance, for_token = mx.random.split(key)
    column = guessed[:, None]
    ratio = mx.take_along_axis(p[:count], column, axis=-1) / mx.take_along_axis(q, column, axis=-1)
    accepts = mx.random.uniform(shape=(count,), key=for_acceptance) < ratio[:, 0]
    accepted = mx.cumprod(accepts.astype(mx.int32)).sum() if count else mx.array(0)
    # After the last guess there is nothing to compare with: q is zero there, and the token comes from p itself
    q = mx.concatenate([q, mx.zeros_like(p[:1])])
    left = mx.maximum(p[accepted] - q[accepted], 0)
    return accepted, draw(left[None], for_token)[0]


def draw(weights: mx.array, key: mx.array) -> mx.array:
    """Draws ids `(T,)` with probabilities in proportion to `weights` `(T, V)`, which need not sum to one."""
    return mx.argmax(mx.log(weights) + mx.random.gumbel(weights.shape, key=key), axis=-1)


class _Reader:
    """A model and its cache, which has read a beginning of the history (of its last window)."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.window = model.config.context_length
        self.cache: list[KVCache] = model.make_cache()
        self.start = 0
        """Place in the history where the cache begins."""

    def room(self, history: list[int]) -> int:
        """How many tokens fit into the window beyond the history; moves the window to its later half when none does."""
        if len(history) - self.start > self.window:
            self.start = len(history) - self.window // 2
            self.cache = self.model.make_cache()
        return self.window - (len(history) - self.start)

    def read(self, history: list[int], guessed: mx.array) -> mx.array:
        """Logits `(n + 1, V)` for the token after the history and after each of `guessed` `(n,)`."""
        unread = mx.array(history[self.start + self.cache[0].offset :])
        tokens = mx.concatenate([unread, guessed.astype(unread.dtype)])[None]
        hidden = self.model.hidden_states(tokens, self.cache)[0, unread.shape[0] - 1 :]
        return self.model.logits(hidden).astype(mx.float32)

    def guess(
        self, history: list[int], count: int, key: mx.array, distribution: Distribution, first: bool
    ) -> tuple[mx.array, mx.array]:
        """Draws `count` tokens after the history, and the distributions `(count, V)` that they came from."""
        tokens: list[mx.array] = []
        distributions: list[mx.array] = []
        none = mx.zeros((0,), mx.uint32)
        for number, subkey in enumerate(mx.random.split(key, count) if count else []):
            logits = self.read(history, none) if number == 0 else self._read_one(tokens[-1])
            distributions.append(distribution(logits, first and number == 0))
            tokens.append(draw(distributions[-1], subkey))
        if not tokens:
            return none, mx.zeros((0, self.model.config.vocab_size))
        return mx.concatenate(tokens), mx.concatenate(distributions)

    def keep(self, history: list[int]) -> None:
        """Forgets what was read beyond the history; its newest token is read in the next round."""
        for layer in self.cache:
            layer.offset = min(layer.offset, len(history) - 1 - self.start)

    def _read_one(self, token: mx.array) -> mx.array:
        return self.model.logits(self.model.hidden_states(token[None], self.cache)[0]).astype(mx.float32)

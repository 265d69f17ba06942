"""Many texts written side by side: prompts are read once, then every step adds one token to each text.

One step of a batch reads the weights once for all rows, so on a CPU thirty texts take little longer than one. Rows
differ in length; they are padded on the left, so that all write at the same place of the cache:

    place   0 1 2 3 4 5
    row 0   a b c d|e f        starts at 0; the prompt was a b c d
    row 1   . . x y|z          starts at 2; finished rows are taken out

Each row draws with random numbers of its own seed, so a batch gives what its rows alone would give.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from mlx_codegen.model import KVCache, Transformer

ROOM = 64
"""Places of the cache beyond the window: so many steps pass before rows that started late must be moved."""

KEYS_AT_ONCE = 32

Draw = Callable[[mx.array, mx.array, bool], tuple[mx.array, mx.array]]
"""From logits `(B, V)`, a random key a row `(B, 2)` and whether this is an answer's first token: ids and their
log-probabilities `(B,)`."""


@dataclass(frozen=True)
class Step:
    """One more token of each row that is still being written."""

    rows: list[int]
    tokens: list[int]
    logprobs: list[float]


def decode(
    model: Transformer, prompts: list[list[int]], seeds: list[int], draw: Draw, end: int, max_tokens: int
) -> Iterator[Step]:
    """Yields steps until every row has drawn `end` (which is a token of the step), at most `max_tokens` of them.

    When a text outgrows the window, its later half is read again as the new context.
    """
    batch = _Batch(model, prompts, seeds, draw, max_tokens)
    tokens, logprobs = batch.prefill()
    for _ in range(max_tokens):
        if batch.has_room():
            # The device computes the next tokens while these are being shown.
            upcoming = batch.step(tokens)
            mx.async_eval(*upcoming)
            step = batch.record(tokens, logprobs, end)
        else:
            step = batch.record(tokens, logprobs, end)
            batch.make_room()
            upcoming = batch.step(tokens)
        yield step
        if batch.finished():
            return
        tokens, logprobs = batch.without_finished(upcoming)


class _Batch:
    """The rows that are still being written, and their cache."""

    def __init__(self, model: Transformer, prompts: list[list[int]], seeds: list[int], draw: Draw, max_tokens: int) -> None:
        self.model = model
        self.window = model.config.context_length
        self.draw = draw
        self.prompts = prompts
        self.histories = [list(prompt) for prompt in prompts]
        self.keys = mx.stack([mx.random.key(seed) for seed in seeds])
        self.step_keys: list[mx.array] = []
        longest = min(self.window, max(map(len, prompts)) + max_tokens)
        self.cache = [KVCache(longest + (ROOM if len(prompts) > 1 else 0)) for _ in model.blocks]
        # What stands at each place of the batch: which row, whether it goes on, where in the cache it starts
        self.rows = list(range(len(prompts)))
        self.alive = [True] * len(prompts)
        self.starts = [0] * len(prompts)

    def prefill(self) -> tuple[mx.array, mx.array]:
        """Reads the prompts, equal ones once, and draws the first token of every row."""
        distinct = list({tuple(prompt): None for prompt in self.prompts})
        length = max(map(len, distinct))
        starts = [length - len(prompt) for prompt in distinct]
        padded = mx.array([[0] * start + list(prompt) for start, prompt in zip(starts, distinct, strict=True)])
        hidden = self._read(padded, starts)
        number = {prompt: index for index, prompt in enumerate(distinct)}
        which = [number[tuple(prompt)] for prompt in self.prompts]
        self.starts = [starts[index] for index in which]
        if len(which) > 1:
            self._select(mx.array(which))
        return self._draw(hidden[mx.array(which)], first=True)

    def has_room(self) -> bool:
        """True if the next token fits into the cache and into the window of every row."""
        offset = self.cache[0].offset
        return offset < self.cache[0].capacity and offset - min(self.starts) < self.window

    def step(self, tokens: mx.array) -> tuple[mx.array, mx.array]:
        """Draws the token after `tokens` `(B,)` in every row."""
        return self._draw(self._read(tokens[:, None], self.starts), first=False)

    def record(self, tokens: mx.array, logprobs: mx.array, end: int) -> Step:
        """Waits for the tokens, notes them in their rows' histories, and which rows are at their end."""
        step = Step([], [], [])
        for place, (token, logprob) in enumerate(zip(tokens.tolist(), logprobs.tolist(), strict=True)):
            if self.alive[place]:
                self.histories[self.rows[place]].append(token)
                step.rows.append(self.rows[place])
                step.tokens.append(token)
                step.logprobs.append(logprob)
                self.alive[place] = token != end
        return step

    def finished(self) -> bool:
        """True if no row goes on."""
        return not any(self.alive)

    def make_room(self) -> None:
        """Reads the later half of each text that fills its window again, as its new context; then drops what nobody sees."""
        offset = self.cache[0].offset
        # Rows that are finished but still here need nothing of the cache
        self.starts = [start if alive else offset for start, alive in zip(self.starts, self.alive, strict=True)]
        self._read_again([place for place, start in enumerate(self.starts) if offset - start >= self.window])
        if offset == self.cache[0].capacity:
            unseen = min(self.starts)
            for layer in self.cache:
                layer.drop_first(unseen)
            self.starts = [start - unseen for start in self.starts]

    def without_finished(self, upcoming: tuple[mx.array, mx.array]) -> tuple[mx.array, mx.array]:
        """Takes finished rows out, a quarter of the batch at a time: each time copies the cache."""
        kept = [place for place, alive in enumerate(self.alive) if alive]
        if len(kept) > 0.75 * len(self.alive):
            return upcoming
        self.rows = [self.rows[place] for place in kept]
        self.alive = [True] * len(kept)
        self.starts = [self.starts[place] for place in kept]
        places = mx.array(kept)
        self._select(places)
        self.keys = self.keys[places]
        self.step_keys = [keys[places] for keys in self.step_keys]
        return upcoming[0][places], upcoming[1][places]

    def _select(self, places: mx.array) -> None:
        for layer in self.cache:
            layer.select(places)

    def _read(self, tokens: mx.array, starts: list[int]) -> mx.array:
        """Hidden states `(B, C)` of the last of `tokens` `(B, T)`."""
        padding = mx.array(starts) if any(starts) else None
        return self.model.hidden_states(tokens, self.cache, padding)[:, -1]

    def _read_again(self, full: list[int]) -> None:
        """Replaces the cache of these rows by that of the later half of their texts."""
        if not full:
            return
        length = self.window // 2 - 1  # the newest token is in the history, and is read in the step that follows
        offset = self.cache[0].offset
        contexts = [self.histories[self.rows[place]][-length - 1 : -1] for place in full]
        fresh = [KVCache(length, layer.dropped + offset - length) for layer in self.cache]
        self.model.hidden_states(mx.array(contexts), fresh)
        rows = mx.array(full)
        for layer, part in zip(self.cache, fresh, strict=True):
            assert layer.keys is not None and layer.values is not None
            layer.keys[rows, :, offset - length : offset] = part.keys
            layer.values[rows, :, offset - length : offset] = part.values
        for place in full:
            self.starts[place] = offset - length

    def _draw(self, hidden: mx.array, first: bool) -> tuple[mx.array, mx.array]:
        return self.draw(self.model.logits(hidden), self._next_keys(), first)

    def _next_keys(self) -> mx.array:
        """A random key for each row `(B, 2)`; made for many steps at once, since it costs as much for one."""
        if not self.step_keys:
            block = mx.vmap(lambda key: mx.random.split(key, KEYS_AT_ONCE + 1))(self.keys)
            mx.eval(block)
            self.keys, *self.step_keys = (block[:, step] for step in range(KEYS_AT_ONCE + 1))
            self.step_keys.reverse()
        return self.step_keys.pop()

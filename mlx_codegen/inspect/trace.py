"""A generation step by step: which tokens could have come, and which one the dice took."""

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from mlx_codegen.generation.decode import decode
from mlx_codegen.generation.engine import Engine, SamplingConfig
from mlx_codegen.generation.samplers import distribution, sample
from mlx_codegen.inspect.pieces import Piece, pieces


@dataclass(frozen=True)
class TraceStep:
    """One step: the token taken and what it was drawn from."""

    taken: Piece
    probability: float
    """Of the token taken, after top-p, top-k and temperature."""
    rank: int
    """1 if none was likelier."""
    remaining: int
    """Tokens that could have been drawn."""
    candidates: list[tuple[Piece, float]]
    """The likeliest of those, likeliest first, with their probabilities."""


def trace(engine: Engine, prompt_ids: list[int], seed: int, settings: SamplingConfig, count: int = 5) -> Iterator[TraceStep]:
    """Yields the steps of the text that `generate` writes with this seed, end-of-text included if it comes.

    `count`, at least 1, is the number of candidates kept for each step.
    """
    end = engine.tokenizer.end_of_text_id
    drawn_from: list[mx.array] = []

    def draw(logits: mx.array, keys: mx.array, first: bool) -> tuple[mx.array, mx.array]:
        logprobs = engine.logprobs(logits, first)
        drawn_from.append(distribution(logprobs, settings.temperature, settings.top_k, settings.top_p)[0])
        tokens = sample(logprobs, keys, settings.temperature, settings.top_k, settings.top_p)
        return tokens, mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]

    for step in decode(engine.model, [prompt_ids], [seed], draw, end, settings.max_tokens):
        # The step after this one is drawn ahead, so this step's distribution is the oldest, not the newest.
        yield _trace_step(engine, step.tokens[0], drawn_from.pop(0), count)


def _trace_step(engine: Engine, token: int, probabilities: mx.array, count: int) -> TraceStep:
    """`probabilities` `(V,)` is what `token` was drawn from."""
    remaining = int((probabilities > 0).sum().item())
    best = mx.argsort(-probabilities)[: min(count, remaining)]
    candidates = zip(pieces(engine.tokenizer, best.tolist()), probabilities[best].tolist(), strict=True)
    probability = probabilities[token]
    return TraceStep(
        taken=pieces(engine.tokenizer, [token])[0],
        probability=float(probability.item()),
        rank=1 + int((probabilities > probability).sum().item()),
        remaining=remaining,
        candidates=list(candidates),
    )

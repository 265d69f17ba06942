"""The next token: what the model expects, and what temperature, top-k and top-p make of it."""

from dataclasses import dataclass

import mlx.core as mx

from mlx_codegen.generation.engine import Engine, SamplingConfig
from mlx_codegen.generation.samplers import apply_top_k, apply_top_p, distribution
from mlx_codegen.inspect.pieces import Piece, pieces


@dataclass(frozen=True)
class Stage:
    """One step on the way from the model's opinion to the draw."""

    name: str
    setting: str
    """Its value, empty for the model itself."""
    remaining: int
    """Tokens that can still be drawn."""


@dataclass(frozen=True)
class Candidate:
    """A token that may come next."""

    piece: Piece
    probabilities: list[float]
    """One for each stage, each time of what remains; 0 once it has fallen away."""


@dataclass(frozen=True)
class NextTokens:
    """The likeliest next tokens, likeliest first."""

    stages: list[Stage]
    candidates: list[Candidate]
    others: list[float]
    """Probability of all other tokens together, for each stage."""


def next_tokens(engine: Engine, prompt_ids: list[int], settings: SamplingConfig, count: int = 10) -> NextTokens:
    """What `generate` would draw the first token of its answer from, stage by stage in the samplers' order.

    The last column is what is drawn from. Control tokens, and an end before the answer has begun, never come: the
    model's own probabilities are those of the tokens that may. `count` is at least 1.
    """
    hidden = engine.model.hidden_states(mx.array([prompt_ids]))[:, -1]
    logprobs = engine.logprobs(engine.model.logits(hidden), first=True)[0]
    nucleus = apply_top_p(logprobs, settings.top_p)
    steps = [
        ("model", "", mx.exp(logprobs)),
        ("top-p", f"{settings.top_p:g}", mx.softmax(nucleus)),
        ("top-k", f"{settings.top_k}", mx.softmax(apply_top_k(nucleus, settings.top_k))),
        (
            "temp.",
            f"{settings.temperature:g}",
            distribution(logprobs, settings.temperature, settings.top_k, settings.top_p),
        ),
    ]
    table = mx.stack([probabilities for _, _, probabilities in steps])  # (stages, V)
    stages = [Stage(name, setting, int((row > 0).sum().item())) for (name, setting, _), row in zip(steps, table, strict=True)]
    best = mx.argsort(-logprobs)[: min(count, stages[0].remaining)]
    shown = table[:, best]
    rows: list[list[float]] = shown.T.tolist()
    candidates = [Candidate(*pair) for pair in zip(pieces(engine.tokenizer, best.tolist()), rows, strict=True)]
    return NextTokens(stages, candidates, mx.maximum(table.sum(axis=1) - shown.sum(axis=1), 0).tolist())


def percent(probability: float) -> str:
    """A probability for people: `12.3 %`, `<0.1 %`, `–` for what cannot happen."""
    if probability <= 0:
        return "–"
    return "<0.1 %" if probability < 0.0005 else f"{probability:.1%}".replace("%", " %")

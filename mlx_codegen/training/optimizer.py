"""AdamW, Muon and the learning-rate schedule, as plain functions over trees of arrays.

Sources: Adam (Kingma and Ba, 2014, arXiv 1412.6980); decoupled weight decay (Loshchilov and Hutter, 2017,
arXiv 1711.05101); cosine schedule (Loshchilov and Hutter, 2016, arXiv 1608.03983); Muon (Jordan et al., 2024,
kellerjordan.github.io/posts/muon), its update scaled to AdamW's size (Liu et al., 2025, arXiv 2502.16982, equation 4).
"""

import math
from itertools import cycle
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map, tree_map_with_path, tree_reduce

from mlx_codegen.config import PhaseConfig

Tree = Any
"""Nested dictionaries and lists with arrays as leaves, as `model.parameters()` returns."""


NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration x ← ax + b(xxᵀ)x + c(xxᵀ)²x: from anywhere in (0, 1], singular values come near 1 at once."""
MUON_SCALE = 0.2
"""AdamW's updates have about this root mean square; with it Muon takes the same learning rate."""


def init_state(parameters: Tree, settings: PhaseConfig) -> dict[str, Tree]:
    """Optimizer state for parameters: moments zero, no updates done. Muon's matrices have no second moment."""

    def second_moment(name: str, theta: mx.array) -> mx.array:
        return mx.zeros(()) if uses_muon(name, theta, settings) else mx.zeros_like(theta)

    return {
        "first_moment": tree_map(mx.zeros_like, parameters),
        "second_moment": tree_map_with_path(second_moment, parameters),
        "updates": mx.array(0, mx.int32),
    }


def uses_muon(name: str, theta: mx.array, settings: PhaseConfig) -> bool:
    """True for the matrices inside the blocks. Embeddings are tables and not maps: orthogonal updates do not suit them."""
    return settings.optimizer == "muon" and theta.ndim == 2 and name.startswith("blocks.")


def update(
    parameters: Tree,
    gradients: Tree,
    state: dict[str, Tree],
    learning_rate: mx.array,
    settings: PhaseConfig,
    streams: list[mx.Stream] | None = None,
) -> tuple[Tree, dict[str, Tree]]:
    """One update. Returns new parameters and new state.

    AdamW with t updates done: m ← β₁m + (1-β₁)g,  v ← β₂v + (1-β₂)g²,
    θ ← θ - lr (m/(1-β₁ᵗ) / (√(v/(1-β₂ᵗ)) + ε) + λθ), the decay λ for matrices only.

    Muon, for the matrices that `uses_muon` names: m ← μm + (1-μ)g,
    θ ← θ - lr (0.2 √max(rows, columns) · orthogonal((1-μ)g + μm) + λθ).

    `streams` share Muon's matrix products out among the cores of a CPU.
    """
    beta1, beta2, momentum = settings.beta1, settings.beta2, settings.muon_momentum
    updates = state["updates"] + 1
    first_correction = 1 - beta1**updates
    second_correction = 1 - beta2**updates
    stream_of_next = cycle(streams or [None])

    def first_moment(name: str, m: mx.array, g: mx.array) -> mx.array:
        beta = momentum if uses_muon(name, g, settings) else beta1
        return beta * m + (1 - beta) * g

    def second_moment(name: str, v: mx.array, g: mx.array) -> mx.array:
        return v if uses_muon(name, g, settings) else beta2 * v + (1 - beta2) * g * g

    def new_value(name: str, theta: mx.array, g: mx.array, m: mx.array, v: mx.array) -> mx.array:
        if uses_muon(name, theta, settings):
            direction = (1 - momentum) * g + momentum * m  # Nesterov: look ahead by one gradient
            step = muon_step(direction, 3 if "qkv_proj" in name else 1, next(stream_of_next))
        else:
            step = (m / first_correction) / (mx.sqrt(v / second_correction) + settings.epsilon)
        # Vectors (norms and biases) keep their size: pulling them to zero only shrinks the signal.
        decay = settings.weight_decay if theta.ndim >= 2 else 0.0
        return theta - learning_rate * (step + decay * theta)

    first = tree_map_with_path(first_moment, state["first_moment"], gradients)
    second = tree_map_with_path(second_moment, state["second_moment"], gradients)
    parameters = tree_map_with_path(new_value, parameters, gradients, first, second)
    return parameters, {"first_moment": first, "second_moment": second, "updates": updates}


def muon_step(direction: mx.array, parts: int, stream: mx.Stream | None = None) -> mx.array:
    """An orthogonal matrix near `direction` `(rows, columns)`, scaled by 0.2 √max(rows, columns).

    A matrix that holds several maps on top of each other (queries, keys, values) is taken apart into `parts`.
    """
    with mx.stream(stream or mx.default_stream(mx.default_device())):
        maps = direction.reshape(parts, -1, direction.shape[-1])
        scale = MUON_SCALE * math.sqrt(max(maps.shape[-2:]))
        return (scale * orthogonal(maps)).reshape(direction.shape)


def orthogonal(x: mx.array) -> mx.array:
    """The orthogonal matrices nearest to `x` `(..., rows, columns)`, roughly: singular values end between 0.7 and 1.2.

    Newton-Schulz iteration: only matrix products, which every device does well.
    """
    tall = x.shape[-2] > x.shape[-1]
    x = x.swapaxes(-1, -2) if tall else x
    x = x / (mx.sqrt(mx.sum(x * x, axis=(-2, -1), keepdims=True)) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.swapaxes(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.swapaxes(-1, -2) if tall else x


def global_norm(gradients: Tree) -> mx.array:
    """√(sum of squares over all gradients), a scalar."""
    return mx.sqrt(tree_reduce(lambda total, g: total + mx.sum(mx.square(g)), gradients, mx.array(0.0)))


def clip_to_norm(gradients: Tree, norm: mx.array, max_norm: float) -> Tree:
    """Gradients scaled so that their global norm is at most `max_norm`; their direction stays."""
    scale = mx.minimum(1.0, max_norm / (norm + 1e-6))
    return tree_map(lambda g: g * scale, gradients)


def learning_rate_at(step: int, total_steps: int, settings: PhaseConfig) -> float:
    """Learning rate of update `step` (from 0): linear warm-up, then a decay along a cosine or a line, or none, or a late one.

    `wsd` (warm-up, stable, decay; Hu et al., 2024, arXiv 2404.06395) falls along a line in the last `decay_share` of the steps.
    """
    warmup = min(settings.warmup_steps, total_steps // 10)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - warmup) / max(1, total_steps - 1 - warmup)
    remaining = 1 - min(1.0, progress)
    if settings.schedule == "wsd":
        remaining = min(1.0, remaining / settings.decay_share)
    elif settings.schedule == "cosine":
        remaining = 0.5 * (1 - math.cos(math.pi * remaining))
    floor = settings.min_learning_rate_ratio
    return settings.learning_rate * (floor + (1 - floor) * remaining)

"""AdamW and the learning-rate schedule, as plain functions over trees of arrays.

Sources: Adam (Kingma and Ba, 2014, arXiv 1412.6980); decoupled weight decay (Loshchilov and Hutter, 2017,
arXiv 1711.05101); cosine schedule (Loshchilov and Hutter, 2016, arXiv 1608.03983).
"""

import math
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map, tree_reduce

from mlx_codegen.config import PhaseConfig

Tree = Any
"""Nested dictionaries and lists with arrays as leaves, as `model.parameters()` returns."""


def init_adamw(parameters: Tree) -> dict[str, Tree]:
    """Optimizer state for parameters: both moments zero, no updates done."""
    return {
        "first_moment": tree_map(mx.zeros_like, parameters),
        "second_moment": tree_map(mx.zeros_like, parameters),
        "updates": mx.array(0, mx.int32),
    }


def adamw(
    parameters: Tree, gradients: Tree, state: dict[str, Tree], learning_rate: mx.array, settings: PhaseConfig
) -> tuple[Tree, dict[str, Tree]]:
    """One update. Returns new parameters and new state.

    With t updates done: m ← β₁m + (1-β₁)g,  v ← β₂v + (1-β₂)g²,
    θ ← θ - lr (m/(1-β₁ᵗ) / (√(v/(1-β₂ᵗ)) + ε) + λθ), the decay λ for matrices only.
    """
    beta1, beta2 = settings.beta1, settings.beta2
    updates = state["updates"] + 1
    first = tree_map(lambda m, g: beta1 * m + (1 - beta1) * g, state["first_moment"], gradients)
    second = tree_map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state["second_moment"], gradients)
    first_correction = 1 - beta1**updates
    second_correction = 1 - beta2**updates

    def update(theta: mx.array, m: mx.array, v: mx.array) -> mx.array:
        step = (m / first_correction) / (mx.sqrt(v / second_correction) + settings.epsilon)
        # Vectors (norms and biases) keep their size: pulling them to zero only shrinks the signal.
        decay = settings.weight_decay if theta.ndim >= 2 else 0.0
        return theta - learning_rate * (step + decay * theta)

    parameters = tree_map(update, parameters, first, second)
    return parameters, {"first_moment": first, "second_moment": second, "updates": updates}


def global_norm(gradients: Tree) -> mx.array:
    """√(sum of squares over all gradients), a scalar."""
    return mx.sqrt(tree_reduce(lambda total, g: total + mx.sum(mx.square(g)), gradients, mx.array(0.0)))


def clip_to_norm(gradients: Tree, norm: mx.array, max_norm: float) -> Tree:
    """Gradients scaled so that their global norm is at most `max_norm`; their direction stays."""
    scale = mx.minimum(1.0, max_norm / (norm + 1e-6))
    return tree_map(lambda g: g * scale, gradients)


def learning_rate_at(step: int, total_steps: int, settings: PhaseConfig) -> float:
    """Learning rate of update `step` (from 0): linear warm-up, then cosine, linear or no decay."""
    warmup = min(settings.warmup_steps, total_steps // 10)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - warmup) / max(1, total_steps - 1 - warmup)
    remaining = 1 - min(1.0, progress)
    if settings.schedule == "cosine":
        remaining = 0.5 * (1 - math.cos(math.pi * remaining))
    floor = settings.min_learning_rate_ratio
    return settings.learning_rate * (floor + (1 - floor) * remaining)

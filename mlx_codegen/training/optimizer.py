"""AdamW, Muon and the learning-rate schedule, as plain functions over trees of arrays.

Sources: Adam (Kingma and Ba, 2014, arXiv 1412.6980); decoupled weight decay (Loshchilov and Hutter, 2017,
arXiv 1711.05101); cosine schedule (Loshchilov and Hutter, 2016, arXiv 1608.03983); Muon (Jordan et al., 2024,
kellerjordan.github.io/posts/muon), its update scaled to AdamW's size (Liu et al., 2025, arXiv 2502.16982, equation 4).
"""

import math
from itertools import cycle
from operator import itemgetter
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map, tree_map_with_path, tree_reduce

from mlx_codegen.config import PhaseConfig

Tree = Any
"""Nested dictionaries and lists with arrays as leaves, as `model.parameters()` returns."""


NEWTON_SCHULZ_STEPS = 4
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
    *,
    gradient_scale: mx.array | float = 1.0,
    apply: mx.array | bool = True,
) -> tuple[Tree, dict[str, Tree]]:
    """One update. Returns new parameters and new state; with `apply` false, the old ones.

    AdamW with t updates done: m ← β₁m + (1-β₁)g,  v ← β₂v + (1-β₂)g²,
    θ ← θ - lr (m/(1-β₁ᵗ) / (√(v/(1-β₂ᵗ)) + ε) + λθ), the decay λ for matrices only.

    Muon, for the matrices that `uses_muon` names: m ← μm + (1-μ)g,
    θ ← θ - lr (0.2 √max(rows, columns) · orthogonal((1-μ)g + μm) + λθ).

    g is the gradient times `gradient_scale`, a scalar. `streams` share the arrays out among the cores of a CPU.
    """
    updates = state["updates"] + mx.where(apply, 1, 0)
    applied = mx.maximum(updates, 1)
    corrections = 1 - settings.beta1**applied, 1 - settings.beta2**applied
    scalars = [mx.array(x) for x in (learning_rate, gradient_scale, *corrections)] + [mx.array(apply)]
    stream_of_next = cycle(streams or [mx.default_stream(mx.default_device())])
    first, second = state["first_moment"], state["second_moment"]

    def new_values(name: str, theta: mx.array, g: mx.array, m: mx.array, v: mx.array) -> tuple[mx.array, ...]:
        # Vectors (norms and biases) keep their size: pulling them to zero only shrinks the signal.
        decay = settings.weight_decay if theta.ndim >= 2 else 0.0
        with mx.stream(next(stream_of_next)):
            if uses_muon(name, theta, settings):
                theta, m = _muon(theta, g, m, scalars, settings.muon_momentum, decay, 3 if "qkv_proj" in name else 1)
                return theta, m, v
            return _adamw(theta, g, m, v, scalars, (settings.beta1, settings.beta2, settings.epsilon, decay))

    # A tree whose leaves are (θ, m, v) is taken apart into three trees
    combined = tree_map_with_path(new_values, parameters, gradients, first, second)
    parameters, first, second = (tree_map(itemgetter(i), combined, is_leaf=_is_triple) for i in range(3))
    return parameters, {"first_moment": first, "second_moment": second, "updates": updates}


def _is_triple(node: object) -> bool:
    return isinstance(node, tuple)


# On a CPU an update is bound by memory: one fused pass over the arrays instead of twenty.
@mx.compile
def _adamw(
    theta: mx.array, g: mx.array, m: mx.array, v: mx.array, scalars: list[mx.array], constants: tuple[float, ...]
) -> tuple[mx.array, mx.array, mx.array]:
    """New θ, m and v of one array."""
    learning_rate, gradient_scale, first_correction, second_correction, apply = scalars
    beta1, beta2, epsilon, decay = constants
    g = g * gradient_scale
    new_m = beta1 * m + (1 - beta1) * g
    new_v = beta2 * v + (1 - beta2) * g * g
    step = (new_m / first_correction) / (mx.sqrt(new_v / second_correction) + epsilon)
    new_theta = theta - learning_rate * (step + decay * theta)
    # inf times zero would be NaN: a step that must not happen is taken back value by value
    return mx.where(apply, new_theta, theta), mx.where(apply, new_m, m), mx.where(apply, new_v, v)


def _muon(
    theta: mx.array, g: mx.array, m: mx.array, scalars: list[mx.array], momentum: float, decay: float, parts: int
) -> tuple[mx.array, mx.array]:
    """New θ and m of one matrix."""
    learning_rate, gradient_scale, _, _, apply = scalars
    new_m, direction = _muon_direction(g, m, gradient_scale, momentum)
    step = muon_step(direction, parts)
    new_theta = theta - learning_rate * (step + decay * theta)
    return mx.where(apply, new_theta, theta), mx.where(apply, new_m, m)


@mx.compile
def _muon_direction(g: mx.array, m: mx.array, gradient_scale: mx.array, momentum: float) -> tuple[mx.array, mx.array]:
    """New m, and Nesterov's look ahead by one gradient."""
    g = g * gradient_scale
    new_m = momentum * m + (1 - momentum) * g
    return new_m, (1 - momentum) * g + momentum * new_m


def muon_step(direction: mx.array, parts: int) -> mx.array:
    """An orthogonal matrix near `direction` `(rows, columns)`, scaled by 0.2 √max(rows, columns).

    A matrix that holds several maps on top of each other (queries, keys, values) is taken apart into `parts`.
    """
    maps = direction.reshape(parts, -1, direction.shape[-1])
    scale = MUON_SCALE * math.sqrt(max(maps.shape[-2:]))
    return (scale * orthogonal(maps)).reshape(direction.shape)


def orthogonal(x: mx.array) -> mx.array:
    """The orthogonal matrices nearest to `x` `(..., rows, columns)`, roughly: singular values end between 0.7 and 1.2.

    Newton-Schulz iteration: only matrix products, which every device does well. Everything that happens to `x` is a product
    with a polynomial of G = x xᵀ, and where `x` is wide G is small: the products are collected there and meet `x` at the end.
    """
    tall = x.shape[-2] > x.shape[-1]
    x = x.swapaxes(-1, -2) if tall else x
    gram = x @ x.swapaxes(-1, -2)
    # ‖G‖_F^½ is a bound of the largest singular value that is much nearer to it than ‖x‖_F: one step of the iteration less.
    size = mx.sqrt(mx.sqrt(mx.sum(gram * gram, axis=(-2, -1), keepdims=True))) + 1e-12
    x, gram = x / size, gram / (size * size)
    x = _orthogonal_wide(x, gram) if x.shape[-1] >= 2 * x.shape[-2] else _orthogonal_square(x, gram)
    return x.swapaxes(-1, -2) if tall else x


def _polynomial(gram: mx.array) -> mx.array:
    """bG + cG²; a is left to the caller."""
    _, b, c = NEWTON_SCHULZ
    return b * gram + c * gram @ gram


def _orthogonal_square(x: mx.array, gram: mx.array) -> mx.array:
    a = NEWTON_SCHULZ[0]
    for step in range(NEWTON_SCHULZ_STEPS):
        if step > 0:
            gram = x @ x.swapaxes(-1, -2)
        x = a * x + _polynomial(gram) @ x
    return x


def _orthogonal_wide(x: mx.array, gram: mx.array) -> mx.array:
    a = NEWTON_SCHULZ[0] * mx.eye(x.shape[-2])
    product = polynomial = a + _polynomial(gram)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = a + _polynomial(gram)
        product = polynomial @ product
    return product @ x


def global_norm(gradients: Tree) -> mx.array:
    """√(sum of squares over all gradients), a scalar."""
    return mx.sqrt(tree_reduce(lambda total, g: total + mx.sum(mx.square(g)), gradients, mx.array(0.0)))


def clip_factor(norm: mx.array, max_norm: float) -> mx.array:
    """What gradients of this global norm are multiplied by, so that it is at most `max_norm`; their direction stays."""
    return mx.minimum(1.0, max_norm / (norm + 1e-6))


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

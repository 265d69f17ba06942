"""Exponentials, attention and loss made for CPUs give what MLX's own give, forwards and backwards."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_codegen.exponential import QUERY_BLOCK, causal_attention, cross_entropy, exp


def test_exp_is_exact_to_float32_over_its_range() -> None:
    """Relative error within what rounding x itself costs; no step where the whole part changes."""
    x = np.linspace(-86, 86, 400_001).astype(np.float32)
    error = np.abs(np.array(exp(mx.array(x))) / np.exp(x.astype(np.float64)) - 1)
    assert error.max() < 8e-6
    assert error[np.abs(x) < 10].max() < 2e-6


def test_exp_of_very_negative_numbers_is_next_to_nothing() -> None:
    assert (np.array(exp(mx.array([-1e4, -mx.inf, -200.0]))) < 2e-38).all()


@pytest.mark.parametrize("length", [1, 5, QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 37])
def test_attention_and_its_gradients_equal_mlx(length: int) -> None:
    """One block, exactly one block, and several with a short last one."""
    mx.random.seed(length)
    inputs = [2 * mx.random.normal((2, 3, length, 16)) for _ in range(3)]
    cotangent = mx.random.normal((2, 3, length, 16))

    def reference(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask="causal")

    def ours(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return causal_attention(q, k, v, 0.25)

    assert mx.allclose(reference(*inputs), ours(*inputs), rtol=1e-5, atol=1e-5)
    expected, found = (mx.vjp(f, inputs, [cotangent])[1] for f in (reference, ours))
    for a, b in zip(expected, found, strict=True):
        assert mx.allclose(a, b, rtol=1e-4, atol=2e-5)


def test_later_tokens_weigh_exactly_nothing() -> None:
    """Not 1e-38: a later value, however large, must not change an earlier token's output by one bit."""
    mx.random.seed(0)
    q, k, v = (mx.random.normal((1, 1, 200, 8)) for _ in range(3))
    changed = mx.concatenate([v[:, :, :150], v[:, :, 150:] * 1e30], axis=2)
    assert mx.array_equal(causal_attention(q, k, v, 0.3)[:, :, :150], causal_attention(q, k, changed, 0.3)[:, :, :150])


def test_cross_entropy_and_its_gradient_equal_mlx() -> None:
    mx.random.seed(1)
    logits, targets = 5 * mx.random.normal((3, 7, 300)), mx.random.randint(0, 300, (3, 7))
    weights = mx.random.uniform(shape=(3, 7))
    expected = nn.losses.cross_entropy(logits, targets)
    assert mx.allclose(cross_entropy(logits, targets), expected, rtol=1e-5, atol=1e-5)
    gradient = mx.grad(lambda x: (cross_entropy(x, targets) * weights).sum())(logits)
    reference = mx.grad(lambda x: (nn.losses.cross_entropy(x, targets) * weights).sum())(logits)
    assert mx.allclose(gradient, reference, rtol=1e-4, atol=1e-6)


def test_loss_of_certain_and_hopeless_logits_is_finite() -> None:
    """A logit 1e4 above the rest: the loss is 0 for it, 1e4 for the others, and never NaN."""
    logits = mx.array([[[1e4, 0.0, 0.0]]])
    assert cross_entropy(logits, mx.array([[0]])).item() == pytest.approx(0, abs=1e-3)
    assert cross_entropy(logits, mx.array([[1]])).item() == pytest.approx(1e4, rel=1e-5)

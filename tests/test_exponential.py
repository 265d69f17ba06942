"""Exponentials, attention and loss made for CPUs give what MLX's own give, forwards and backwards."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_codegen import cpu_loss
from mlx_codegen.cpu_attention import QUERY_BLOCK, causal_attention
from mlx_codegen.cpu_loss import token_cross_entropy, total_cross_entropy
from mlx_codegen.exponential import exp


def test_exp_is_exact_to_float32_over_its_range() -> None:
    """Relative error within what rounding x itself costs; no step where the whole part changes."""
    x = np.linspace(-86, 86, 400_001).astype(np.float32)
    error = np.abs(np.array(exp(mx.array(x))) / np.exp(x.astype(np.float64)) - 1)
    assert error.max() < 8e-6
    assert error[np.abs(x) < 10].max() < 2e-6


def test_exp_of_very_negative_numbers_is_nothing_and_nan_stays() -> None:
    assert (np.array(exp(mx.array([-1e4, -mx.inf, -200.0]))) == 0).all()
    assert mx.isnan(exp(mx.array(mx.nan))).item()


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


@pytest.mark.parametrize("in_cache", [16 * 300, 2**20])
def test_loss_and_its_gradients_equal_mlx(in_cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of rows and several, the last one short; some target comes twice."""
    monkeypatch.setattr(cpu_loss, "SCORES_IN_CACHE", in_cache)
    mx.random.seed(1)
    hidden, table, targets = 3 * mx.random.normal((53, 8)), mx.random.normal((300, 8)), mx.random.randint(0, 20, (53,))
    expected = nn.losses.cross_entropy(hidden @ table.T, targets)
    assert mx.allclose(token_cross_entropy(hidden, table, targets), expected, rtol=1e-5, atol=1e-5)

    def reference(hidden: mx.array, table: mx.array) -> mx.array:
        return 0.3 * nn.losses.cross_entropy(hidden @ table.T, targets).sum()

    def ours(hidden: mx.array, table: mx.array) -> mx.array:
        return 0.3 * total_cross_entropy(hidden, table, targets)

    for found, wanted in zip(mx.grad(ours, (0, 1))(hidden, table), mx.grad(reference, (0, 1))(hidden, table), strict=True):
        assert mx.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_loss_of_certain_and_hopeless_scores_is_finite() -> None:
    """A score 1e4 above the rest: the loss is 0 for it, 1e4 for the others, and never NaN."""
    hidden, table = mx.array([[1e4, 0.0, 0.0]]), mx.eye(3)
    assert token_cross_entropy(hidden, table, mx.array([0])).item() == pytest.approx(0, abs=1e-3)
    assert token_cross_entropy(hidden, table, mx.array([1])).item() == pytest.approx(1e4, rel=1e-5)
    assert mx.isfinite(mx.grad(lambda h: total_cross_entropy(h, table, mx.array([1])))(hidden)).all().item()

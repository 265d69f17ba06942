"""One training step: it learns, and neither accumulation, streams, compiling nor half precision changes what it learns."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny_run import phase_settings

from mlx_codegen.config import ModelConfig
from mlx_codegen.model import Transformer
from mlx_codegen.training import step as step_module
from mlx_codegen.training.step import FIRST_LOSS_SCALE, TrainStep, make_evaluation, split_rows, token_losses


def make_step(
    precision: str = "float32",
    streams: int = 1,
    compiled: bool = False,
    dropout: float = 0.0,
    family: str = "gpt2",
    gradient_checkpointing: bool = False,
    **settings: Any,
) -> TrainStep:
    mx.random.seed(5)
    config = ModelConfig(
        family=family,  # type: ignore[arg-type]
        n_layers=1, d_model=16, n_heads=2, vocab_size=40, context_length=16, dropout=dropout,
    )  # fmt: skip
    many = [mx.default_stream(mx.default_device())] if streams == 1 else [mx.new_stream(mx.cpu) for _ in range(streams)]
    model = Transformer(config, gradient_checkpointing)
    # With the usual epsilon Adam's first updates are almost signs: rounding in a tiny gradient would move a weight.
    settings = {"epsilon": 1e-4, **settings}
    return TrainStep(model, phase_settings(**settings), precision, many, compiled=compiled)


def batch(rows: int = 4, seed: int = 0) -> mx.array:
    return mx.random.randint(0, 40, (rows, 17), key=mx.random.key(seed))


def take(step: TrainStep, parts: list[mx.array], rate: float = 1e-2) -> tuple[float, float, bool]:
    loss, norm, finite = step(parts, rate)
    mx.eval(loss, norm, finite, *step.arrays())
    return loss.item(), norm.item(), bool(finite.item())


def weights(step: TrainStep) -> dict[str, mx.array]:
    """A copy: a step replaces arrays, and the test compares before with after."""
    return {name: mx.array(value) for name, value in tree_flatten(step.model.parameters())}


def largest_difference(a: dict[str, mx.array], b: dict[str, mx.array]) -> float:
    assert a.keys() == b.keys()
    return max(mx.max(mx.abs(a[name] - b[name])).item() for name in a)


def test_loss_is_the_cross_entropy_of_the_next_token() -> None:
    """By hand: minus the log of the softmax probability of the token one place to the right."""
    model = make_step().model
    tokens = batch(2)
    logits = np.array(model(tokens[:, :-1])).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(probabilities, np.array(tokens)[:, 1:, None], -1))[..., 0]
    assert np.allclose(np.array(token_losses(model, tokens)), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_a_tiny_model_overfits_one_batch(family: str) -> None:
    """If anything between tokens and update were wrong, random tokens could not be learnt by heart."""
    step, tokens = make_step(family=family), batch()
    losses = [take(step, [tokens], rate=2e-2)[0] for _ in range(120)]
    assert losses[0] == pytest.approx(np.log(40), rel=0.05)
    assert losses[-1] < 0.1


@pytest.mark.parametrize("compiled", [False, True])
def test_two_parts_equal_one_batch_of_both(compiled: bool) -> None:
    """Gradient accumulation is an average over tokens: same loss, same norm, same weights."""
    whole, parts = make_step(), make_step(compiled=compiled)
    first, second = batch(seed=1), batch(seed=2)
    for _ in range(3):
        a = take(whole, [mx.concatenate([first, second])])
        b = take(parts, [first, second])
        assert a == pytest.approx(b, rel=1e-4)
    assert largest_difference(weights(whole), weights(parts)) < 1e-5


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_several_streams_equal_one(rows: int) -> None:
    """A batch cut over the cores, also unevenly or with fewer rows than cores, gives the same update."""
    one, several = make_step(), make_step(streams=4)
    for number in range(3):
        assert take(one, [batch(rows, number)]) == pytest.approx(take(several, [batch(rows, number)]), rel=1e-4)
    assert largest_difference(weights(one), weights(several)) < 1e-5


def test_several_streams_are_repeatable_bit_for_bit() -> None:
    """Threads may finish in any order; sums may not depend on it, or a resumed run would drift."""

    def train() -> tuple[list[tuple[float, float, bool]], dict[str, mx.array]]:
        step = make_step(streams=3, dropout=0.1)
        return [take(step, [batch(5, number), batch(5, 99)]) for number in range(8)], weights(step)

    (first_results, first_weights), (second_results, second_weights) = train(), train()
    assert first_results == second_results
    assert all(mx.array_equal(first_weights[name], second_weights[name]).item() for name in first_weights)


def test_splitting_rows_loses_none() -> None:
    """At most so many parts, none empty, in order."""
    for rows in range(1, 9):
        tokens = mx.arange(rows * 2).reshape(rows, 2)
        for parts in range(1, 6):
            pieces = split_rows(tokens, parts)
            assert len(pieces) == min(parts, rows)
            assert all(piece.shape[0] > 0 for piece in pieces)
            assert mx.array_equal(mx.concatenate(pieces), tokens).item()


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_compiled_equals_uncompiled(gradient_checkpointing: bool) -> None:
    """Weights, moments and random state go through the compiled graph and come out: dropout masks differ from step
    to step and are the same in both."""
    kinds: dict[str, Any] = {"dropout": 0.2, "gradient_checkpointing": gradient_checkpointing}
    plain, compiled = make_step(**kinds), make_step(compiled=True, **kinds)
    results: list[list[float]] = []
    for step in (plain, compiled):
        mx.random.seed(1)
        results.append([take(step, [batch()], rate=1e-3)[0] for _ in range(4)])
    assert results[0] == pytest.approx(results[1], rel=1e-4)
    assert len(set(results[1])) == 4
    assert largest_difference(weights(plain), weights(compiled)) < 1e-5


def test_compiled_step_works_without_a_compiler(tmp_path: Path) -> None:
    """Where MLX finds no g++ it computes the same without fusing: nobody has to install one to train."""
    code = (
        "import mlx_codegen, sys, mlx.core as mx; mx.set_default_device(mx.cpu); sys.path.insert(0, sys.argv[1])\n"
        "from test_step import *\n"
        "step = make_step(compiled=True)\n"
        "print([take(step, [batch()])[0] for _ in range(3)])"
    )
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PATH": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(root / "tests")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    step = make_step()
    assert eval(done.stdout) == pytest.approx([take(step, [batch()])[0] for _ in range(3)], rel=1e-4)


def test_a_step_that_is_not_finite_changes_nothing_and_says_so() -> None:
    """One bad batch must cost one step: weights, both moments and the update count stay as they were, bit for bit."""
    step = make_step()
    take(step, [batch()])
    embedding = step.model.token_embedding.weight
    good_row = mx.array(embedding[7])
    embedding[7] = mx.inf  # only a batch with token 7 meets it
    mx.eval(step.model.parameters())
    before = weights(step)
    state = {name: mx.array(value) for name, value in tree_flatten(step.optimizer_state)}
    loss, _, finite = take(step, [batch()])
    assert not finite
    assert not np.isfinite(loss)
    assert all(mx.array_equal(value, before[name]).item() for name, value in weights(step).items())
    assert all(mx.array_equal(value, state[name]).item() for name, value in tree_flatten(step.optimizer_state))
    step.model.token_embedding.weight[7] = good_row
    assert take(step, [batch()])[2], "and the next good step works"
    assert all(mx.all(mx.isfinite(value)).item() for value in weights(step).values())


def test_clipping_is_inside_the_step_and_the_norm_is_from_before() -> None:
    """With a tiny limit the update does not grow with the gradient; the reported norm is the gradient's own."""
    free, clipped = make_step(max_gradient_norm=1e6, weight_decay=0.0), make_step(max_gradient_norm=1e-9, weight_decay=0.0)
    before = weights(free)
    assert take(free, [batch()])[1] == pytest.approx(take(clipped, [batch()])[1])
    assert largest_difference(weights(free), before) > 5e-3
    assert largest_difference(weights(clipped), before) < 2e-3, "far below Adam's epsilon almost no update is left"


def test_bfloat16_trains_with_float32_master_weights() -> None:
    """The compute type never reaches the weights and moments that small updates must not vanish in."""
    step, tokens = make_step("bfloat16"), batch()
    losses = [take(step, [tokens], rate=2e-2)[0] for _ in range(80)]
    assert losses[-1] < 0.6
    assert {value.dtype for value in weights(step).values()} == {mx.float32}
    assert step.loss_scale["scale"].item() == 1.0


def test_float16_trains_under_its_loss_scale() -> None:
    """The scale is in the gradients only: the reported loss and norm are the true ones."""
    half, full, tokens = make_step("float16"), make_step(), batch()
    assert take(half, [tokens])[:2] == pytest.approx(take(full, [tokens])[:2], rel=2e-2)
    losses = [take(half, [tokens], rate=2e-2)[0] for _ in range(80)]
    assert losses[-1] < 0.6
    assert {value.dtype for value in weights(half).values()} == {mx.float32}


def test_float16_scale_halves_on_overflow_and_the_step_is_skipped() -> None:
    """A scale far too large overflows, comes down by halves, and training goes on by itself."""
    step, tokens = make_step("float16"), batch()
    assert step.loss_scale["scale"].item() == FIRST_LOSS_SCALE
    step.loss_scale.update(scale=mx.array(2.0**24))
    before, scale, skipped = weights(step), 2.0**24, 0
    while not take(step, [tokens])[2]:
        skipped += 1
        scale /= 2
        assert step.loss_scale["scale"].item() == scale
        assert largest_difference(weights(step), before) == 0
    assert 0 < skipped < 20
    assert step.loss_scale["scale"].item() == scale
    assert largest_difference(weights(step), before) > 0


def test_float16_scale_doubles_after_enough_good_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale finds its way up again; a bad step starts the count anew."""
    monkeypatch.setattr(step_module, "STEPS_TO_RAISE_SCALE", 3)
    step = make_step("float16")
    step.loss_scale.update(scale=mx.array(256.0))
    scales = []
    for _ in range(6):
        take(step, [batch()])
        scales.append(step.loss_scale["scale"].item())
    assert scales == [256, 256, 512, 512, 512, 1024]
    take(step, [batch()])
    step.loss_scale.update(scale=mx.array(2.0**24))
    assert not take(step, [batch()])[2]
    assert step.loss_scale["good_steps"].item() == 0


def test_state_can_be_put_into_another_step() -> None:
    """`state()` and the weights are all there is: a second step object goes on exactly where the first one stood."""
    first = make_step()
    for number in range(3):
        take(first, [batch(seed=number)])
    second = make_step()
    second.model.load_weights(list(weights(first).items()))
    second.restore(first.state())
    assert take(first, [batch(seed=9)]) == take(second, [batch(seed=9)])
    assert largest_difference(weights(first), weights(second)) == 0


def test_evaluation_is_weighted_by_tokens_and_counts_bytes() -> None:
    """Batches of different sizes weigh by their tokens; bits per byte divide by the text's bytes, not by tokens."""
    model = make_step(dropout=0.5).model
    byte_lengths = [number % 5 for number in range(40)]
    evaluate = make_evaluation(model, "float32", [mx.default_stream(mx.default_device())], byte_lengths)
    tokens = np.array(batch(5))
    loss, bits_per_byte, count = evaluate([tokens[:1], tokens[1:]])
    model.eval()
    losses = np.array(token_losses(model, mx.array(tokens)))
    assert count == 5 * 16
    assert loss == pytest.approx(losses.mean(), rel=1e-5), "dropout is off, and one batch of four weighs more than one of one"
    text_bytes = np.array(byte_lengths)[tokens[:, 1:]].sum()
    assert bits_per_byte == pytest.approx(losses.sum() / np.log(2) / text_bytes, rel=1e-5)


def test_evaluation_leaves_the_model_as_it_was() -> None:
    """Master weights are back in float32 and dropout is on again, also after a half-precision evaluation."""
    model = make_step(dropout=0.5).model
    before = {name: mx.array(value) for name, value in tree_flatten(model.parameters())}
    make_evaluation(model, "bfloat16", [mx.default_stream(mx.default_device())], [1] * 40)([np.array(batch())])
    after = dict(tree_flatten(model.parameters()))
    assert all(after[name].dtype == mx.float32 and mx.array_equal(after[name], before[name]).item() for name in before)
    assert model.training

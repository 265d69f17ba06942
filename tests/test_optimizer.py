"""AdamW, clipping and the schedule equal their references and figures worked out by hand."""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers
import pytest
from tiny_run import phase_settings

from mlx_codegen.training.optimizer import adamw, clip_to_norm, global_norm, init_adamw, learning_rate_at

Tree = dict[str, mx.array]


def random_tree(seed: int, scale: float = 1.0) -> Tree:
    keys = mx.random.split(mx.random.key(seed), 2)
    return {"matrix": scale * mx.random.normal((5, 3), key=keys[0]), "vector": scale * mx.random.normal((7,), key=keys[1])}


def run_ours(settings_changes: dict[str, float], rates: list[float]) -> Tree:
    settings = phase_settings(**settings_changes)
    parameters = random_tree(0)
    state = init_adamw(parameters)
    for number, rate in enumerate(rates):
        parameters, state = adamw(parameters, random_tree(10 + number, 0.1), state, mx.array(rate), settings)
    assert state["updates"].item() == len(rates)
    return parameters


def run_mlx(rates: list[float], weight_decay: float) -> Tree:
    parameters = random_tree(0)
    optimizer = mlx.optimizers.AdamW(1.0, betas=[0.8, 0.99], eps=1e-6, weight_decay=weight_decay, bias_correction=True)
    for number, rate in enumerate(rates):
        optimizer.learning_rate = rate
        parameters = optimizer.apply_gradients(random_tree(10 + number, 0.1), parameters)
    return parameters


def test_adamw_equals_mlx_for_matrices_and_does_not_decay_vectors() -> None:
    """Several steps at changing rates. Vectors follow the same formula with a decay of zero."""
    rates = [1e-2, 3e-2, 2e-2, 1e-3, 5e-2]
    ours = run_ours({"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6, "weight_decay": 0.3}, rates)
    assert mx.allclose(ours["matrix"], run_mlx(rates, 0.3)["matrix"], rtol=1e-5, atol=1e-6).item()
    assert mx.allclose(ours["vector"], run_mlx(rates, 0.0)["vector"], rtol=1e-5, atol=1e-6).item()
    assert not mx.allclose(ours["vector"], run_mlx(rates, 0.3)["vector"], rtol=1e-4).item(), "the test cannot tell"


def test_first_update_has_the_size_of_the_learning_rate() -> None:
    """With bias correction m/√v is ±1 at the first update, whatever the gradient's size."""
    start = random_tree(0)
    moved = run_ours({"weight_decay": 0.0}, [1e-2])
    assert mx.allclose(mx.abs(moved["matrix"] - start["matrix"]), mx.array(1e-2), rtol=1e-3).item()


def test_global_norm_is_over_all_arrays_together() -> None:
    """3, 4 and 12 in different arrays make 13."""
    assert global_norm({"a": mx.array([3.0, 0.0]), "b": [mx.array([[4.0]]), mx.array([12.0])]}).item() == pytest.approx(13.0)


def test_clipping_keeps_the_direction() -> None:
    """All arrays shrink by one factor, so that the norm is the limit; clipping element by element would turn the step."""
    gradients = random_tree(1, scale=10.0)
    clipped = clip_to_norm(gradients, global_norm(gradients), 1.0)
    assert global_norm(clipped).item() == pytest.approx(1.0, rel=1e-4)
    factors = [mx.array(clipped[name] / gradients[name]) for name in gradients]
    assert max(mx.max(f).item() for f in factors) == pytest.approx(min(mx.min(f).item() for f in factors), rel=1e-4)


def test_small_gradients_are_not_touched() -> None:
    """The limit is a limit, not a normalisation."""
    gradients = random_tree(1, scale=1e-3)
    clipped = clip_to_norm(gradients, global_norm(gradients), 1.0)
    assert all(mx.array_equal(clipped[name], gradients[name]).item() for name in gradients)


def rates(total: int, **changes: object) -> Callable[[int], float]:
    settings = phase_settings(**{"learning_rate": 0.8, "warmup_steps": 4, "min_learning_rate_ratio": 0.25, **changes})
    return lambda step: learning_rate_at(step, total, settings)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warmup_is_linear_and_never_zero(schedule: str) -> None:
    """Update 0 already learns: a rate of zero would be a wasted step."""
    rate = rates(100, schedule=schedule)
    assert [rate(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rate(4) == pytest.approx(0.8)


def test_cosine_by_hand() -> None:
    """Peak after the warm-up, the mean halfway, the given ratio at the last update."""
    rate = rates(105)  # 101 updates after the warm-up: 4 ... 104
    assert rate(54) == pytest.approx(0.8 * (0.25 + 0.75 * 0.5))
    assert rate(29) == pytest.approx(0.8 * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi / 4))))
    assert rate(104) == pytest.approx(0.8 * 0.25)


def test_linear_and_constant_by_hand() -> None:
    """Linear falls by equal steps to the ratio; constant stays."""
    rate = rates(105, schedule="linear")
    assert [rate(step) for step in (4, 29, 54, 79, 104)] == pytest.approx([0.8, 0.65, 0.5, 0.35, 0.2])
    assert [rates(105, schedule="constant")(step) for step in (4, 54, 104)] == [0.8, 0.8, 0.8]


def test_warmup_takes_at_most_a_tenth_of_the_phase() -> None:
    """The default of 100 updates must not be all of a short run."""
    rate = rates(50, warmup_steps=100)
    assert [rate(step) for step in range(5)] == pytest.approx([0.16, 0.32, 0.48, 0.64, 0.8])
    assert rate(6) < rate(5) == pytest.approx(0.8)
    assert rates(5, warmup_steps=100)(0) == pytest.approx(0.8), "too short for any warm-up"


def test_schedule_never_leaves_its_range() -> None:
    """Also for a phase of one update, and for one that goes on past its planned end."""
    for total in (1, 2, 9, 10, 11, 100):
        for schedule in ("cosine", "linear", "constant"):
            rate = rates(total, schedule=schedule)
            assert all(0 < rate(step) <= 0.8 for step in range(total + 5))
            assert schedule == "constant" or rate(total + 3) == pytest.approx(0.2)

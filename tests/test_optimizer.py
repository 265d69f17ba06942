"""AdamW, Muon, clipping and the schedule equal their references and figures worked out by hand."""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers
import pytest
from tiny_run import phase_settings

from mlx_codegen.training.optimizer import clip_factor, global_norm, init_state, learning_rate_at, orthogonal, update, uses_muon

Tree = dict[str, mx.array]


def random_tree(seed: int, scale: float = 1.0) -> Tree:
    keys = mx.random.split(mx.random.key(seed), 2)
    return {"matrix": scale * mx.random.normal((5, 3), key=keys[0]), "vector": scale * mx.random.normal((7,), key=keys[1])}


def run_ours(settings_changes: dict[str, float], rates: list[float]) -> Tree:
    settings = phase_settings(**settings_changes)
    parameters = random_tree(0)
    state = init_state(parameters, settings)
    for number, rate in enumerate(rates):
        parameters, state = update(parameters, random_tree(10 + number, 0.1), state, mx.array(rate), settings)
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


def test_orthogonal_brings_singular_values_near_one_and_keeps_directions() -> None:
    """Wide, tall and stacked matrices: same singular vectors, singular values between 0.6 and 1.3."""
    for shape in ((6, 16), (16, 6), (3, 8, 8)):
        x = mx.random.normal(shape, key=mx.random.key(1))
        u, _, vt = mx.linalg.svd(x, stream=mx.cpu)
        rank = min(shape[-2:])
        inner = u[..., :rank].swapaxes(-1, -2) @ orthogonal(x) @ vt[..., :rank, :].swapaxes(-1, -2)
        diagonal = mx.diagonal(inner, axis1=-2, axis2=-1)
        assert (diagonal > 0.6).all().item() and (diagonal < 1.3).all().item(), shape
        assert mx.abs(inner - diagonal[..., None] * mx.eye(rank)).max().item() < 1e-3, shape


def test_muon_is_for_matrices_of_blocks_only() -> None:
    """Embeddings, the output matrix, norms and biases stay with AdamW; with `optimizer: adamw` all do."""
    muon, matrix, vector = phase_settings(optimizer="muon"), mx.zeros((4, 4)), mx.zeros((4,))
    assert uses_muon("blocks.0.mlp.up_proj.weight", matrix, muon)
    assert not uses_muon("token_embedding.weight", matrix, muon)
    assert not uses_muon("output_proj.weight", matrix, muon)
    assert not uses_muon("blocks.0.mlp_norm.weight", vector, muon)
    assert not uses_muon("blocks.0.mlp.up_proj.weight", matrix, phase_settings())


def newton_schulz(x: mx.array) -> mx.array:
    """The published iteration, word by word, from a matrix of spectral norm 1 or less."""
    for _ in range(4):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


@pytest.mark.parametrize("name", ["out_proj", "qkv_proj"])
def test_muon_step_equals_its_formula(name: str) -> None:
    """Direction by the published iteration; size 0.2 √max(rows, columns); queries, keys and values are three maps."""
    settings = phase_settings(optimizer="muon", muon_momentum=0.9, weight_decay=0.1)
    keys = mx.random.split(mx.random.key(3), 2)
    theta, gradient = (mx.random.normal((12, 4), key=key) for key in keys)
    before, gradients = ({"blocks": [{name: {"weight": value}}]} for value in (theta, gradient))
    after, state = update(before, gradients, init_state(before, settings), mx.array(0.01), settings)
    direction = 0.1 * gradient + 0.9 * (0.1 * gradient)
    parts = direction.reshape(3, 4, 4) if name == "qkv_proj" else direction[None]
    singular = mx.concatenate([part / mx.sqrt(mx.linalg.norm(part @ part.T)) for part in parts])  # our start, theirs divides by 1
    expected = mx.concatenate([newton_schulz(part) for part in mx.split(singular, len(parts))])
    scale = 0.2 * (2.0 if name == "qkv_proj" else 12**0.5)
    moved = (theta - after["blocks"][0][name]["weight"]) / 0.01 - 0.1 * theta
    assert mx.allclose(moved, scale * expected, atol=2e-3).item()
    assert state["second_moment"]["blocks"][0][name]["weight"].size == 1, "Muon needs no second moment"


def test_wsd_stays_and_then_falls_along_a_line() -> None:
    """Warm-up, then the peak until the last share, then down to the ratio."""
    rate = rates(105, schedule="wsd", decay_share=0.5)
    assert [rate(step) for step in (4, 30, 54)] == pytest.approx([0.8, 0.8, 0.8])
    assert [rate(step) for step in (79, 104)] == pytest.approx([0.5, 0.2])


def test_global_norm_is_over_all_arrays_together() -> None:
    """3, 4 and 12 in different arrays make 13."""
    assert global_norm({"a": mx.array([3.0, 0.0]), "b": [mx.array([[4.0]]), mx.array([12.0])]}).item() == pytest.approx(13.0)


def test_clipping_keeps_the_direction() -> None:
    """One factor for all arrays, so that the norm is the limit; clipping element by element would turn the step."""
    gradients = random_tree(1, scale=10.0)
    factor = clip_factor(global_norm(gradients), 1.0)
    assert global_norm({name: g * factor for name, g in gradients.items()}).item() == pytest.approx(1.0, rel=1e-4)


def test_gradient_scale_scales_the_gradients() -> None:
    """An update takes loss scale and clipping along as one number."""
    settings, parameters, gradients = phase_settings(), random_tree(0), random_tree(10, 0.1)
    state = init_state(parameters, settings)
    halved = {name: g * 0.5 for name, g in gradients.items()}
    by_hand, _ = update(parameters, halved, state, mx.array(0.1), settings)
    scaled, _ = update(parameters, gradients, state, mx.array(0.1), settings, gradient_scale=0.5)
    assert all(mx.allclose(by_hand[name], scaled[name], rtol=1e-6).item() for name in by_hand)


def test_small_gradients_are_not_touched() -> None:
    """The limit is a limit, not a normalisation."""
    gradients = random_tree(1, scale=1e-3)
    assert clip_factor(global_norm(gradients), 1.0).item() == 1.0


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

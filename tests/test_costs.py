"""What `mlx-codegen sizes` promises: exact counts, arithmetic that one can check by hand, memory near the measured."""

import gc
import subprocess
import sys

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_codegen import backend
from mlx_codegen.config import Family, ModelConfig, PhaseConfig, SourceConfig, load_run_config, repository_folder
from mlx_codegen.costs import Costs, model_costs
from mlx_codegen.model import Transformer
from mlx_codegen.training.step import TrainStep

PHASE = PhaseConfig(sources=(SourceConfig(name="any", bundled="english"),), steps=1, learning_rate=1e-3)


def small(family: Family) -> ModelConfig:
    return ModelConfig(family=family, n_layers=3, d_model=64, n_heads=4, vocab_size=500, context_length=96)


# Per layer 12 C² (4 C² in attention, 8 C² in the MLP) and two norms of C; one norm at the end; V C for the table.
# gpt2 adds T C positions, gpt_neox a second table, and llama's gated MLP has 3 C d_ff with d_ff = 192.
BY_HAND = {
    "gpt2": 3 * (12 * 64**2 + 2 * 64) + 64 + 500 * 64 + 96 * 64,
    "gpt_neox": 3 * (12 * 64**2 + 2 * 64) + 64 + 2 * 500 * 64,
    "llama": 3 * (4 * 64**2 + 3 * 64 * 192 + 2 * 64) + 64 + 500 * 64,
}
TABLES = {"gpt2": 1, "gpt_neox": 2, "llama": 1}


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_parameter_counts_are_exact(family: Family) -> None:
    config = small(family)
    costs = model_costs(config, 1)
    assert costs.parameters == BY_HAND[family]
    assert costs.parameters == sum(value.size for _, value in tree_flatten(Transformer(config).parameters()))
    assert costs.parameters_outside_vocabulary == BY_HAND[family] - TABLES[family] * 500 * 64


def test_training_flops_of_tiny_are_those_worked_out_by_hand() -> None:
    """6 per matrix entry (6 layers of 12 · 384², an output table of 8,000 · 384) and 6 T C per layer of attention."""
    matrices = 6 * 12 * 384**2 + 8000 * 384
    attention = 6 * 6 * 512 * 384
    assert model_costs(load_run_config("tiny").model, 1).training_flops_per_token == 6 * matrices + attention == 89_210_880


def test_an_untied_table_costs_no_arithmetic_when_it_is_only_read() -> None:
    """gpt_neox has two tables of one size, but multiplies with one, as gpt2 does with its only one."""
    neox, gpt2 = (model_costs(small(family), 1).training_flops_per_token for family in ("gpt_neox", "gpt2"))
    assert neox == gpt2


def measured_peak_bytes(config: ModelConfig, batch_size: int, gradient_checkpointing: bool, streams: list[mx.Stream]) -> int:
    """Largest memory of two real training steps, without what this process held before."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    model = Transformer(config, gradient_checkpointing)
    step = TrainStep(model, PHASE, "float32", streams, compiled=False)
    mx.eval(step.arrays())
    mx.reset_peak_memory()
    for _ in range(2):
        tokens = mx.random.randint(0, config.vocab_size, (batch_size, config.context_length + 1))
        mx.eval(*step([tokens], 1e-3), *step.arrays())
    return int(mx.get_peak_memory()) - before


@pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="the formula is fitted to unfused kernels")
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_estimated_memory_is_within_35_percent_of_the_measured(family: Family, gradient_checkpointing: bool) -> None:
    config = ModelConfig(family=family, n_layers=4, d_model=128, n_heads=8, vocab_size=1000, context_length=256)
    streams = backend.compute_streams()[:2]
    measured = measured_peak_bytes(config, 4, gradient_checkpointing, streams)
    estimated = model_costs(config, 4, gradient_checkpointing, len(streams)).training_bytes
    assert 0.65 * measured < estimated < 1.35 * measured


def test_the_peak_counts_gradients_or_activations_whichever_is_larger() -> None:
    """Activations are freed while gradients come; adding both would tell people that a model does not fit when it does."""
    costs = Costs(1, 1, 1, weights_bytes=10, gradients_bytes=30, optimizer_bytes=20, activations_bytes=100)
    assert costs.training_bytes == 130
    assert Costs(1, 1, 1, 10, 30, 20, 5).training_bytes == 60


def test_every_stream_has_gradients_of_its_own_but_no_more_streams_than_sequences_work() -> None:
    config = small("gpt2")
    weights = model_costs(config, 4).weights_bytes
    assert model_costs(config, 4, streams=1).gradients_bytes == 2 * weights
    assert model_costs(config, 4, streams=3).gradients_bytes == 4 * weights
    assert model_costs(config, 4, streams=64).gradients_bytes == 5 * weights


def test_sizes_prints_every_shipped_config_with_its_exact_count() -> None:
    command = [sys.executable, "-m", "mlx_codegen", "sizes", "--batch-size", "2"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in printed.splitlines()]
    for file in repository_folder("configs").glob("*.yaml"):
        costs = model_costs(load_run_config(file).model, 2)
        exact = [f"{costs.parameters:,}", f"{costs.parameters_outside_vocabulary:,}"]
        assert any(row[:1] == [file.stem] and row[3:5] == exact for row in rows)

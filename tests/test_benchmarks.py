"""The benchmarks' arithmetic with known clocks, and one real run of each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import pytest

import mlx_codegen
from mlx_codegen.config import build_run_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import fingerprint  # noqa: E402
import random_model  # noqa: E402
import timing  # noqa: E402

TINY_MODEL = "model: {n_layers: 1, d_model: 16, n_heads: 2, vocab_size: %d, context_length: %d}\n"
TINY_PHASE = "phases: {code: {sources: [{name: b, bundled: bash}], steps: 1, learning_rate: 1.0e-3}}\n"


def run(*arguments: str, script: str = "train.py") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}, capture_output=True, text=True)


def test_windows_count_all_tokens_over_all_seconds_and_drop_the_rest() -> None:
    """200 tokens in 2 s, then 200 in 4 s; the last half second is no window."""
    steps = [(100, 1.0), (100, 1.0), (200, 4.0), (100, 0.5)]
    assert timing.tokens_per_second(steps, 2.0) == [100.0, 50.0]


def test_a_measurement_shorter_than_a_window_is_one_window() -> None:
    assert timing.tokens_per_second([(100, 0.5), (100, 0.5)], 2.0) == [200.0]
    assert timing.tokens_per_second([], 2.0) == []


def test_spread_is_median_and_extremes() -> None:
    assert timing.spread([5.0, 1.0, 2.0]) == timing.Spread(2.0, 1.0, 5.0)


def test_fingerprint_tells_hardware_apart_and_ignores_software() -> None:
    facts: dict[str, str | int] = {
        "chip": "Apple M3 Max",
        "device": "metal",
        "cpu_cores": 12,
        "memory_bytes": 36 * 2**30,
        "mlx": "1",
    }
    name = fingerprint.fingerprint(facts)
    assert name.startswith("apple-m3-max-12c-") and "/" not in name and " " not in name
    assert fingerprint.fingerprint({**facts, "mlx": "0.32"}) == name
    assert fingerprint.fingerprint({**facts, "memory_bytes": 48 * 2**30}) != name


def test_training_benchmark_measures_and_saves_what_it_shows(tmp_path: Path) -> None:
    """A real measurement of ours on the smallest model; the peer is left out, its compilation alone takes long."""
    config = tmp_path / "mini.yaml"
    config.write_text(TINY_MODEL % (64, 16) + TINY_PHASE)
    results = tmp_path / "results"
    result = run("--sizes", str(config), "--seconds", "0.1", "--rounds", "1", "--no-peer", "--results", str(results))
    assert result.returncode == 0, result.stderr
    (file,) = results.glob("train-*.json")
    values = json.loads(file.read_text())
    (size,) = values["sizes"]
    assert len(size["ours_rounds"]) == 1 and size["peer"] is None
    assert 0 < size["ours"]["min"] <= size["ours"]["median"] <= size["ours"]["max"]
    assert size["peak_flops"] > size["ours"]["max"] * size["training_flops_per_token"]
    assert {"chip", "cpu_cores", "memory_bytes", "os", "mlx", "blas"} <= set(values["machine"])
    assert f"{size['parameters']:,}" in result.stdout and file.name in result.stdout.replace("\n", "")


def test_rounds_of_two_sides_are_compared_pair_by_pair() -> None:
    """A machine at half its speed in the second round changes both sides of that pair, and no ratio."""
    measured = {timing.OURS: iter([[200.0, 300.0], [100.0]]), timing.PEER: iter([[50.0], [20.0]])}
    comparison = timing.Comparison()
    comparison.take_turns(2, True, lambda side: next(measured[side]), lambda line: None)
    assert comparison.ours == timing.Spread(200.0, 100.0, 300.0) and comparison.peer == timing.Spread(35.0, 20.0, 50.0)
    assert comparison.ratios == [5.0, 5.0] and comparison.ours_rounds == [250.0, 100.0]


def test_generation_benchmark_measures_and_saves_what_it_shows(tmp_path: Path) -> None:
    """A real measurement of ours, cold start included, with a model and a tokenizer made for it."""
    config = tmp_path / "mini.yaml"
    config.write_text(TINY_MODEL % (512, 256) + TINY_PHASE)
    results = tmp_path / "results"
    options = ["--sizes", str(config), "--seconds", "0.1", "--rounds", "1", "--batches", "2", "--no-peer"]
    result = run(*options, "--results", str(results), script="generate.py")
    assert result.returncode == 0, result.stderr
    (file,) = results.glob("generate-*.json")
    (size,) = json.loads(file.read_text())["sizes"]
    (batch,) = size["batches"]
    assert batch["batch"] == 2 and batch["peer"] is None and batch["ours"]["min"] > 0
    # One block of 12 C² weights, three norms, and the tied table of 512 rows; the table of positions is no part of it
    assert size["weight_bytes_per_token"] in (4 * (12 * 16**2 + 3 * 16 + 512 * 16), 2 * (12 * 16**2 + 3 * 16 + 512 * 16))
    assert batch["limit"] == pytest.approx(2 * size["bandwidth"] / size["weight_bytes_per_token"])
    assert batch["ours_peak_bytes"] > size["weight_bytes_per_token"]
    # The request is shown before the model adds to it
    assert 0 < size["cold"]["first_character"]["median"] <= size["cold"]["ours"]["median"]
    assert f"{size['parameters']:,}" in result.stdout and file.name in result.stdout.replace("\n", "")


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_both_sides_get_the_same_model_and_never_end_early(family: str, tmp_path: Path) -> None:
    """mlx-lm gives the scores that ours gives, and end-of-text is not among the best 50 for either."""
    config = build_run_config({
        "model": {"family": family, "n_layers": 1, "d_model": 32, "n_heads": 2, "vocab_size": 512, "context_length": 64},
        "phases": {"code": {"sources": [{"name": "b", "bundled": "bash"}], "steps": 1, "learning_rate": 1e-3}},
    })  # fmt: skip
    checkpoint, folder = random_model.write_random_model(config, tmp_path)
    engine = mlx_codegen.load(checkpoint)
    peer, _ = mlx_lm.utils.load_model(folder)
    tokens = mx.arange(40)[None]
    ours, theirs = engine.model(tokens), peer(tokens)
    assert mx.allclose(ours, theirs, atol=1e-4).item()
    end = ours[0, :, engine.tokenizer.end_of_text_id]
    assert (mx.topk(ours[0], 50, axis=-1).min(axis=-1) > end).all().item()


@pytest.mark.parametrize("script", ["train.py", "generate.py"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--sizes", "tinny"], "did you mean tiny"), (["--rounds", "0"], "above zero"), (["--seconds", "-1"], "above zero")],
)
def test_bad_options_are_one_line_and_status_2(script: str, arguments: list[str], message: str) -> None:
    result = run(*arguments, script=script)
    assert result.returncode == 2 and message in result.stderr
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1

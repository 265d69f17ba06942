"""The benchmark's arithmetic with known clocks, and one real run of the whole thing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import fingerprint  # noqa: E402
import timing  # noqa: E402


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "train.py"), *arguments]
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
    config.write_text(
        "model: {n_layers: 1, d_model: 16, n_heads: 2, vocab_size: 64, context_length: 16}\n"
        "phases: {code: {sources: [{name: b, bundled: bash}], steps: 1, learning_rate: 1.0e-3}}\n"
    )
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--sizes", "tinny"], "did you mean tiny"), (["--rounds", "0"], "above zero"), (["--seconds", "-1"], "above zero")],
)
def test_bad_options_are_one_line_and_status_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2 and message in result.stderr
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1

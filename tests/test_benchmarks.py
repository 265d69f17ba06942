"""The benchmarks' arithmetic with known clocks, and one real run of each."""

import io
import json
import os
import plistlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import pytest
from rich.console import Console

import mlx_codegen
from mlx_codegen.chips import CHIPS, core_count_in, find_chip
from mlx_codegen.config import build_run_config, load_run_config
from mlx_codegen.costs import model_costs
from mlx_codegen.errors import UserError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import chart  # noqa: E402
import documents  # noqa: E402
import energy  # noqa: E402
import fingerprint  # noqa: E402
import harness  # noqa: E402
import random_model  # noqa: E402
import results  # noqa: E402
import suite  # noqa: E402
import tables  # noqa: E402
import timing  # noqa: E402
import verdict  # noqa: E402

TINY_MODEL = "model: {n_layers: 1, d_model: 16, n_heads: 2, vocab_size: 512, context_length: %d}\n"
TINY_PHASE = "phases: {code: {sources: [{name: b, bundled: bash}], steps: 1, learning_rate: 1.0e-3}}\n"
FACTS: fingerprint.Facts = {"chip": "Apple M3 Max", "device": "metal", "cpu_cores": 12, "memory_bytes": 36 * 2**30, "mlx": "1"}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlx_codegen", "bench", *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}, capture_output=True, text=True)


def measured(benchmark: str, tmp_path: Path, *arguments: str, context: int = 16) -> tuple[dict[str, Any], str]:
    """A short real run on the smallest model without peers (their compilation alone takes long): the file, the output."""
    config = tmp_path / "mini.yaml"
    config.write_text(TINY_MODEL % context + TINY_PHASE)
    folder = tmp_path / "results"
    run = bench(benchmark, "--sizes", str(config), "--seconds", "0.1", "--results", str(folder), *arguments)
    assert run.returncode == 0, run.stderr
    (file,) = folder.glob(f"{benchmark}-*.json")
    for kind in (".json", ".md", ".png"):
        assert file.with_suffix(kind).stat().st_size > 0
        assert file.with_suffix(kind).name in run.stdout.replace("\n", "")
    values = json.loads(file.read_text())
    assert {"chip", "cpu_cores", "memory_bytes", "os", "mlx", "blas"} <= set(values["machine"])
    assert results.figures_of(values) and all(figure.value.min > 0 for figure in results.figures_of(values))
    return values, run.stdout


def test_windows_count_all_tokens_over_all_seconds_and_drop_the_rest() -> None:
    """200 tokens in 2 s, then 200 in 4 s; the last half second is no window."""
    steps = [(100, 1.0), (100, 1.0), (200, 4.0), (100, 0.5)]
    assert timing.tokens_per_second(steps, 2.0) == [100.0, 50.0]


def test_a_measurement_shorter_than_a_window_is_one_window() -> None:
    assert timing.tokens_per_second([(100, 0.5), (100, 0.5)], 2.0) == [200.0]
    assert timing.tokens_per_second([], 2.0) == []


def test_spread_is_median_and_extremes() -> None:
    assert timing.spread([5.0, 1.0, 2.0]) == timing.Spread(2.0, 1.0, 5.0)


def test_the_first_steps_of_each_shape_are_left_out() -> None:
    """A new shape is compiled anew, in the middle of a measurement, too."""
    recorder = timing.Recorder(seconds=2.0, warm_up_steps=1)
    recorder.add(1, 100.0, shape=32)
    recorder.add(2, 1.0, shape=32)
    recorder.add(3, 100.0, shape=64)
    with pytest.raises(timing.Enough):
        recorder.add(4, 1.0, shape=64)
    assert recorder.steps == [(2, 1.0), (4, 1.0)]


def test_rounds_of_sides_are_compared_pair_by_pair() -> None:
    """A machine at half its speed in the second round changes all sides of that round, and no ratio."""
    rates = {
        timing.OURS: iter([[200.0, 300.0], [100.0]]),
        timing.MLX_LM: iter([[50.0], [20.0]]),
        timing.PYTORCH: iter([[125.0], [50.0]]),
    }
    order: list[str] = []

    def measure(side: str) -> list[float]:
        order.append(side)
        return next(rates[side])

    comparison = timing.take_turns(2, [timing.MLX_LM, timing.PYTORCH], measure, lambda line: None)
    assert order == [timing.OURS, timing.MLX_LM, timing.PYTORCH] * 2
    assert comparison.ours.rate == timing.Spread(200.0, 100.0, 300.0) and comparison.ours.rounds == [250.0, 100.0]
    assert comparison.peers[timing.MLX_LM].ratios == [5.0, 5.0] and comparison.peers[timing.PYTORCH].ratios == [2.0, 2.0]


def test_fingerprint_tells_hardware_apart_and_ignores_software() -> None:
    name = fingerprint.fingerprint(FACTS)
    assert name.startswith("apple-m3-max-12c-") and "/" not in name and " " not in name
    assert fingerprint.fingerprint({**FACTS, "mlx": "0.32"}) == name
    assert fingerprint.fingerprint({**FACTS, "memory_bytes": 48 * 2**30}) != name


def test_chips_are_found_by_name_and_cores_and_larger_is_never_weaker() -> None:
    full, binned = find_chip("Apple M1 Max"), find_chip("Apple M1 Max", 24)
    assert full is not None and full.gpu_cores == 32 and full.peak_flops("float16") == 10.4e12
    assert binned is not None and binned.peak_flops("float16") == pytest.approx(7.96e12, rel=0.01)
    assert find_chip("Apple M1 Max", 33) == full and find_chip("AMD EPYC") is None
    for name in {chip.name for chip in CHIPS}:
        sizes = [chip for chip in CHIPS if chip.name == name]
        for smaller, larger in zip(sizes, sizes[1:], strict=False):
            assert smaller.gpu_cores < larger.gpu_cores and smaller.bandwidth <= larger.bandwidth
            assert smaller.peak_flops("float32") < larger.peak_flops("float32")
    for chip in CHIPS:  # where Apple states a figure, cores × clock come to nearly the same
        assert chip.stated is None or chip.stated == pytest.approx(chip.gpu_cores * 0.256 * chip.clock, rel=0.03)


def test_gpu_cores_are_read_from_what_ioreg_prints() -> None:
    text = (
        '+-o AGXAcceleratorG13X  <class AGXAcceleratorG13X>\n    {\n      "model" = "Apple M1 Max"\n      "gpu-core-count" = 24\n'
    )
    assert core_count_in(text) == 24 and core_count_in("") is None


@pytest.mark.parametrize(("size", "share"), [("tiny", 0.26), ("small", 0.74), ("medium", 0.98)])
def test_the_promise_asks_for_the_stated_share_of_an_m1_max(size: str, share: float) -> None:
    """On an M1 Max the rate itself counts; elsewhere the same share of the peak is carried over, and marked."""
    flops = model_costs(load_run_config(size).model, 1).training_flops_per_token
    there = verdict.verdict(size, verdict.PROMISED[size] * 1.1, flops, 10.4e12, "Apple M1 Max")
    assert there is not None and there.words() == "reached" and there.ratio == pytest.approx(1.1) and not there.projected
    assert round(there.share_of_peak, 2) == share
    here = verdict.verdict(size, verdict.PROMISED[size] / 100, flops, 10.4e12 / 50, "AMD EPYC")
    assert here is not None and here.projected and here.ratio == pytest.approx(0.5)
    assert here.words() == "projection: not reached" and here.utilisation == pytest.approx(share / 2, abs=0.01)
    assert verdict.verdict("nano", 1.0, flops, 1.0, "AMD EPYC") is None


def sample(milliwatts: float) -> bytes:
    """A property list in the form of `powermetrics --format plist`, cut down to what surrounds the figure."""
    return plistlib.dumps({
        "is_delta": True,
        "elapsed_ns": 500_123_456,
        "processor": {"cpu_power": 900.5, "gpu_power": 100.0, "ane_power": 0.0, "combined_power": milliwatts, "clusters": []},
        "gpu": {"freq_hz": 1296.0, "idle_ratio": 0.25},
    })  # fmt: skip


def test_power_is_read_sample_by_sample_however_the_pipe_cuts_them() -> None:
    """Later samples stand behind a NUL byte; the last may be cut off; a sample without the figure is no zero."""
    stream = sample(1000.5) + b"\0" + sample(3000) + b"\0" + plistlib.dumps({"processor": {}}) + b"\0" + sample(9)[:200]

    class SmallPieces(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 7, 7))

    log = energy.PowerLog()
    log.read(SmallPieces(stream))
    assert [watts for _, watts in log.samples] == [1.0005, 3.0]
    assert energy.watts_in(b"powermetrics must be invoked as the superuser\n") is None


def test_mean_power_takes_samples_that_lie_within_the_measurement() -> None:
    log = energy.PowerLog()
    log.samples = [(10.2, 5.0), (11.0, 20.0), (12.0, 30.0), (12.6, 90.0)]
    assert log.mean_watts(10.0, 12.5) == 25.0 and log.mean_watts(20.0, 21.0) is None


def figure(median: float, spread: float = 0.01, **changes: Any) -> results.Figure:
    value = timing.Spread(median, median - spread, median + spread)
    return results.Figure(**{"name": "nano", "side": "ours", "unit": "tokens/s", "value": value, **changes})


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (figure(100), figure(90), "slower"),
        (figure(100), figure(98), "within noise"),
        (figure(100, 20), figure(90), "within noise"),
        (figure(100, 0), figure(90), "within noise"),
        (figure(100, 0), figure(80), "slower"),
        (figure(100), figure(110), "faster"),
        (figure(2, more_is_better=False), figure(3, more_is_better=False), "slower"),
        (figure(3, more_is_better=False), figure(2, more_is_better=False), "faster"),
    ],
)
def test_a_difference_counts_when_it_is_larger_than_the_noise(before: results.Figure, after: results.Figure, words: str) -> None:
    difference = results.Difference(before, after)
    assert difference.words() == words
    assert bool(results.slower_than_before([difference])) == (words == "slower")


def test_a_slower_peer_is_not_our_fault() -> None:
    assert not results.slower_than_before([results.Difference(figure(100, side="mlx-lm"), figure(50, side="mlx-lm"))])
    assert results.slower_than_before([results.Difference(figure(2, side="ours / mlx-lm"), figure(1, side="ours / mlx-lm"))])


def write_result(folder: Path, name: str, **changes: Any) -> Path:
    figures = changes.pop("figures", [figure(100)])
    file = folder / name
    file.write_text(json.dumps({**results.result_values("train", FACTS, figures), **changes}), encoding="utf-8")
    return file


def test_the_newest_result_of_the_same_machine_is_found(tmp_path: Path) -> None:
    """By the time inside, past damaged files and other machines."""
    name = results.new_file(tmp_path, "train", FACTS).stem
    newest = write_result(tmp_path, f"{name}.json", time="2026-03-02T00:00:00+00:00")
    write_result(tmp_path, f"{name}-2.json", time="2026-03-01T00:00:00+00:00")
    (tmp_path / f"{name}-3.json").write_text('{"time": "2027')
    other = results.new_file(tmp_path, "train", {**FACTS, "cpu_cores": 16})
    write_result(tmp_path, other.name, time="2028-01-01T00:00:00+00:00")
    assert results.newest_result(tmp_path, "train", FACTS) == newest
    assert results.newest_result(tmp_path, "generate", FACTS) is None
    assert results.new_file(tmp_path, "train", FACTS).name == f"{name}-4.json"


def test_compare_prints_both_runs_and_what_changed(tmp_path: Path) -> None:
    before = write_result(tmp_path, "a.json", figures=[figure(100), figure(7, name="tiny")])
    after = write_result(tmp_path, "b.json", figures=[figure(150)])
    run = bench("compare", str(before), str(after))
    assert run.returncode == 0, run.stderr
    assert "× 1.50" in run.stdout and "faster" in run.stdout and "tiny" not in run.stdout


def test_compare_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    good = write_result(tmp_path, "a.json")
    (tmp_path / "b.json").write_text("[]")
    other = write_result(tmp_path, "c.json", benchmark="generate")
    for second, words in ((tmp_path / "b.json", "no result"), (tmp_path / "d.json", "No such file"), (other, "two of a kind")):
        run = bench("compare", str(good), str(second))
        assert run.returncode == 2 and words in run.stderr and len(run.stderr.splitlines()) == 1


def test_stored_results_can_be_read_and_compared() -> None:
    files = [file for kind in ("train", "generate", "prepare") for file in (BENCHMARKS / "results").glob(f"{kind}-*.json")]
    assert files
    for file in files:
        values = results.read_result(file)
        assert all(each.words() == "within noise" for each in results.differences(values, values))


def test_tables_are_the_same_on_a_terminal_and_in_markdown() -> None:
    """In 40 columns too, where a wide table becomes a list rather than lose figures."""
    table = tables.Table("Speed", ("size", "rate"), [("nano", "1,000")], ["Read it so."])
    wide = tables.Table("Wide", ("size", *map(str, range(9))), [("nano", *(f"{n},234,567" for n in range(9)))])
    empty = tables.Table("Nothing", ("size",))
    console = Console(file=io.StringIO(), width=40)
    tables.draw([table, empty, wide], console)
    drawn, written = console.file.getvalue(), tables.markdown([table, empty])  # type: ignore[attr-defined]
    for text in (drawn, written):
        assert all(words in text for words in ("Speed", "nano", "1,000", "Read it so.")) and "Nothing" not in text
    assert all(f"{n}: {n},234,567" in drawn for n in range(9))
    assert "| nano | 1,000 |" in written and "| --- | ---: |" in written


def test_a_chart_shows_every_unit(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chart.draw_chart(tmp_path / "a.png", "title", [figure(100, 5), figure(1.5, unit="ratio", side="ours / mlx-lm")])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_sizes_that_do_not_fit_are_left_out() -> None:
    assert harness.fits(2**20) and not harness.fits(2**60)


def test_documents_are_the_same_text_for_both_sides(tmp_path: Path) -> None:
    """Every document that the peer pads is one that ours packs, and the model can read its tokens."""
    config = build_run_config({
        "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "vocab_size": 512, "context_length": 32},
        "phases": {"language": {"sources": [{"name": "b", "bundled": "bash"}], "epochs": 1, "learning_rate": 1e-3}},
    })  # fmt: skip
    prepared = documents.prepare_documents(tmp_path, config, batch_size=2, seconds=0.1)
    rows = documents.documents(tmp_path)
    batches = documents.packed_batches(tmp_path, 2, 32)
    assert len(rows) > 200 and batches.tokens_per_epoch == sum(map(len, rows))
    tokenizer = mlx_codegen.tokenizer.Tokenizer.load(tmp_path / "tokenizer.model")
    assert {row[-1] for row in rows} == {tokenizer.end_of_text_id}
    assert prepared.model.vocab_size == tokenizer.vocab_size > max(map(max, rows))
    assert batches.next().shape == (2, 33) and prepared.phase_names() == ["code"]


@pytest.mark.slow
def test_training_benchmark_measures_and_saves_what_it_shows(tmp_path: Path) -> None:
    values, output = measured("train", tmp_path, "--no-peers", "--batch-size", "2")
    (size,) = values["sizes"]
    ours = size["full"]["ours"]
    assert len(ours["rounds"]) == 1 and not size["full"]["peers"] and values["skipped"] == []
    assert 0 < ours["rate"]["min"] <= ours["rate"]["median"] <= ours["rate"]["max"]
    assert size["documents"]["ours"]["rate"]["min"] > 0
    assert size["command"]["peers"]["mlx-codegen train"]["rate"]["min"] > 0
    split = size["split"]
    assert all(split[part] > 0 for part in ("whole", "forward", "optimizer", "data"))
    assert split["handing out"] + split["data"] + split["wait"] == pytest.approx(split["whole"], rel=0.9)
    assert size["peak_flops"] > ours["rate"]["max"] * size["training_flops_per_token"]
    assert size["resident_bytes"] > size["peak_bytes"] > 4 * size["parameters"]
    assert f"{size['parameters']:,}" in output


@pytest.mark.slow
def test_generation_benchmark_measures_and_saves_what_it_shows(tmp_path: Path) -> None:
    """Cold start included, with a model and a tokenizer made for it."""
    values, output = measured("generate", tmp_path, "--no-peers", "--batches", "2", context=256)
    (size,) = values["sizes"]
    (batch,) = size["batches"]
    assert batch["batch"] == 2 and not batch["rates"]["peers"] and batch["rates"]["ours"]["rate"]["min"] > 0
    # One block of 12 C² weights, three norms, and the tied table of 512 rows; the table of positions is no part of it
    assert size["weight_bytes_per_token"] in (4 * (12 * 16**2 + 3 * 16 + 512 * 16), 2 * (12 * 16**2 + 3 * 16 + 512 * 16))
    assert batch["limit"] == pytest.approx(2 * size["bandwidth"] / size["weight_bytes_per_token"])
    assert batch["peak_bytes"]["ours"] > size["weight_bytes_per_token"]
    # The request is shown before the model adds to it
    assert 0 < size["cold"]["first_character"]["median"] <= size["cold"]["first_new"]["ours"]["rate"]["median"]
    assert f"{size['parameters']:,}" in output


@pytest.mark.slow
def test_prepare_benchmark_measures_text_memory_and_the_start_of_training(tmp_path: Path) -> None:
    values, output = measured("prepare", tmp_path)
    (text,), (start,) = values["texts"], values["starts"]
    assert text["text_bytes"] >= 400_000 and text["pieces"] == 512
    assert text["from_files"]["median"] > 0 and text["bundled"]["median"] > 0
    assert 0 < start["announced"]["median"] < start["first_step"]["median"]
    assert "MB/s" in output


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


def test_short_measurements_have_one_round_and_sizes_come_once() -> None:
    chosen = suite.options("nano, tiny,nano", 3.0, None, peers=True, save=False, results=None)
    assert (chosen.sizes, chosen.rounds) == (("nano", "tiny"), 1)
    assert suite.options("nano", 5.0, None, peers=True, save=False, results=None).rounds == 3
    with pytest.raises(UserError, match="numbers separated by commas"):
        suite.options("nano", 1.0, None, peers=True, save=False, results=None, batches="1;2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "tinny"], "did you mean tiny"),
        (["--sizes", ","], "at least one"),
        (["--rounds", "0"], "above zero"),
        (["--seconds", "-1"], "above zero"),
        (["--seconds", "nan"], "above zero"),
        (["--seconds", "inf"], "above zero"),
    ],
)
def test_bad_options_are_one_line_and_status_2(arguments: list[str], message: str) -> None:
    run = bench("all", *arguments)
    assert run.returncode == 2 and message in run.stderr
    assert run.stderr.startswith("error: ") and len(run.stderr.splitlines()) == 1

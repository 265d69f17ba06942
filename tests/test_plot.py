"""`mlx-codegen plot` draws what the log says: every step once, at the tokens that it was trained on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import CODE_STEPS, LANGUAGE_STEPS, Recorder, TrainedRun, tiny_config

from mlx_codegen.cli.main import run as command_line
from mlx_codegen.training.curves import SMOOTHED_SHARE, draw_curves, smooth
from mlx_codegen.training.history import read_history
from mlx_codegen.training.phases import train_run
from mlx_codegen.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
PNG = b"\x89PNG\r\n\x1a\n"


def curve(axes: Any, label: str) -> np.ndarray:
    """A curve's (x, y) by its name in the legend."""
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.array(line.get_data())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command_line(["plot", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
    return output.err


def test_the_picture_shows_the_log(trained_run: TrainedRun) -> None:
    """A column for each phase: raw losses, validation points and learning rates against tokens, as the observer heard them."""
    figure = draw_curves({"tiny": read_history(trained_run.folder.metrics_file)})
    assert [axes.get_title() for axes in figure.axes[:2]] == ["language phase", "code phase"]
    for column, (phase, steps) in enumerate((("language", LANGUAGE_STEPS), ("code", CODE_STEPS))):
        heard = [step for step in trained_run.recorder.steps if step.phase == phase]
        evaluations = [each for each in trained_run.recorder.evaluations if each.phase == phase]
        tokens = {0: 0} | {step.step: step.tokens_seen for step in heard}
        losses, rates = figure.axes[column], figure.axes[2 + column]
        assert len(heard) == steps
        np.testing.assert_array_equal(losses.lines[0].get_data(), [list(tokens.values())[1:], [step.loss for step in heard]])
        np.testing.assert_array_equal(curve(losses, "training, smoothed")[1], smooth(np.array([step.loss for step in heard])))
        expected = [[tokens[each.step] for each in evaluations], [each.loss for each in evaluations]]
        np.testing.assert_array_equal(curve(losses, "validation"), expected)
        np.testing.assert_array_equal(rates.lines[0].get_ydata(), [step.learning_rate for step in heard])


def test_smoothing_by_hand() -> None:
    """Constants and the start stay; the middle is a mean around each step, the end a mean of what lies before."""
    window = round(SMOOTHED_SHARE * 200)
    line = np.arange(200.0)
    smoothed = smooth(line)
    np.testing.assert_allclose(smooth(np.full(200, 3.0)), 3.0)
    np.testing.assert_allclose(smoothed[: 200 - window], line[: 200 - window])  # even windows do not bend a straight line
    assert smoothed[-1] == np.mean(line[-1 - window // 2 :])
    np.testing.assert_allclose(smooth(np.array([5.0])), [5.0])
    noise = np.random.default_rng(0).normal(size=1000)
    assert smooth(noise)[100:].std() < 0.3 * noise.std()


def test_skipped_steps_are_gaps_and_spoil_no_mean() -> None:
    """A NaN counts for nothing; only where a whole window is NaN there is no mean."""
    values = np.ones(100)
    values[40:42] = np.nan
    np.testing.assert_allclose(smooth(values), 1.0)
    values[20:60] = np.nan
    assert np.isnan(smooth(values)[40]) and np.isfinite(smooth(values)[[10, 90]]).all()


def test_a_resumed_run_is_one_curve(run: RunFolder, trained_run: TrainedRun) -> None:
    """Each step once and tokens rising, as of the unbroken run; steps that a killed run left behind are not drawn twice."""
    recorder = Recorder()
    train_run(run, tiny_config(), ["language", "code"], recorder, recorder.stop_at("code", 8))
    kept = run.metrics_file.read_text()
    train_run(run, tiny_config(), ["language", "code"], Recorder(), resume=True)
    resumed = run.metrics_file.read_text()
    # A log that was only ever appended to: steps 6 to 8 twice, with other losses the first time.
    code = [line for line in kept.splitlines() if '"code"' in line]
    again = [line for line in resumed.splitlines() if '"code"' in line]
    run.metrics_file.write_text(
        "\n".join([*[line for line in kept.splitlines() if '"code"' not in line], *code, *again[1:]]) + "\n"
    )
    ours, theirs = (
        draw_curves({"a": read_history(run.metrics_file)}),
        draw_curves({"a": read_history(trained_run.folder.metrics_file)}),
    )
    for column in (0, 1):
        np.testing.assert_array_equal(ours.axes[column].lines[0].get_data(), theirs.axes[column].lines[0].get_data())


def test_several_runs_lie_over_one_another(trained_run: TrainedRun, run: RunFolder) -> None:
    """A colour and a name for each; a phase that a run has not begun is just not there."""
    train_run(run, tiny_config("phases.code=null"), ["language"], Recorder())
    figure = draw_curves({"both": read_history(trained_run.folder.metrics_file), "language": read_history(run.metrics_file)})
    names = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes[:2]]
    assert names == [["both", "language"], ["both"]]
    colours = {line.get_color() for line in figure.axes[0].lines}
    assert len(colours) == 2


def test_the_command_writes_a_picture(
    trained_copy: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the run's folder, or where --output says; runs of one name in two places are told apart; nothing is left beside it."""
    monkeypatch.chdir(trained_copy.path.parents[1])
    assert command_line(["plot", "tiny"]) == 0
    assert capsys.readouterr().out == "runs/tiny/curves.png\n"
    assert Path("runs/tiny/curves.png").read_bytes().startswith(PNG)
    Path("old").mkdir()
    trained_copy.path.rename("old/tiny")
    trained_copy.path.mkdir()
    trained_copy.metrics_file.write_text(Path("old/tiny/metrics.jsonl").read_text() + "half a li\n")
    assert command_line(["plot", "runs/tiny", "old/tiny", "--output", "both.png"]) == 0
    output = capsys.readouterr()
    assert output.out == "both.png\n" and output.err == "runs/tiny: broken lines passed over: 1\n"
    assert Path("both.png").read_bytes().startswith(PNG)
    assert sorted(file.name for file in Path().iterdir()) == ["both.png", "old", "runs"]


def test_bad_input_is_one_line_and_status_2(
    trained_copy: RunFolder, prepared_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is written."""
    monkeypatch.chdir(trained_copy.path.parents[1])
    Path("foreign").mkdir()
    Path("foreign/file.txt").write_text("hello")
    assert "nowhere is not there" in refused(capsys, "nowhere")
    assert "foreign is no run" in refused(capsys, "tiny", "foreign")
    assert "no step is taken yet" in refused(capsys, str(prepared_run), "--output", "x.png")
    assert "ends in .png" in refused(capsys, "tiny", "--output", "curves.pdf")
    assert "folder that exists" in refused(capsys, "tiny", "--output", "no/curves.png")
    trained_copy.metrics_file.write_text("{}\n")
    assert "none of its 1 lines" in refused(capsys, "tiny")
    assert not list(Path().rglob("*.png"))


def test_without_matplotlib_the_way_to_get_it_is_told(trained_run: TrainedRun, tmp_path: Path) -> None:
    """An extra: the rest of the program works without, and help does not even look for it."""
    code = (
        "import sys\nsys.modules['matplotlib'] = None\nfrom mlx_codegen.cli.main import run\n"
        "assert run(['plot', '--help']) == 0\n"
        "sys.exit(run(['plot', sys.argv[1], '--output', sys.argv[2]]))"
    )
    command = [sys.executable, "-c", code, str(trained_run.folder.path), str(tmp_path / "x.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr.count("\n") == 1 and "matplotlib, which is not installed" in done.stderr and "pip install" in done.stderr

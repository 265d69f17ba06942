"""`mlx-codegen watch` follows a run's log whatever happens to it, and shows it on any terminal."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tiny_run import CODE_STEPS, LANGUAGE_STEPS, Recorder, TrainedRun, tiny_config

from mlx_codegen.cli.main import run as command_line
from mlx_codegen.cli.text_chart import text_chart
from mlx_codegen.cli.watch_page import live_page, summary_page
from mlx_codegen.errors import UserError
from mlx_codegen.observer import EvaluationMetrics, PhaseStart, StepMetrics
from mlx_codegen.training.history import History, PhaseHistory, read_history
from mlx_codegen.training.metrics_log import MetricsLog
from mlx_codegen.training.phases import train_run
from mlx_codegen.training.run_folder import RunFolder
from mlx_codegen.training.status import run_status

ROOT = Path(__file__).parents[1]
LEAVE_SECOND_SCREEN = "\x1b[?1049l"


def told(history: History) -> dict[str, tuple[list[int], list[int]]]:
    """Steps and evaluations by phase."""
    return {name: ([s.step for s in past.steps], [e.step for e in past.evaluations]) for name, past in history.phases.items()}


def interrupt(run: RunFolder, phase: str, step: int) -> None:
    recorder = Recorder()
    train_run(run, tiny_config(), ["language", "code"], recorder, recorder.stop_at(phase, step))


def finish(run: RunFolder) -> None:
    assert train_run(run, tiny_config(), ["language", "code"], Recorder(), resume=True) == "finished"


def text(page: object, width: int) -> str:
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(page)
    return capture.get()


def summary(folder: RunFolder, width: int = 80) -> str:
    history = read_history(folder.metrics_file)
    return text(summary_page(run_status(folder.path, history), history, width), width)


# The log, read while it is written


def test_a_log_is_read_back_as_it_was_written(trained_run: TrainedRun) -> None:
    """Every step and evaluation that the observer heard, with the same values."""
    history = read_history(trained_run.folder.metrics_file)
    assert [step for past in history.phases.values() for step in past.steps] == trained_run.recorder.steps
    assert [each for past in history.phases.values() for each in past.evaluations] == trained_run.recorder.evaluations
    assert (history.current, history.broken_lines) == ("code", 0)


def test_a_growing_log_with_half_a_line(trained_run: TrainedRun, tmp_path: Path) -> None:
    """Cut at any byte, a line counts once it is whole, and never as broken."""
    content = trained_run.folder.metrics_file.read_bytes()
    file = tmp_path / "metrics.jsonl"
    history = History(file)
    history.read()  # not there yet
    assert not history.phases
    for end in [*range(0, len(content), 997), len(content)]:
        file.open("ab").write(content[file.stat().st_size if file.exists() else 0 : end])
        history.read()
        whole = [json.loads(line) for line in content[:end].split(b"\n")[:-1]]
        assert sum(len(steps) + len(evaluations) for steps, evaluations in told(history).values()) == len(whole)
    assert history.broken_lines == 0 and told(history) == told(read_history(trained_run.folder.metrics_file))


def test_broken_lines_are_passed_over_and_counted(trained_run: TrainedRun, tmp_path: Path) -> None:
    """Half lines, other JSON, values of another type, a phase that is none of ours; kinds of later versions are no fault."""
    lines = trained_run.folder.metrics_file.read_text().splitlines()
    spoiled = [
        lines[4][:30],
        "[]",
        "null",
        "",
        lines[5].replace('"step": ', '"step": "x'),
        lines[5].replace("language", "poetry"),
    ]
    spoiled += [lines[5].replace(f'"step": {json.loads(lines[5])["step"]}', '"step": null'), "\x00\x00"]
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join([*lines[:10], *spoiled, '{"kind": "weather"}', *lines[10:]]) + "\n")
    history = read_history(file)
    assert history.broken_lines == len(spoiled)
    assert told(history) == told(read_history(trained_run.folder.metrics_file))


def test_a_log_of_something_else_is_refused(tmp_path: Path) -> None:
    """Not shown as a run that never began."""
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\nhello\n')
    with pytest.raises(UserError, match="none of its 2 lines"):
        read_history(tmp_path / "metrics.jsonl")


def test_steps_taken_again_replace_those_before() -> None:
    """Of a step, the later line counts; what came after it in the earlier history never happened."""
    past = PhaseHistory()
    log = [("step", 1, 7.0), ("step", 2, 6.0), ("evaluation", 2, 6.5), ("step", 3, 5.0), ("evaluation", 3, 5.5), ("step", 2, 4.0)]
    for kind, step, loss in log:
        add(past, kind, step, loss)
    assert [(s.step, s.loss) for s in past.steps] == [(1, 7.0), (2, 4.0)] and past.evaluations == []
    add(past, "evaluation", 2, 4.5)
    assert past.steps[-1].step == 2 and past.best() is past.evaluations[0]


def add(past: PhaseHistory, kind: str, step: int, loss: float) -> None:
    if kind == "step":
        past.add_step(StepMetrics("code", step, 10, loss, 1e-3, 1.0, 100.0, step * 8, 0, False))
    else:
        past.add_evaluation(EvaluationMetrics("code", step, loss, 1.0, 1.0, 8, True))


def test_a_restarted_training_program_is_followed(trained_copy: RunFolder) -> None:
    """At every start it writes the log anew, without the steps that it will take again: the same reader sees them go."""
    history = read_history(trained_copy.metrics_file)
    MetricsLog(trained_copy.metrics_file).on_phase_start(PhaseStart("code", 12, CODE_STEPS, 128, 1000, 1000, "float32"))
    history.read()
    assert told(history)["code"] == (list(range(1, 13)), [0, 6, 12])
    trained_copy.metrics_file.write_text(trained_copy.metrics_file.read_text()[:2000])  # the same file, cut
    history.read()
    assert set(told(history)) == {"language"}
    trained_copy.metrics_file.unlink()
    history.read()
    assert set(told(history)) == {"language"}


def test_an_interrupted_and_resumed_run_is_one_curve(run: RunFolder, trained_run: TrainedRun) -> None:
    """Steps and evaluations as of the unbroken run, and where it was resumed is known."""
    interrupt(run, "code", 20)
    finish(run)
    history = read_history(run.metrics_file)
    assert told(history) == told(read_history(trained_run.folder.metrics_file))
    assert history.phases["code"].resumed_at() == [20] and history.phases["language"].resumed_at() == []
    assert "code step 20: resumed" in summary(run)


# The page


def test_the_page_of_a_trained_run(trained_run: TrainedRun) -> None:
    """Both phases with their last validation loss, and events in order."""
    page = summary(trained_run.folder)
    for phase, steps in (("language", LANGUAGE_STEPS), ("code", CODE_STEPS)):
        last = [e for e in trained_run.recorder.evaluations if e.phase == phase][-1]
        assert f"100%  step {steps} of {steps}" in page
        assert f"validation {last.loss:.3f} ({last.bits_per_byte:.2f} bits/byte) at step {steps}" in page
    events = page.partition("recent")[2].splitlines()[1:]
    assert events[-1] == f"  code step {CODE_STEPS}: phase finished"
    assert f"  code step {CODE_STEPS}: saved last.safetensors" in events and len(events) == 6


def test_skipped_steps_are_a_warning(trained_copy: RunFolder) -> None:
    """A loss that was not finite stands as null in the log: counted, named, and left out of mean and chart."""
    lines = [json.loads(line) for line in trained_copy.metrics_file.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "step" and line["phase"] == "code" and line["step"] in (26, 27, 28):
            line |= {"loss": None, "perplexity": None, "skipped": True}
    trained_copy.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = summary(trained_copy, width=200)
    assert "3 steps skipped" in page and "code step 26: warning: loss not finite, update skipped until step 28" in page
    assert "nan" not in page


def test_before_the_first_step_the_page_says_so(prepared_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Preparing data takes minutes: no error, and no empty page."""
    assert command_line(["watch", str(prepared_run)]) == 0
    assert "no step is taken yet" in capsys.readouterr().out


@pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 24), (200, 60), (20, 5)])
def test_pages_fit_the_terminal(trained_run: TrainedRun, width: int, height: int) -> None:
    """No line is longer than the terminal is wide; where there is room for a chart, no page is longer than it is high."""
    history = read_history(trained_run.folder.metrics_file)
    status = run_status(trained_run.folder.path, history)
    live = text(live_page(status, history, width, height), width)
    for page in (live, text(summary_page(status, history, width), width)):
        assert max(len(line.rstrip()) for line in page.splitlines()) <= width
    if height >= 24:
        assert len(live.splitlines()) <= height


def test_text_chart_by_hand() -> None:
    """A falling line from corner to corner, a point above it, labels of both ends."""
    lines = text_chart([(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)], [(4, 4.0)], width=15, height=6)
    assert lines == [
        " 4.00 |  **   o",
        "      |    *",
        "      |     **",
        " 1.00 |       *",
        "      +--------",
        "       4 tokens",
    ]
    steep = text_chart([(0, 9.0), (100, 1.0)], [], width=107, height=22)
    assert {line.count("*") for line in steep[:20]} <= {3, 5, 6} and steep[-1] == "       0" + "100 tokens".rjust(99)
    assert text_chart([(1, float("nan"))], [], 40, 10) == []
    assert any("*" in line for line in text_chart([(5, 2.0)], [], 40, 10))


# The command


def test_a_pipe_gets_one_page(trained_run: TrainedRun) -> None:
    """`watch RUN | cat` ends at once, with plain text; --summary is the same page; so is the script."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "mlx_codegen", "watch", str(trained_run.folder.path)]
    script = [sys.executable, str(ROOT / "scripts" / "monitor_training.py"), str(trained_run.folder.path), "--summary"]
    pages = [subprocess.run(each, env=environment, capture_output=True, text=True, check=True) for each in (command, script)]
    assert pages[0].stdout == pages[1].stdout and pages[0].stderr == ""
    assert "\x1b" not in pages[0].stdout and "* training loss" in pages[0].stdout


@pytest.mark.parametrize("name", ["nowhere", "foreign"])
def test_no_run_is_one_line_and_status_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named as it was typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file.txt").write_text("hello")
    assert command_line(["watch", name]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith(f"error: {name} is ") and output.err.count("\n") == 1


class Terminal:
    """`mlx-codegen watch` in a terminal of its own."""

    def __init__(self, folder: RunFolder, columns: int = 80, rows: int = 24) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "mlx_codegen", "watch", str(folder.path)]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.output = ""

    def until(self, condition: Callable[[str], bool], seconds: float = 60.0) -> None:
        """Read on until the output is as it should be."""
        deadline = time.monotonic() + seconds
        while not condition(self.output):
            assert time.monotonic() < deadline, self.output[-3000:]
            if select.select([self._ours], [], [], 0.2)[0]:
                try:
                    self.output += os.read(self._ours, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    assert condition(self.output), self.output[-3000:]

    def end(self) -> int:
        """The exit status."""
        try:
            return self.process.wait(timeout=60)
        finally:
            self.process.kill()
            os.close(self._ours)


def test_a_run_is_followed_through_its_restart_to_its_end(run: RunFolder) -> None:
    """Watching an interrupted run shows the resumed one go on, ends with it by itself, and leaves the last page behind."""
    interrupt(run, "language", 7)
    terminal = Terminal(run)
    terminal.until(lambda output: f"step 7 of {LANGUAGE_STEPS}" in output)
    with run.metrics_file.open("a") as stream:
        stream.write('{"kind": "step", "phase": "lang')  # killed while writing
    finish(run)
    terminal.until(lambda output: "phase finished" in output.partition(LEAVE_SECOND_SCREEN)[2])
    assert terminal.end() == 0
    last_page = terminal.output.partition(LEAVE_SECOND_SCREEN)[2]
    assert f"step {CODE_STEPS} of {CODE_STEPS}" in last_page and "broken" not in last_page


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_view_and_nothing_else(run: RunFolder, number: int) -> None:
    """Status 0, the first screen is back with the page on it, and no file of the run was touched."""
    interrupt(run, "language", 7)
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    terminal = Terminal(run, columns=40, rows=14)
    terminal.until(lambda output: "language" in output)
    terminal.process.send_signal(number)
    terminal.until(lambda output: "saved last.safetensors" in " ".join(output.partition(LEAVE_SECOND_SCREEN)[2].split()))
    assert terminal.end() == 0
    assert "Traceback" not in terminal.output
    assert before == {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}

"""`mlx-codegen status` tells what the files say, and never more: real runs in every state that a run can be in."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import CODE_STEPS, LANGUAGE_STEPS, Recorder, TrainedRun, tiny_config

from mlx_codegen.checkpoint import load_checkpoint
from mlx_codegen.cli.main import run as command_line
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.context import Settings
from mlx_codegen.evaluation.figures import PartResult, mean_of
from mlx_codegen.evaluation.report import Report
from mlx_codegen.evaluation.report import as_json as report_json
from mlx_codegen.hub.export import export_model
from mlx_codegen.model import count_parameters
from mlx_codegen.training.phases import train_run
from mlx_codegen.training.run_folder import RunFolder
from mlx_codegen.training.status import as_json, find_run, release_status, run_status

ROOT = Path(__file__).parents[1]
LONG_AGO = time.time() - 5 * 3600


def leave_alone(folder: RunFolder) -> None:
    """As if nobody had written there for five hours."""
    for file in folder.path.rglob("*"):
        os.utime(file, (LONG_AGO, LONG_AGO))


def interrupt(run: RunFolder, phase: str, step: int) -> Recorder:
    recorder = Recorder()
    outcome = train_run(run, tiny_config(), ["language", "code"], recorder, recorder.stop_at(phase, step))
    assert outcome == "interrupted"
    return recorder


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command_line(["status", *arguments]) == 0
    return capsys.readouterr().out


def test_a_finished_run_is_told_as_training_told_it(trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, tokens and best losses are those that the observer heard; parameters and size are counted anew here."""
    status = run_status(trained_run.folder.path)
    recorder = trained_run.recorder
    assert (status.state, status.name, status.notes) == ("finished", "trained", [])
    assert [(p.phase, p.step, p.total_steps) for p in status.phases] == [
        ("language", LANGUAGE_STEPS, LANGUAGE_STEPS), ("code", CODE_STEPS, CODE_STEPS)
    ]  # fmt: skip
    for phase in status.phases:
        best = min((e for e in recorder.evaluations if e.phase == phase.phase), key=lambda e: e.loss)
        assert (phase.best_loss, phase.best_bits_per_byte, phase.best_step) == (best.loss, best.bits_per_byte, best.step)
        last = [s for s in recorder.steps if s.phase == phase.phase][-1]
        assert (phase.tokens_seen, phase.tokens_per_second) == (last.tokens_seen, last.tokens_per_second)
    model = load_checkpoint(trained_run.folder.checkpoint("code", "best")).build_model()
    assert status.parameters == count_parameters(model)
    files = [file for file in trained_run.folder.path.rglob("*") if file.is_file()]
    assert status.size_bytes == sum(len(file.read_bytes()) for file in files)
    assert status.checkpoint is not None and status.checkpoint.path == trained_run.folder.checkpoint("code", "last")


def test_an_interrupted_run_is_stopped_at_once(run: RunFolder) -> None:
    """Nobody holds its lock."""
    interrupt(run, "code", 8)
    assert run_status(run.path).state == "stopped"


def test_without_locks_a_run_runs_until_its_files_are_quiet(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that has none, only time tells, and the page says on what it rests."""

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    interrupt(run, "code", 8)
    (run.path / "lock").write_text("1\n")  # it is there while a process trains
    fresh = run_status(run.path)
    assert fresh.state == "running" and "written to" in fresh.evidence
    leave_alone(run)
    quiet = run_status(run.path)
    assert (quiet.state, quiet.evidence) == ("stopped", "nothing written for 5 hours")
    assert [(p.step, p.finished) for p in quiet.phases] == [(LANGUAGE_STEPS, True), (8, False)]
    assert quiet.phases[1].share == 8 / CODE_STEPS


def test_a_lock_is_believed_while_its_process_lives(run: RunFolder) -> None:
    """The process that holds the run's lock counts for more than the age of files; once it is gone, so is the lock."""
    interrupt(run, "language", 7)
    code = f"from mlx_codegen.training.lock import *\nwith sole_user(Path({str(run.path)!r})): print(flush=True); input()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        leave_alone(run)
        assert (run_status(run.path).state, run_status(run.path).evidence) == ("running", f"process {holder.pid}")
        holder.kill()
    leave_alone(run)
    assert run_status(run.path).state == "stopped"
    (run.path / "lock").write_text("nonsense")
    leave_alone(run)
    assert run_status(run.path).state == "stopped"


def test_a_prepared_run_has_nothing_to_show(prepared_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Token files are there, no step was taken: no figure is made up."""
    leave_alone(RunFolder(prepared_run))
    status = run_status(prepared_run)
    assert (status.state, status.phases, status.checkpoint, status.parameters) == ("prepared", [], None, None)
    assert "prepared (nothing written for 5 hours)" in shown(capsys, str(prepared_run))


def test_a_phase_that_ended_early_is_done(run: RunFolder, trained_run: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """Early stopping is an end, although steps are left; the log alone does not know."""
    ruinous = ("phases.language.learning_rate=0.3", "phases.language.early_stopping=1", "phases.language.validate_every=3")
    start = trained_run.folder.checkpoint("language", "best")
    train_run(run, tiny_config("phases.code=null", *ruinous), ["language"], Recorder(), init_from=start)
    (phase,) = run_status(run.path).phases
    assert phase.finished and phase.step < LANGUAGE_STEPS and phase.share == 1.0
    assert "ended early" in shown(capsys, str(run.path))


def test_a_finished_run_that_is_trained_on_is_not_finished(trained_copy: RunFolder) -> None:
    """The last checkpoint still says that the phase is over, the log is further already."""
    last = json.loads(trained_copy.metrics_file.read_text().splitlines()[-2])
    further = {**last, "kind": "step", "step": CODE_STEPS + 1, "total_steps": CODE_STEPS + 10}
    with trained_copy.metrics_file.open("a") as stream:
        stream.write(json.dumps(further) + "\n")
    leave_alone(trained_copy)
    status = run_status(trained_copy.path)
    assert status.state == "stopped" and not status.phases[1].finished


def test_without_its_log_a_run_is_told_from_its_checkpoints(trained_copy: RunFolder) -> None:
    """Steps, tokens and best losses are in the checkpoints, too."""
    with_log = run_status(trained_copy.path).phases
    trained_copy.metrics_file.unlink()
    without = run_status(trained_copy.path)
    assert without.state == "finished"
    for ours, theirs in zip(without.phases, with_log, strict=True):
        assert (ours.step, ours.tokens_seen, ours.best_loss) == (theirs.step, theirs.tokens_seen, theirs.best_loss)


def test_what_cannot_be_read_is_named_and_hides_nothing_else(trained_copy: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """A broken line, a cut checkpoint, a config with an error, a foreign report: a note each, and the rest is shown."""
    lines = trained_copy.metrics_file.read_text().splitlines()
    huge = lines[0].replace('"loss": ', '"loss": 1' + "0" * 400 + ', "was": ')
    lines[3:3] = ['{"kind": "step", "phase": "lang', '{"kind": "step", "phase": "poetry", "step": 1}', huge, "[" * 100_000]
    trained_copy.metrics_file.write_text("\n".join(lines) + "\n")
    checkpoint = trained_copy.checkpoint("language", "best")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    trained_copy.config_file.write_text("seed: 2001-99-99")
    (trained_copy.path / "report.json").write_text("[" * 100_000)
    status = run_status(trained_copy.path)
    assert [(p.step, p.finished) for p in status.phases] == [(LANGUAGE_STEPS, True), (CODE_STEPS, True)]
    text = shown(capsys, str(trained_copy.path))
    for note in ("4 broken lines", "language/best.safetensors: not a whole", "config.yaml", "report.json: no report"):
        assert sum(note in each for each in status.notes) == 1 and note in text
    assert len(status.notes) == 4


def test_key_figures_of_a_report_stand_beside_the_run(trained_copy: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """As `evaluate` writes them: figures with an aim, else the first of a part; a figure without samples is no zero."""
    syntax = PartResult(
        "syntax", "Syntax", {"valid bash": mean_of([[1, 1, 0, 1]], target=0.85), "length": mean_of([[7]], "tokens")}
    )
    other = PartResult("other", "Other", {"bits per byte": mean_of([[1.5]], "bits"), "second": mean_of([[1]])})
    empty = PartResult("empty", "Empty", {"pass@1": mean_of([], target=0.7)})
    report = Report(str(trained_copy.path), Settings(parts=("syntax",)), [syntax, other, empty])
    (trained_copy.path / "code" / "report.json").write_text(report_json(report))
    status = run_status(trained_copy.path)
    assert status.evaluation is not None and set(status.evaluation.figures) == {"valid bash", "bits per byte", "pass@1"}
    text = shown(capsys, str(trained_copy.path))
    assert "valid bash 75% (aim 85%) · bits per byte 1.50 bits · pass@1 no samples" in text


def test_runs_and_releases_of_this_folder_are_listed(
    trained_copy: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an argument: runs/ and weights/; what is neither is passed over; a name is enough for one run."""
    top = trained_copy.path.parents[1]
    monkeypatch.chdir(top)
    export_model(trained_copy.checkpoint("code", "best"), top / "weights" / "small")
    (top / "runs" / "notes").mkdir()
    (top / "runs" / "notes" / "todo.txt").write_text("nothing of ours")
    text = shown(capsys)
    assert "runs/tiny: finished" in text and "weights/small: release · gpt2 2 x 32 · float16" in text
    assert "notes" not in text and text.count(f"step {CODE_STEPS} of {CODE_STEPS}") == 2
    assert shown(capsys, "tiny") == shown(capsys, "runs/tiny") == shown(capsys, "runs")
    facts = top / "weights" / "small" / "mlx_codegen.json"
    facts.write_text("{}")
    assert "! weights/small/mlx_codegen.json: format None" in shown(capsys, "weights")


def test_a_stopped_run_says_how_to_go_on(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that is shown is the one that works: it finishes the run."""
    interrupt(run, "language", 7)
    leave_alone(run)
    monkeypatch.chdir(run.path.parents[1])
    (line,) = [line for line in shown(capsys).splitlines() if "go on: mlx-codegen " in line]
    assert command_line(line.partition("mlx-codegen ")[2].split()) == 0
    capsys.readouterr()
    assert "go on" not in shown(capsys) and run_status(run.path).state == "finished"


def test_json_says_the_same(trained_run: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """One document for programs, equal to what the library knows."""
    text = shown(capsys, str(trained_run.folder.path), "--json")
    assert text == as_json([run_status(trained_run.folder.path)], [])
    (run,) = json.loads(text)["runs"]
    assert run["state"] == "finished" and run["phases"][1]["step"] == CODE_STEPS


def test_nothing_trained_is_one_helpful_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Absent or empty, and valid JSON all the same."""
    monkeypatch.chdir(tmp_path)
    absent = shown(capsys)
    (tmp_path / "runs").mkdir()
    assert absent == shown(capsys) == shown(capsys, "runs")
    assert absent.count("\n") == 1 and "runs/" in absent and "mlx-codegen train" in absent
    assert json.loads(shown(capsys, "--json")) == {"runs": [], "releases": []}


@pytest.mark.parametrize("name", ["nowhere", "foreign", "foreign/file.txt"])
def test_something_else_is_one_line_and_status_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is there and holds no run is not taken for an empty one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file.txt").write_text("hello")
    assert command_line(["status", name]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith(f"error: {name} is ") and output.err.count("\n") == 1


def test_narrow_terminals_and_pipes(trained_run: TrainedRun) -> None:
    """40 columns are never passed; in a pipe, one line is one line, without colours."""
    command = [sys.executable, str(ROOT / "scripts" / "status.py"), str(trained_run.folder.path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    piped = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "\x1b" not in piped and len(piped.splitlines()) == 4
    narrow = {**environment, "FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "40"}
    wrapped = subprocess.run(command, env=narrow, capture_output=True, text=True, check=True).stdout
    plain = "".join(part.partition("m")[2] if index else part for index, part in enumerate(wrapped.split("\x1b[")))
    assert max(len(line.rstrip()) for line in plain.splitlines()) <= 40 and "tokens/s" in plain


def test_a_run_is_found_by_path_or_name(trained_copy: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, the error names those that are there."""
    monkeypatch.chdir(trained_copy.path.parents[1])
    assert find_run("tiny").path == Path("runs/tiny") == find_run("runs/tiny").path
    with pytest.raises(UserError, match=r"teeny is not there .* runs here: tiny"):
        find_run("teeny")


def test_looking_changes_nothing(trained_copy: RunFolder) -> None:
    """No file of a run is touched."""
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in trained_copy.path.rglob("*") if file.is_file()}
    run_status(trained_copy.path)
    assert before == {
        file: (file.read_bytes(), file.stat().st_mtime_ns) for file in trained_copy.path.rglob("*") if file.is_file()
    }
    assert release_status(trained_copy.path).notes  # a run is no release, and says so instead of failing

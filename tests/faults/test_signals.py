"""Whoever asks a training to stop, gets it saved: Ctrl-C, `kill`, a closed terminal; and a pause is no stop."""

import os
import pty
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from fault_processes import (
    CHILD,
    ROOT,
    Note,
    assert_same_run,
    finish,
    log,
    resume_to_the_end,
    signal_at_step,
    start,
    steps_done,
    wait_for,
    wait_for_step,
)
from test_clock import FakeClock, measure
from tiny_run import LANGUAGE_STEPS, TrainedRun, tiny_config

from mlx_codegen.config import to_yaml
from mlx_codegen.training.clock import Throughput
from mlx_codegen.training.run_folder import RunFolder

SAVED = "saved; go on with: mlx-codegen train tiny.yaml --resume\n"


def saved_where_it_stopped(folder: RunFolder) -> bool:
    """No step in the log that the newest checkpoint has not."""
    from test_killed import saved_steps

    return saved_steps(folder) == steps_done(folder)


def test_sigterm_saves_and_resumes(run: RunFolder, trained_run: TrainedRun) -> None:
    """What a machine that shuts down sends: nothing is trained twice."""
    assert signal_at_step(run, 7, signal.SIGTERM)[::2] == (130, SAVED)
    assert saved_where_it_stopped(run)
    resume_to_the_end(run)
    assert_same_run(run, trained_run)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_saves_in_each_phase(run: RunFolder, trained_run: TrainedRun, note: Note, number: signal.Signals) -> None:
    """Once in each phase."""
    assert signal_at_step(run, 6, number)[::2] == (130, SAVED)
    assert saved_where_it_stopped(run)
    assert signal_at_step(run, LANGUAGE_STEPS + 9, number, "--resume")[::2] == (130, SAVED)
    assert saved_where_it_stopped(run)
    resume_to_the_end(run)
    assert_same_run(run, trained_run)
    note(f"{number.name} while training", 2, "nothing")


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_twice_stops_at_once_and_the_last_checkpoint_is_good(
    run: RunFolder, trained_run: TrainedRun, note: Note, number: signal.Signals
) -> None:
    """Impatience costs the steps since the last checkpoint, not the run."""
    process = start(run)
    wait_for_step(run, 8, process)
    for _ in range(2):
        process.send_signal(number)
        time.sleep(0.001)
    assert finish(process)[0] == 130
    resume_to_the_end(run)
    assert_same_run(run, trained_run)
    note(f"{number.name} twice", 1, "nothing; steps since the checkpoint taken again")


@pytest.mark.faults
def test_a_signal_while_data_is_prepared_leaves_nothing_behind(tmp_path: Path, note: Note) -> None:
    """It stops at once: preparing starts over anyway."""
    folder = RunFolder(tmp_path / "runs" / "tiny")
    process = start(folder)
    wait_for(lambda: (folder.path / "data").exists(), process)
    process.send_signal(signal.SIGTERM)
    status, _, errors = finish(process)
    assert status == 130 and errors in ("", "interrupted\n")
    assert not list(folder.path.rglob("*.partial")) + list(folder.path.rglob(".*")) + list(folder.path.rglob("lock"))
    note("SIGTERM while preparing data", 1, "nothing but what was prepared so far")


def closed_terminal(folder: RunFolder, count: int) -> int:
    """Train under a terminal of its own, close its window after so many steps. Returns the exit status."""
    (folder.path.parents[1] / "tiny.yaml").write_text(to_yaml(tiny_config()))
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder.path.parents[1])
        os.environ.update(PYTHONPATH=str(ROOT), TERM="xterm-256color")
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the tests' own process ignores it, and so would this one
        os.execv(sys.executable, [sys.executable, str(CHILD), "", "train", "tiny.yaml"])
    deadline = time.monotonic() + 120
    while steps_done(folder) < count and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.01)[0]:  # a display that says nothing must not hold up the closing
            os.read(terminal, 1 << 16)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_a_closed_terminal_saves(run: RunFolder, trained_run: TrainedRun, note: Note) -> None:
    """SIGHUP comes, and nothing can be written to the display any more: neither may keep the run from being saved."""
    assert closed_terminal(run, 7) == 130
    assert saved_where_it_stopped(run)
    resume_to_the_end(run)
    assert_same_run(run, trained_run)
    note("the terminal closed while training", 1, "nothing")


@pytest.mark.faults
def test_nohup_is_respected(run: RunFolder, trained_run: TrainedRun, note: Note) -> None:
    """Started with SIGHUP switched off, a closed terminal is nothing to stop for."""
    process = start(run, before_start=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for_step(run, 7, process)
    process.send_signal(signal.SIGHUP)
    assert finish(process)[0] == 0
    assert_same_run(run, trained_run)
    note("SIGHUP under nohup", 1, "nothing; it goes on")


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["pipe", "disk"])
def test_a_display_that_cannot_be_written_does_not_stop_training(
    run: RunFolder, trained_run: TrainedRun, note: Note, kind: str
) -> None:
    """`| head` that has seen enough; a log on a full disk."""
    if kind == "disk":
        with Path("/dev/full").open("w") as full:
            process = start(run, stdout=full)
            _, errors = process.communicate()
    else:
        process = start(run)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        process.wait()
    assert process.returncode == 0
    assert errors.startswith("the display cannot be written any more") and errors.count("\n") == 1
    assert_same_run(run, trained_run)
    note(f"nobody reads the display any more ({kind})", 1, "nothing; it goes on")


def test_a_step_with_a_pause_in_it_does_not_count() -> None:
    """The kernel's word that the process goes on again, in the middle of a step of 1,000 seconds."""
    clock = FakeClock()
    throughput = Throughput(clock)
    with throughput.noticing_pauses():
        measure(clock, throughput, [9.0, 2.0, 2.0])
        throughput.start()
        clock.passes(1000.0)
        os.kill(os.getpid(), signal.SIGCONT)
        throughput.stop(100)
        measure(clock, throughput, [2.0])
    assert throughput.tokens_per_second() == pytest.approx(50.0)
    assert throughput.seconds == pytest.approx(9.0 + 2.0 * 4)
    assert signal.getsignal(signal.SIGCONT) == signal.SIG_DFL


@pytest.mark.faults
def test_tokens_per_second_after_a_stop_are_those_of_before(run: RunFolder, note: Note) -> None:
    """A process that stood still for eight seconds (SIGSTOP, as Ctrl-Z) shows the speed that it has."""
    process = start(run, "--set", "phases.language.steps=400", "--phase", "language")
    wait_for_step(run, 100, process)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    before = log(run)
    time.sleep(8)
    process.send_signal(signal.SIGCONT)
    wait_for_step(run, steps_done(run) + 40, process)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    rates = [line["tokens_per_second"] for line in log(run) if line["kind"] == "step"]
    at = sum(line["kind"] == "step" for line in before)
    slowest = min(rates[at : at + 40])
    assert slowest > 0.25 * min(rates[at - 10 : at]), "50 steps of a few milliseconds with one of 8 seconds would be near 0"
    note(
        "stopped for 8 seconds (SIGSTOP), continued",
        1,
        f"nothing; {rates[at - 1]:,.0f} tokens/s before, never below {slowest:,.0f} after",
    )


def test_a_pipe_that_breaks_is_no_end(run: RunFolder) -> None:
    """The quick version of the display test: the reader goes before the first line."""
    process = start(run, "--phase", "language", "--set", "phases.language.steps=3")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "training goes on without it" in process.stderr.read()
    assert process.wait() == 0
    assert steps_done(run) == 3

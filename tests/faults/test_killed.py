"""`kill -9` at any moment costs the steps since the last checkpoint, which are taken again: the end is the unbroken run's."""

import random
import signal
import time
from pathlib import Path

import pytest
from fault_processes import Note, assert_same_run, finish, resume_to_the_end, start, steps_done, wait_for_step
from tiny_run import CODE_STEPS, LANGUAGE_STEPS, TrainedRun

from mlx_codegen.checkpoint import load_checkpoint
from mlx_codegen.config import PHASES
from mlx_codegen.training.run_folder import RunFolder

ALL_STEPS = LANGUAGE_STEPS + CODE_STEPS


def kill_at_step(folder: RunFolder, step: int, delay: float, *options: str) -> bool:
    """From outside, as the kernel does when memory runs out: a moment after a step. False if it came too late."""
    process = start(folder, *options)
    wait_for_step(folder, step, process)
    time.sleep(delay)
    process.kill()
    return finish(process)[0] == -signal.SIGKILL


def kill_inside(folder: RunFolder, die: str, *options: str) -> bool:
    """From inside, at a moment that only the program knows. False if the run was over before."""
    return finish(start(folder, *options, die=die))[0] == -signal.SIGKILL


def saved_steps(folder: RunFolder) -> int:
    """Steps that need not be taken again, of both phases together."""
    newest = [load_checkpoint(files[0]) for phase in PHASES if (files := folder.resumable(phase))]
    return sum(checkpoint.progress.step for checkpoint in newest)


def test_killed_three_ways_and_resumed_equals_unbroken(run: RunFolder, trained_run: TrainedRun) -> None:
    """Between two steps, in the middle of a checkpoint, between the two renames of another."""
    assert kill_at_step(run, 8, 0.0)
    assert kill_inside(run, "half 2", "--resume")
    assert list(run.path.rglob(".*.tmp*")), "no checkpoint was half written"
    assert kill_inside(run, "file 15", "--resume")
    resume_to_the_end(run)
    assert_same_run(run, trained_run)


@pytest.mark.faults
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments_and_resumed_equals_unbroken(
    run: RunFolder, trained_run: TrainedRun, note: Note, seed: int
) -> None:
    """Ten kills of one run, from its first file to its last steps, each followed by a resume; two such runs."""
    moments, kills, again, options = random.Random(seed), 0, 0, []
    for number in range(10):
        kind = moments.choice(["step", "file", "half"])
        if kind == "step":
            killed = kill_at_step(run, 1 + (ALL_STEPS - 2) * number // 10 + moments.randrange(4), moments.random() / 10, *options)
        elif kind == "file":
            killed = kill_inside(run, f"file {moments.randrange(1, 40)}", *options)
        else:
            killed = kill_inside(run, f"half {moments.randrange(1, 4)}", *options)
        assert killed, f"kill {number} ({kind}) came after the end of the run"
        kills += 1
        again += steps_done(run) - saved_steps(run)
        options = ["--resume"] if run.config_file.exists() else []
    resume_to_the_end(run)
    assert_same_run(run, trained_run)
    note(
        f"kill -9 at random moments (seed {seed}), resumed each time", kills, f"nothing; {again} steps of {ALL_STEPS} taken again"
    )


@pytest.mark.faults
def test_killed_while_preparing(tmp_path_factory: pytest.TempPathFactory, prepared_run: Path, note: Note) -> None:
    """Before anything is trained, at many file changes: the next start makes the same token files, and nothing else is left."""
    expected = {str(f.relative_to(prepared_run)): f.read_bytes() for f in prepared_run.rglob("*") if f.is_file()}
    moments = random.Random(3)
    for _ in range(3):
        folder = RunFolder(tmp_path_factory.mktemp("killed") / "runs" / "tiny")
        for _ in range(2):
            assert kill_inside(folder, f"file {moments.randrange(1, 25)}")
        status, _, errors = finish(start(folder, "--phase", "language", "--set", "phases.language.steps=1"))
        assert (status, errors) == (0, "")
        for name, content in expected.items():
            if not name.startswith("data/code"):
                assert (folder.path / name).read_bytes() == content, name
        assert not list(folder.path.rglob(".*")) + list(folder.path.rglob("*.partial"))
    note("kill -9 while preparing data, started again", 6, "nothing")

"""A disk that fills up costs the steps since the last checkpoint: one line, and after space is made the run goes on."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fault_processes import Note, assert_same_run, finish, log, one_line, resume_to_the_end, start, start_command, wait_for_step
from tiny_run import LANGUAGE_STEPS, TrainedRun

from mlx_codegen.checkpoint import load_checkpoint
from mlx_codegen.training.run_folder import RunFolder

NO_SPACE = "no space left on disk while writing "


def checkpoints(folder: RunFolder) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.path.rglob("*.safetensors")}


@pytest.mark.faults
def test_no_space_for_a_checkpoint(run: RunFolder, trained_run: TrainedRun, note: Note) -> None:
    """In the middle of a run: the checkpoints of before are as they were, and the run goes on from them."""
    room = max(file.stat().st_size for file in run.path.rglob("*") if file.is_file())  # data and log can be written
    process = start(run, file_limit=room + 50_000)
    status, _, errors = finish(process)
    assert status == 2
    assert one_line(errors).startswith(f"{NO_SPACE}runs/tiny/language/last.safetensors; free some")
    assert not list(run.path.rglob(".*.tmp*"))
    shutil.rmtree(run.path / "language", ignore_errors=True)
    assert finish(start(run, "--phase", "language", "--set", "phases.language.steps=6"))[0] == 0
    before = checkpoints(run)
    longer = ["--resume", "--set", f"phases.language.steps={LANGUAGE_STEPS}"]
    status, _, errors = finish(start(run, *longer, file_limit=room + 50_000))
    assert status == 2 and NO_SPACE in one_line(errors)
    assert checkpoints(run) == before
    assert not list(run.path.rglob(".*.tmp*"))
    assert finish(start(run, *longer, "--phase", "language"))[0] == 0
    assert load_checkpoint(run.checkpoint("language", "last")).progress.step == LANGUAGE_STEPS
    note("no space for a checkpoint", 2, "nothing; older checkpoints as they were")


def test_no_space_for_the_log(run: RunFolder, trained_run: TrainedRun, note: Note) -> None:
    """The log names its file, half a line does no harm, and the run ends as the unbroken one."""
    assert finish(start(run, "--phase", "language"))[0] == 0
    text = run.metrics_file.read_text()
    largest = max(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    # Lines of the other phase stay, so the log is longer than all other files from the start
    padding = json.dumps({"phase": "language", "step": 0, "kind": "x" * 1000}) + "\n"
    run.metrics_file.write_text(text + padding * (2 * largest // len(padding)))
    status, _, errors = finish(start(run, "--phase", "code", file_limit=run.metrics_file.stat().st_size + 2000))
    assert status == 2
    assert one_line(errors).startswith(f"{NO_SPACE}runs/tiny/metrics.jsonl; free some")
    lines = run.metrics_file.read_text().splitlines(keepends=True)
    run.metrics_file.write_text("".join(line for line in lines if line != padding))
    resume_to_the_end(run)
    assert_same_run(run, trained_run)
    note("no space for the log", 1, "nothing; the steps since the checkpoint taken again")


@pytest.mark.faults
def test_no_space_for_data(run: RunFolder, prepared_run: Path, note: Note) -> None:
    """Nothing half written; what was prepared before stays until the new files are whole."""
    options = ["--set", "phases.code.validation_fraction=0.2"]  # other token files
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    for limit in (0, 1000, 50_000):
        status, _, errors = finish(start_command(run, "prepare", "tiny.yaml", *options, file_limit=limit))
        assert status == 2
        assert "space" in one_line(errors)
        kept = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
        assert all(kept[file] == content for file, content in before.items() if "data" in file.parts)
        assert not list(run.path.rglob("*.partial")) + list(run.path.rglob(".*"))
    assert finish(start_command(run, "prepare", "tiny.yaml", *options))[0] == 0
    note("no space for token files", 3, "nothing; the older token files stay")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"may not mount a small file system here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.faults
def test_a_file_system_that_fills_up(small_disk: Path, prepared_run: Path, trained_run: TrainedRun, note: Note) -> None:
    """A real one, filled to its last byte by somebody else while training, again and again: all writes fail at some time."""
    folder = RunFolder(small_disk / "runs" / "tiny")
    shutil.copytree(prepared_run, folder.path)
    ballast, options, named = small_disk / "ballast", [], set()
    for step in (3, 14, LANGUAGE_STEPS + 4, LANGUAGE_STEPS + 17):
        process = start(folder, *options)
        wait_for_step(folder, step, process)
        with ballast.open("wb", buffering=0) as stream, suppress(OSError):
            while stream.write(b"x" * 1000):
                pass
        status, _, errors = finish(process)
        assert status == 2, errors
        assert one_line(errors).startswith(NO_SPACE)
        named.add(one_line(errors).removeprefix(NO_SPACE).partition(";")[0])
        ballast.unlink()
        for phase in ("language", "code"):
            for file in folder.resumable(phase):  # type: ignore[arg-type]
                load_checkpoint(file)
        options = ["--resume"]
    resume_to_the_end(folder)
    assert_same_run(folder, trained_run)
    assert [line["step"] for line in log(folder) if line["kind"] == "step"] == [*range(1, 19), *range(1, 31)]
    note("a file system of 8 MB filled while training", 4, f"nothing; it failed at {', '.join(sorted(named))}")

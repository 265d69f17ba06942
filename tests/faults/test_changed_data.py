"""Token files, corpora and folders that change under a run: noticed before anything is learnt from them."""

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from fault_processes import Note, assert_same_run, finish, one_line, resume_to_the_end, start, start_command, wait_for_step
from test_damaged import interrupt, refused, resume
from tiny_run import Recorder, TrainedRun, tiny_config

from mlx_codegen.checkpoint import load_checkpoint
from mlx_codegen.data import token_check
from mlx_codegen.data.prepare import read_manifest
from mlx_codegen.errors import UserError
from mlx_codegen.observer import StepMetrics
from mlx_codegen.training import lock
from mlx_codegen.training.phases import train_run
from mlx_codegen.training.run_folder import RunFolder, saved_config
from mlx_codegen.training.status import run_status


def flip_a_bit(file: Path, seed: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 4
    file.write_bytes(content)


def token_file(folder: RunFolder, suffix: str) -> Path:
    return folder.data("code") / f"bash-{suffix}"


@pytest.mark.parametrize("suffix", ["train.bin", "train.idx", "validation.bin", "validation.idx"])
def test_one_bit_of_a_token_file_is_noticed_at_the_start(run: RunFolder, suffix: str) -> None:
    """Of the same size, and still never trained on; put back, the run goes on."""
    interrupt(run, "code", 7)
    file = token_file(run, suffix)
    content = file.read_bytes()
    flip_a_bit(file)
    assert refused(run).startswith(f"{file} changed since it was prepared; put the old file back")
    file.write_bytes(content)
    resume(run)


def test_a_token_file_that_is_gone_is_named(run: RunFolder) -> None:
    """Removed, or cut short."""
    interrupt(run, "code", 7)
    file = token_file(run, "train.idx")
    file.write_bytes(file.read_bytes()[:-8])
    assert "not as large as its manifest says" in refused(run)
    file.unlink()
    assert str(run.data("code")) in refused(run)


def test_a_phase_that_is_over_needs_its_data_no_more(run: RunFolder, trained_run: TrainedRun) -> None:
    """A bit flipped in the language phase's token files is nothing that the code phase depends on."""
    interrupt(run, "code", 7)
    flip_a_bit(run.data("language") / "english-train.bin")
    resume(run)


class Meddler(Recorder):
    """Changes a file while it is trained on."""

    def __init__(self, file: Path, at_step: int) -> None:
        super().__init__()
        self.file, self.at_step = file, at_step

    def on_step(self, metrics: StepMetrics) -> None:
        super().on_step(metrics)
        if (metrics.phase, metrics.step) == ("code", self.at_step):
            flip_a_bit(self.file)


def test_token_files_that_change_while_training_reach_no_checkpoint(run: RunFolder, trained_run: TrainedRun, note: Note) -> None:
    """Noticed before the next save; with the old file put back, the end is the unbroken run's."""
    file = token_file(run, "train.bin")
    content, stamp = file.read_bytes(), file.stat().st_mtime_ns
    with pytest.raises(UserError, match=r"changed while it was trained on; the checkpoints are from before"):
        train_run(run, tiny_config(), ["language", "code"], Meddler(file, 12))
    assert load_checkpoint(run.checkpoint("code", "last")).progress.step == 10
    file.write_bytes(content)
    os.utime(file, ns=(stamp, stamp))
    resume(run)
    assert_same_run(run, trained_run)
    note("token file changed while it was trained on", 1, "nothing; steps 11 to 15 taken again")


def test_large_token_files_are_hashed_once_where_they_lie(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards size and time of change are believed, until one of them is another."""
    folder = run.data("code")
    manifest = read_manifest(folder)
    hashed: list[str] = []
    original = token_check._sha256
    monkeypatch.setattr(token_check, "_sha256", lambda file: hashed.append(file.name) or original(file))
    token_check.check_token_files(folder, manifest)
    token_check.check_token_files(folder, manifest)
    assert len(hashed) == 8, "small ones are hashed at every start"
    monkeypatch.setattr(token_check, "ALWAYS_HASHED_BYTES", 0)
    token_check.check_token_files(folder, manifest)
    token_check.check_token_files(folder, manifest)
    assert len(hashed) == 12
    flip_a_bit(token_file(run, "train.bin"))
    with pytest.raises(UserError, match=r"bash-train.bin changed"):
        token_check.check_token_files(folder, manifest)


# --- a corpus that vanished ---


@pytest.fixture
def run_of_own_files(tmp_path: Path) -> tuple[RunFolder, Path, dict[str, Any]]:
    """A run on a folder of texts."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(40):
        (corpus / f"{number}.sh").write_text(f"#!/bin/bash\n# Task {number}\nfor i in $(seq {number}); do echo $i; done\n" * 3)
    values = tiny_config("phases.language=null", "model.vocab_size=400").model_dump(mode="json", exclude_none=True)
    values["phases"]["code"] |= {"sources": [{"name": "own", "path": str(corpus)}], "steps": 8}
    return RunFolder(tmp_path / "runs" / "own"), corpus, values


def test_a_corpus_that_vanished_is_not_missed(run_of_own_files: tuple[RunFolder, Path, dict[str, Any]]) -> None:
    """Its token files are there: a run that was only prepared begins, one under way goes on."""
    from mlx_codegen.config import build_run_config
    from mlx_codegen.training.preparation import prepare_run

    folder, corpus, values = run_of_own_files
    config, recorder = build_run_config(values), Recorder()
    tokenizer = prepare_run(folder, config, ["code"], recorder)
    shutil.rmtree(corpus)
    with pytest.raises(UserError, match=f"no file or folder {corpus}"):  # the tokenizer may depend on it, too
        train_run(folder, config, ["code"], recorder)
    shutil.rmtree(folder.path / "tokenizer")
    (folder.path / "given.model").write_bytes(tokenizer.model_bytes)
    stop = recorder.stop_at("code", 3)
    given = folder.path / "given.model"
    assert train_run(folder, config, ["code"], recorder, stop, tokenizer_path=given) == "interrupted"
    assert any("going on with the token files made from it before" in message for message in recorder.messages)
    resume_config = saved_config(folder)
    assert train_run(folder, resume_config, ["code"], recorder, resume=True) == "finished"


def test_a_vanished_corpus_without_token_files_is_one_line(run_of_own_files: tuple[RunFolder, Path, dict[str, Any]]) -> None:
    from mlx_codegen.config import build_run_config

    folder, corpus, values = run_of_own_files
    shutil.rmtree(corpus)
    with pytest.raises(UserError, match=f"no file or folder {corpus}; give a path that exists"):
        train_run(folder, build_run_config(values), ["code"], Recorder())


# --- two processes ---


def test_a_second_process_is_refused_until_the_first_is_gone(run: RunFolder, trained_run: TrainedRun, note: Note) -> None:
    """One line that names it; killed, its lock is gone with it; status knows both."""
    first = start(run, "--set", "phases.language.steps=100000", "--phase", "language")
    wait_for_step(run, 3, first)
    for arguments in (["train", "tiny.yaml", "--resume"], ["train", "tiny.yaml", "--phase", "code"], ["prepare", "tiny.yaml"]):
        status, _, errors = finish(start_command(run, *arguments))
        assert status == 2
        assert one_line(errors).startswith(f"runs/tiny is in use by process {first.pid}; wait for it, stop it, or")
    assert (run_status(run.path).state, run_status(run.path).evidence) == ("running", f"process {first.pid}")
    first.send_signal(signal.SIGKILL)
    finish(first)
    assert lock.holder(run.path) is None
    shutil.rmtree(run.path / "language")
    run.metrics_file.unlink()
    run.config_file.unlink()
    assert finish(start(run))[0] == 0
    assert_same_run(run, trained_run)
    note("a second process on the run's folder", 3, "nothing; refused in one line")


def test_a_look_at_the_lock_does_not_keep_a_training_from_starting(run: RunFolder) -> None:
    """`status` takes it for a moment; a start waits for that."""
    import fcntl

    (run.path / lock.LOCK).touch()
    looking = os.open(run.path / lock.LOCK, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    process = start(run, "--phase", "language", "--set", "phases.language.steps=1")
    os.close(looking)
    assert finish(process)[0] == 0
    assert not (run.path / lock.LOCK).exists()


def test_a_lock_file_left_by_a_killed_process_means_nothing(run: RunFolder) -> None:
    """Not even if another process has its number now."""
    (run.path / lock.LOCK).write_text(f"{os.getpid()} somewhere\n")
    assert lock.holder(run.path) is None
    with lock.sole_user(run.path):
        assert lock.holder(run.path) == f"process {os.getpid()}"
        assert json.loads((run.data("code") / "manifest.json").read_text())
    assert not (run.path / lock.LOCK).exists()


@pytest.mark.faults
def test_four_starts_at_once_one_trains(run: RunFolder, trained_run: TrainedRun, note: Note) -> None:
    """Whoever comes first; the others are refused and change nothing."""
    processes = [start(run) for _ in range(4)]
    results = [finish(process) for process in processes]
    assert sorted(status for status, _, _ in results) == [0, 2, 2, 2]
    for status, _, errors in results:
        assert status == 0 or "is in use by process" in one_line(errors) or "already holds a trained" in one_line(errors)
    resume_to_the_end(run)
    assert_same_run(run, trained_run)
    note("four processes started at once in one folder", 1, "nothing; one trains")

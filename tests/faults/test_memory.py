"""Memory and file handles stay level however long a training takes, and what does not fit is said before it is tried."""

import gc
import os
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from fault_processes import Note, finish, one_line, start
from test_training import make_trainer
from tiny_run import Recorder, tiny_config

from mlx_codegen import backend
from mlx_codegen.config import RunConfig, load_run_config
from mlx_codegen.errors import UserError
from mlx_codegen.observer import EvaluationMetrics, Observer, StepMetrics
from mlx_codegen.training import memory
from mlx_codegen.training.phases import train_run
from mlx_codegen.training.run_folder import RunFolder

HANDLES = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")


class Gauge(Observer):
    """After each step: the memory of this process (on Linux), MLX's arrays, open files."""

    def __init__(self) -> None:
        self.resident: list[int] = []
        self.arrays: list[int] = []
        self.handles: list[int] = []
        self.evaluations = 0

    def on_step(self, metrics: StepMetrics) -> None:
        pages = Path("/proc/self/statm")
        self.resident.append(int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0)
        self.arrays.append(mx.get_active_memory())
        self.handles.append(sum(1 for _ in HANDLES.iterdir()))

    def on_evaluation(self, metrics: EvaluationMetrics) -> None:
        self.evaluations += 1


def slope(values: list[int]) -> float:
    """Bytes a step, over the second half."""
    half = values[len(values) // 2 :]
    return float(np.polyfit(np.arange(len(half)), np.array(half, float), 1)[0])


def test_arrays_and_file_handles_stay_level(run: RunFolder) -> None:
    """200 steps, 20 evaluations, 20 checkpoints: MLX holds the same after each step, and no file stays open."""
    gauge = Gauge()
    config = tiny_config("phases.code.checkpoint_every=10", "phases.code.validate_every=10")
    trainer = make_trainer(run, config, Recorder())
    trainer.observer, trainer.progress.total_steps = gauge, 200
    gc.collect()  # what earlier tests left behind must not go in the middle
    assert trainer.run(lambda: False) == "finished"
    assert max(gauge.arrays[-50:]) <= 1.05 * max(gauge.arrays[2:52]), "a few bytes more or less for batches made ahead"
    assert len(set(gauge.handles[2:])) == 1
    assert gauge.evaluations == 21


@pytest.mark.faults
def test_nano_for_2000_steps_with_50_evaluations(tmp_path: Path, note: Note) -> None:
    """The whole program as it is used, with short batches: level in the second half but for the noise of malloc."""
    changes = ["steps=2000", "batch_size=1", "validate_every=40", "validation_tokens=1024", "checkpoint_every=100"]
    config = load_run_config("nano", ["phases.code=null", *(f"phases.language.{change}" for change in changes)])
    gauge = Gauge()
    assert train_run(RunFolder(tmp_path / "nano"), config, ["language"], gauge) == "finished"
    assert gauge.evaluations == 51
    resident = slope(gauge.resident)
    assert abs(slope(gauge.arrays)) < 1 and len(set(gauge.handles[10:])) == 1
    assert resident < 8192, "malloc's noise: every step makes and frees about 100 MB"
    grown = (gauge.resident[-1] - gauge.resident[100]) / 2**20
    note(
        "nano, 2,000 steps, 50 evaluations", 1,
        f"no memory: {resident:+.0f} bytes a step, {grown:+.1f} MiB since step 100; {gauge.handles[-1]} open files all the time",
    )  # fmt: skip


@pytest.mark.faults
def test_a_model_of_few_bytes_for_3000_steps(run: RunFolder, note: Note) -> None:
    """Where the noise of malloc is small, a hundred bytes a step would be seen."""
    gauge = Gauge()
    changes = ["steps=3000", "validate_every=100", "checkpoint_every=500", "optimizer=muon"]
    config = tiny_config("phases.code=null", "model.dropout=0", *(f"phases.language.{change}" for change in changes))
    assert train_run(run, config, ["language"], gauge) == "finished"
    resident = slope(gauge.resident)
    assert resident < 100 and len(set(gauge.handles[10:])) == 1
    note(
        "a tiny model, 3,000 steps, 30 evaluations", 1, f"no memory: {resident:+.1f} bytes a step; {gauge.handles[-1]} open files"
    )


# --- more than there is ---

HUGE = ["phases.code.batch_size=4096", "phases.code.steps=1", "phases.language=null"]


def sets(changes: list[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def free_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(backend, "available_memory_bytes", lambda: size)


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="address space is limited and counted on Linux only")
def test_a_batch_that_cannot_fit_is_refused_with_what_would(run: RunFolder, note: Note) -> None:
    """In a process whose memory is limited for real; what the line advises is then done, and trains."""
    limit = 1_400_000_000
    status, _, errors = finish(start(run, *sets(HUGE), memory_limit=limit))
    line = one_line(errors)
    assert status == 2
    assert re.match(r"the code phase with batches of 4096 needs about 1\.\d GiB, 0\.\d GiB are free; what fits: --set ", line)
    advised = re.search(r"--set phases.code.batch_size=(\d+) --set phases.code.gradient_accumulation=(\d+)", line)
    assert advised is not None and int(advised[1]) * int(advised[2]) == 4096
    assert not run.holds_checkpoints()
    status, output, errors = finish(start(run, *sets(HUGE), "--batch-size", "auto", memory_limit=limit))
    assert (status, errors) == (0, "")
    found = re.search(r"code phase: 4096 sequences an update as (\d+) x (\d+)", output)
    assert found is not None and int(found[1]) * int(found[2]) == 4096
    assert "1 steps of 131,072 tokens" in output
    note("a batch that needs more memory than there is", 1, "nothing; refused with what fits, --batch-size auto trains")


def giant(*overrides: str) -> RunConfig:
    return load_run_config("small", ["phases.code=null", "phases.language.batch_size=64", *overrides])


def test_advice_follows_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is advised fits by the formulas of `sizes`, and the next larger batch does not."""
    config = giant()
    whole = memory.training_bytes(config, 64, False)
    for free in (whole // 2, whole // 3, whole // 10):
        batch = memory.largest_batch(config, 64, False, free)
        assert batch is not None
        assert memory.training_bytes(config, batch, False) <= free < memory.training_bytes(config, 2 * batch, False)
        assert f"phases.language.batch_size={batch} --set phases.language.gradient_accumulation={64 // batch}" in (
            memory.memory_advice(config, "language", free)
        )
    checkpointed = memory.training_bytes(config, 64, True)
    assert "--set gradient_checkpointing=true (about" in memory.memory_advice(config, "language", checkpointed)
    assert "choose a smaller model" in memory.memory_advice(config, "language", 1000)


def test_what_may_fit_is_only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas are no better than 35 %: between the two, a person decides."""
    config, told = giant(), list[str]()
    needed = memory.training_bytes(config, 64, False)
    free_memory(monkeypatch, needed + 1)
    memory.check_memory(config, "language", told.append)
    assert told == []
    free_memory(monkeypatch, int(needed / 1.2))
    memory.check_memory(config, "language", told.append)
    assert told[0].startswith("this may not fit: the language phase with batches of 64 needs about")
    free_memory(monkeypatch, int(needed / 1.5))
    with pytest.raises(UserError, match="the language phase with batches of 64 needs about"):
        memory.check_memory(config, "language", told.append)


def test_auto_tries_where_the_formulas_are_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real step in a process of its own: a batch whose measured peak is more than there is, is not taken."""
    config, told = tiny_config("phases.language=null", "phases.code.batch_size=256"), list[str]()
    measured = memory.peak_in_child(config, 256)
    assert measured is not None and 0.5 < measured / memory.training_bytes(config, 256, False) < 1.5
    free_memory(monkeypatch, measured * 8 // 10)  # the peak of two streams differs a little from run to run
    phase = memory.fitted_batches(config, ["code"], told.append).phase("code")
    assert phase is not None and phase.batch_size < 256 and phase.batch_size * phase.gradient_accumulation == 256
    assert told[-1] == f"code phase: 256 sequences an update as {phase.gradient_accumulation} x {phase.batch_size}"
    assert any("trying a step with batches of" in line for line in told)
    free_memory(monkeypatch, 1 << 40)
    assert memory.fitted_batches(config, ["code"], told.append) == config
    free_memory(monkeypatch, 1 << 10)
    with pytest.raises(UserError, match="no batch of it fits; choose a smaller model"):
        memory.fitted_batches(config, ["code"], told.append)


def test_a_gpu_without_memory_says_what_would_fit() -> None:
    """MLX's own words for it, of Metal and CUDA, become a line; any other error of MLX stays what it is."""
    for words in (
        "[metal::malloc] Attempting to allocate 48736917632 bytes which is greater than the maximum allowed buffer size.",
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "cudaMallocAsync(&data, size, stream) failed: out of memory",
        "[malloc_or_wait] Unable to allocate 134217728 bytes.",
    ):
        with (
            pytest.raises(UserError, match=r"out of memory: .* what fits: .* checkpoints are untouched"),
            memory.explaining_memory_errors(giant(), "language"),
        ):
            raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="broadcast"), memory.explaining_memory_errors(giant(), "language"):
        raise RuntimeError("[broadcast_shapes] Shapes (2,3) and (4,5) cannot be broadcast.")


@pytest.mark.parametrize("value", ["0", "-3", "many", "1.5"])
def test_batch_size_is_a_number_or_auto(run: RunFolder, value: str) -> None:
    from mlx_codegen.cli.train import _with_batches

    with pytest.raises(UserError, match="give a number of sequences from 1, or auto"):
        _with_batches(tiny_config(), ["code"], value)
    changed = _with_batches(tiny_config(), ["code"], "7")
    assert [settings.batch_size for name in ("language", "code") if (settings := changed.phase(name))] == [4, 7]  # type: ignore[arg-type]

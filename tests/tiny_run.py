"""A run small enough to train in two seconds, made once for all test files (a plugin of conftest.py).

Both phases read bundled text, with dropout, so that a resumed run has random state to get wrong.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_codegen.checkpoint import Progress, load_checkpoint, save_checkpoint
from mlx_codegen.config import PhaseConfig, RunConfig, build_run_config
from mlx_codegen.model import Transformer
from mlx_codegen.observer import EvaluationMetrics, Observer, PhaseStart, StepMetrics
from mlx_codegen.tokenizer import Tokenizer
from mlx_codegen.training.phases import train_run
from mlx_codegen.training.preparation import prepare_run
from mlx_codegen.training.run_folder import RunFolder

# Equality bit for bit is promised on the CPU only.
mx.set_default_device(mx.cpu)

LANGUAGE_STEPS, CODE_STEPS = 18, 30


def phase_values(source: str, **changes: Any) -> dict[str, Any]:
    """A phase on 150 bundled documents, as a config file would say it."""
    values: dict[str, Any] = {
        "sources": [{"name": source, "bundled": source, "max_documents": 150}],
        "validation_fraction": 0.1,
        "steps": LANGUAGE_STEPS if source == "english" else CODE_STEPS,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "validate_every": 6,
        "validation_tokens": 512,
        "checkpoint_every": 5,
    }
    return {**values, **changes}


def run_values() -> dict[str, Any]:
    """The whole tiny run as a config file would say it."""
    return {
        "model": {"n_layers": 2, "d_model": 32, "n_heads": 2, "vocab_size": 448, "context_length": 32, "dropout": 0.1},
        "tokenizer": {"training_bytes": 30_000},
        "phases": {"language": phase_values("english"), "code": phase_values("bash")},
        "seed": 3,
        "precision": "float32",
    }


def tiny_config(*overrides: str) -> RunConfig:
    return build_run_config(run_values(), overrides)


def phase_settings(**changes: Any) -> PhaseConfig:
    return PhaseConfig.model_validate(phase_values("bash", **changes))


@dataclass
class Recorder(Observer):
    """Keeps everything that it is told."""

    messages: list[str] = field(default_factory=list)
    starts: list[PhaseStart] = field(default_factory=list)
    steps: list[StepMetrics] = field(default_factory=list)
    evaluations: list[EvaluationMetrics] = field(default_factory=list)
    checkpoints: list[tuple[str, int]] = field(default_factory=list)
    ends: list[tuple[str, str]] = field(default_factory=list)

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_phase_start(self, start: PhaseStart) -> None:
        self.starts.append(start)

    def on_step(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)

    def on_evaluation(self, metrics: EvaluationMetrics) -> None:
        self.evaluations.append(metrics)

    def on_checkpoint(self, path: Path, step: int) -> None:
        self.checkpoints.append((f"{path.parent.name}/{path.name}", step))

    def on_phase_end(self, phase: str, reason: str) -> None:
        self.ends.append((phase, reason))

    def stop_at(self, phase: str, step: int) -> Callable[[], bool]:
        """A `should_stop` that is true from this step of this phase on."""
        return lambda: bool(self.steps) and self.steps[-1].phase == phase and self.steps[-1].step >= step


@pytest.fixture(scope="session")
def prepared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and token files of the tiny run, nothing trained. To be copied, not changed."""
    folder = RunFolder(tmp_path_factory.mktemp("prepared") / "tiny")
    prepare_run(folder, tiny_config(), ["language", "code"], Observer())
    return folder.path


@dataclass(frozen=True)
class TrainedRun:
    """An unbroken run of both phases. To be copied, not changed."""

    folder: RunFolder
    recorder: Recorder


@pytest.fixture(scope="session")
def trained_run(prepared_run: Path) -> TrainedRun:
    """What every interrupted run is compared with."""
    folder = RunFolder(prepared_run.with_name("trained"))
    shutil.copytree(prepared_run, folder.path)
    recorder = Recorder()
    assert train_run(folder, tiny_config(), ["language", "code"], recorder) == "finished"
    return TrainedRun(folder, recorder)


@pytest.fixture
def run(prepared_run: Path, tmp_path: Path) -> RunFolder:
    """A copy of the prepared run, for a test to train in: `runs/tiny` below the test's own folder."""
    folder = RunFolder(tmp_path / "runs" / "tiny")
    shutil.copytree(prepared_run, folder.path)
    return folder


@pytest.fixture
def trained_copy(trained_run: TrainedRun, tmp_path: Path) -> RunFolder:
    """A copy of the trained run, for a test to spoil: `runs/tiny` below the test's own folder."""
    folder = RunFolder(tmp_path / "runs" / "tiny")
    shutil.copytree(trained_run.folder.path, folder.path)
    return folder


def tiny_tokenizer(folder: RunFolder) -> Tokenizer:
    return Tokenizer.load(folder.tokenizer_file)


def metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """The log without what depends on time and memory."""
    lines = [json.loads(line) for line in folder.metrics_file.read_text(encoding="utf-8").splitlines()]
    timing = ("tokens_per_second", "peak_memory_bytes")
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def state_on_disk(file: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """All arrays of a checkpoint as bytes, and its progress without the time that it took."""
    checkpoint = load_checkpoint(file)
    arrays = mx.load(str(file))
    progress = dataclasses.asdict(checkpoint.progress) | {"train_seconds": 0.0}
    progress["earlier"] = [each | {"train_seconds": 0.0} for each in progress["earlier"]]
    return {name: memoryview(value).tobytes() for name, value in arrays.items()}, progress


def save_model(file: Path, model: Transformer, tokenizer: Tokenizer, phase: str = "code") -> None:
    """A weights-only checkpoint of any model."""
    save_checkpoint(file, model, tokenizer, tiny_config(), Progress(phase))

"""The folder of one run: what lies where, and with which configuration it was started.

runs/<name>/config.yaml             the resolved configuration
            tokenizer/              tokenizer.model
            data/<phase>/           token files
            <phase>/                best.safetensors, last.safetensors, previous.safetensors
            metrics.jsonl           one line per step and evaluation
            lock                    while a process trains here
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlx_codegen.config import PHASES, PhaseName, RunConfig, build_run_config, read_yaml
from mlx_codegen.errors import UserError

CHECKPOINTS = ("best", "last", "previous")


@dataclass(frozen=True)
class RunFolder:
    """Names of everything in one run's folder."""

    path: Path

    @property
    def config_file(self) -> Path:
        """Resolved configuration."""
        return self.path / "config.yaml"

    @property
    def tokenizer_file(self) -> Path:
        """SentencePiece model."""
        return self.path / "tokenizer" / "tokenizer.model"

    @property
    def tokenizer_inputs_file(self) -> Path:
        """What the tokenizer was made from, to tell whether it is still up to date."""
        return self.path / "tokenizer" / "inputs.txt"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per step and evaluation."""
        return self.path / "metrics.jsonl"

    def data(self, phase: PhaseName) -> Path:
        """Token files of a phase."""
        return self.path / "data" / phase

    def checkpoint(self, phase: PhaseName, name: str) -> Path:
        """`best`, `last` or `previous` checkpoint of a phase."""
        return self.path / phase / f"{name}.safetensors"

    def holds_checkpoints(self) -> bool:
        """True once anything was trained here."""
        return any(self.checkpoint(phase, name).exists() for phase in PHASES for name in CHECKPOINTS)

    def resumable(self, phase: PhaseName) -> list[Path]:
        """The checkpoints that are there with everything to go on from, newest first."""
        return [file for name in ("last", "previous") if (file := self.checkpoint(phase, name)).exists()]


def saved_config(folder: RunFolder, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration that a run was started with, overrides applied. Raises UserError where there is no run.

    Model and tokenizer cannot change under a run; everything else can.
    """
    if not folder.config_file.exists():
        raise UserError(f"no run in {folder.path} to resume; leave --resume out to start one")
    saved = build_run_config(read_yaml(folder.config_file), origin=str(folder.config_file))
    changed = build_run_config(read_yaml(folder.config_file), overrides, origin="--set")
    if changed.model != saved.model or changed.tokenizer != saved.tokenizer:
        raise UserError(f"{folder.path}: --set cannot change model or tokenizer of a run that has begun; use another --name")
    return changed


def config_to_save(folder: RunFolder, config: RunConfig, phase: PhaseName) -> RunConfig:
    """The configuration to save: of a phase trained before and not now, what it was trained with."""
    if not folder.config_file.exists():
        return config
    saved = build_run_config(read_yaml(folder.config_file), origin=str(folder.config_file))
    trained = [name for name in PHASES if name != phase and folder.checkpoint(name, "best").exists()]
    settings = config.phases.model_copy(update={name: saved.phase(name) for name in trained})
    return config.model_copy(update={"phases": settings})


def refuse_other_model(folder: RunFolder, config: RunConfig) -> None:
    """A run's phases share one model and one tokenizer. Checked before anything in the folder is changed."""
    if not folder.holds_checkpoints() or not folder.config_file.exists():
        return
    saved = build_run_config(read_yaml(folder.config_file), origin=str(folder.config_file))
    if (saved.model, saved.tokenizer) != (config.model, config.tokenizer):
        raise UserError(f"{folder.path} holds a model of another shape or tokenizer; give this run another --name")


def remove_abandoned(folder: RunFolder) -> None:
    """Files half written by a process that was killed: whoever holds the lock is the only one at work."""
    for file in folder.path.rglob(".*.tmp*"):
        file.unlink(missing_ok=True)
    for partial in folder.path.glob("data/*.partial"):
        shutil.rmtree(partial, ignore_errors=True)

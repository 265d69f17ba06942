"""How every run and every release stands, from files alone: nothing is loaded or changed."""

import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlx_codegen.checkpoint import FORMAT, Progress
from mlx_codegen.config import PHASES, PhaseName, RunConfig, build_run_config, read_yaml
from mlx_codegen.errors import UserError
from mlx_codegen.hub.folder import FACTS_FILE, read_facts
from mlx_codegen.observer import EvaluationMetrics
from mlx_codegen.training.activity import activity, file_status
from mlx_codegen.training.history import History, PhaseHistory, read_history
from mlx_codegen.training.lock import LOCK
from mlx_codegen.training.run_folder import RunFolder


@dataclass(frozen=True)
class CheckpointStatus:
    """One checkpoint file. `written` in seconds since 1970."""

    path: Path
    written: float
    progress: Progress
    parameters: int


@dataclass(frozen=True)
class PhaseStatus:
    """How far a phase is. Losses in nats per token; None is what is not known (yet)."""

    phase: PhaseName
    finished: bool = False
    step: int = 0
    total_steps: int | None = None
    tokens_seen: int = 0
    tokens_per_second: float | None = None
    best_loss: float | None = None
    best_bits_per_byte: float | None = None
    best_step: int | None = None

    @property
    def begun(self) -> bool:
        """True once anything was measured."""
        return self.step > 0 or self.best_loss is not None

    @property
    def share(self) -> float:
        """Done, from 0 to 1. A phase that stopped early because nothing was gained any more is done."""
        return 1.0 if self.finished else min(1.0, self.step / self.total_steps) if self.total_steps else 0.0


@dataclass(frozen=True)
class EvaluationStatus:
    """The key figures of a report.json, by name: those with an aim, else the first of each part."""

    path: Path
    time: str
    figures: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class RunStatus:
    """A run in runs/. `state` is `running`, `finished`, `stopped`, or `prepared` when no step was taken yet."""

    name: str
    path: Path
    state: str
    evidence: str
    """Why the state is believed to be so."""
    model: str
    parameters: int | None
    size_bytes: int
    phases: list[PhaseStatus]
    checkpoint: CheckpointStatus | None
    evaluation: EvaluationStatus | None
    notes: list[str] = field(default_factory=list)
    """What could not be read."""


@dataclass(frozen=True)
class ReleaseStatus:
    """An exported model, as in weights/."""

    name: str
    path: Path
    model: str
    dtype: str
    size_bytes: int
    phases: list[PhaseStatus]
    evaluation: EvaluationStatus | None
    notes: list[str] = field(default_factory=list)


def is_run(path: Path) -> bool:
    """True for a folder that `mlx-codegen train` or `prepare` made."""
    folder = RunFolder(path)
    return any(file.is_file() for file in (folder.metrics_file, folder.config_file, folder.tokenizer_file, path / LOCK))


def is_release(path: Path) -> bool:
    """True for a folder that `mlx-codegen export` wrote."""
    return (path / FACTS_FILE).is_file()


def is_empty(path: Path) -> bool:
    """True for a folder with nothing in it."""
    return path.is_dir() and not any(path.iterdir())


def find_run(name: str | Path) -> RunFolder:
    """A run from its path, or from its name under runs/. Raises UserError where there is none."""
    given = Path(name)
    for path in (given, Path("runs") / given):
        if is_run(path) or is_empty(path):  # empty: just begun, the tokenizer is being trained
            return RunFolder(path)
    what = "is no run of mlx_codegen" if given.exists() else "is not there"
    others = sorted(path.name for path in _folders(Path("runs")) if is_run(path))
    known = f"runs here: {', '.join(others)}" if others else "train one: mlx-codegen train configs/nano.yaml"
    raise UserError(f"{name} {what} (a run has metrics.jsonl or config.yaml in it); {known}")


def find_all(folder: Path) -> tuple[list[Path], list[Path]]:
    """Runs and releases: the folder itself, or those in it, by name."""
    if is_run(folder):
        return [folder], []
    if is_release(folder):
        return [], [folder]
    inside = sorted(_folders(folder))
    return [path for path in inside if is_run(path)], [path for path in inside if is_release(path)]


def _folders(path: Path) -> Iterable[Path]:
    return [inside for inside in path.iterdir() if inside.is_dir()] if path.is_dir() else []


def run_status(path: Path, history: History | None = None) -> RunStatus:
    """Everything about one run. What cannot be read is named in `notes` and hides nothing else.

    Whoever follows the run anyway gives the `history` that was read so far.
    """
    folder, notes = RunFolder(path), list[str]()
    config = _config(folder, notes)
    histories = _histories(folder, history, notes)
    checkpoints = [status for file in sorted(path.glob("*/*.safetensors")) if (status := _checkpoint(file, notes))]
    names = config.phase_names() if config else [name for name in PHASES if name in histories]
    phases = [_phase(name, histories.get(name, PhaseHistory()), checkpoints) for name in names]
    # Without its language phase (--phase code --init-from ...) a run is as complete as it was meant to be.
    all_done = bool(phases) and phases[-1].finished and all(phase.finished or not phase.begun for phase in phases)
    state, evidence = activity(folder, histories, all_done, time.time())
    newest = max(checkpoints, key=lambda each: each.written, default=None)
    return RunStatus(
        name=path.resolve().name,
        path=path,
        state=state,
        evidence=evidence,
        model=_model_name(config.model.model_dump()) if config else "",
        parameters=newest.parameters if newest else None,
        size_bytes=_size_bytes(path),
        phases=phases,
        checkpoint=newest,
        evaluation=_evaluation([path, *(path / name for name in PHASES)], notes),
        notes=notes,
    )


def release_status(path: Path) -> ReleaseStatus:
    """Everything about one exported model. What cannot be read is named in `notes`."""
    model, dtype, progress, notes = "", "", list[Progress](), list[str]()
    try:
        facts = read_facts(path)
        quantization = facts.get("quantization")
        dtype = f"{quantization['bits']} bits" if quantization else str(facts["dtype"])
        progress = [Progress(**values) for values in (*facts["earlier_progress"], facts["progress"])]
        model = _model_name(facts["model"])
    except UserError as error:
        notes.append(str(error))
    except (KeyError, TypeError, ValueError) as error:
        notes.append(f"{path / FACTS_FILE}: written by another version of mlx_codegen ({error}); use that one")
    return ReleaseStatus(
        name=path.resolve().name,
        path=path,
        model=model,
        dtype=dtype,
        size_bytes=_size_bytes(path),
        phases=[_from_progress(each) for each in progress],
        evaluation=_evaluation([path], notes),
        notes=notes,
    )


def as_json(runs: list[RunStatus], releases: list[ReleaseStatus]) -> str:
    """For programs. Times are seconds since 1970."""
    values = {"runs": [asdict(each) for each in runs], "releases": [asdict(each) for each in releases]}
    return json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n"


def _config(folder: RunFolder, notes: list[str]) -> RunConfig | None:
    if not folder.config_file.exists():
        return None
    try:
        return build_run_config(read_yaml(folder.config_file), origin=str(folder.config_file))
    except UserError as error:
        notes.append(str(error))
        return None


def _histories(folder: RunFolder, history: History | None, notes: list[str]) -> dict[PhaseName, PhaseHistory]:
    try:
        history = history or read_history(folder.metrics_file)
    except (UserError, OSError) as error:
        notes.append(str(error))
        return {}
    if history.broken_lines:
        notes.append(f"{folder.metrics_file}: {_counted(history.broken_lines, 'broken line')} passed over")
    return history.phases


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _checkpoint(file: Path, notes: list[str]) -> CheckpointStatus | None:
    """From the header of a checkpoint; its arrays are not read."""
    from safetensors import SafetensorError, safe_open

    if file.name.startswith("."):  # being written at this moment
        return None
    try:
        with safe_open(file, framework="numpy") as stream:
            metadata = stream.metadata() or {}
            if metadata.get("format") != FORMAT:
                return None
            shapes = [stream.get_slice(name).get_shape() for name in stream.keys() if name.startswith("model.")]  # noqa: SIM118
        progress = Progress(**json.loads(metadata["progress"]))
        return CheckpointStatus(file, file.stat().st_mtime, progress, sum(math.prod(shape) for shape in shapes))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        notes.append(f"{file}: not a whole checkpoint ({error})")
        return None


def _phase(name: PhaseName, history: PhaseHistory, checkpoints: list[CheckpointStatus]) -> PhaseStatus:
    """From the log, and from the checkpoints where they know more: a log may be gone, and never says that a phase is over."""
    saved = [each.progress for each in checkpoints if each.progress.phase == name]
    furthest = max(saved, key=lambda progress: (progress.step, progress.finished), default=None)
    if not history.steps and not history.evaluations:
        return _from_progress(furthest) if furthest else PhaseStatus(name)
    last, best = history.steps[-1] if history.steps else None, history.best()
    return PhaseStatus(
        phase=name,
        # A finished phase that is trained on is not finished any more.
        finished=any(progress.finished and progress.step >= history.step() for progress in saved),
        step=history.step(),
        total_steps=last.total_steps if last else furthest.total_steps if furthest else None,
        tokens_seen=last.tokens_seen if last else 0,
        tokens_per_second=last.tokens_per_second if last and last.tokens_per_second > 0 else None,
        **_best(best),
    )


def _best(best: EvaluationMetrics | None) -> dict[str, Any]:
    if best is None:
        return {}
    return {"best_loss": best.loss, "best_bits_per_byte": best.bits_per_byte, "best_step": best.step}


def _from_progress(progress: Progress) -> PhaseStatus:
    return PhaseStatus(
        phase="language" if progress.phase == "language" else "code",
        finished=progress.finished or 0 < progress.total_steps <= progress.step,
        step=progress.step,
        total_steps=progress.total_steps,
        tokens_seen=progress.tokens_seen,
        tokens_per_second=progress.tokens_seen / progress.train_seconds if progress.train_seconds else None,
        best_loss=progress.best_loss,
        best_bits_per_byte=progress.validation.get("bits_per_byte"),
        best_step=progress.best_step if progress.best_loss is not None else None,
    )


def _evaluation(folders: list[Path], notes: list[str]) -> EvaluationStatus | None:
    """The newest report.json among the folders where `evaluate` puts it."""
    files = [file for folder in folders if (file := folder / "report.json").is_file()]
    if not files:
        return None
    file = max(files, key=lambda each: each.stat().st_mtime)
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        return EvaluationStatus(file, str(report["time"]), _key_figures(report["parts"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        notes.append(f"{file}: no report of mlx-codegen evaluate ({error})")
        return None


def _key_figures(parts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    chosen: dict[str, dict[str, Any]] = {}
    for part in parts:
        figures = part["figures"]
        aimed = {name: figure for name, figure in figures.items() if figure.get("target") is not None}
        chosen |= aimed or dict(list(figures.items())[:1])
    return {
        name: {key: figure[key] for key in ("value", "low", "high", "samples", "unit", "target")}
        for name, figure in chosen.items()
    }


def _model_name(model: dict[str, Any]) -> str:
    return f"{model['family']} {model['n_layers']} x {model['d_model']}"


def _size_bytes(path: Path) -> int:
    return sum(status.st_size for file in path.rglob("*") if (status := file_status(file)) and not file.is_dir())

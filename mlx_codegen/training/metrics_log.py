"""metrics.jsonl: one JSON object per step and evaluation, for charts and later reading."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_codegen.errors import UserError
from mlx_codegen.observer import EvaluationMetrics, Observer, PhaseStart, StepMetrics


class MetricsLog(Observer):
    """Appends to a file. When a phase goes on from a checkpoint, lines of steps after it are taken out first."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_phase_start(self, start: PhaseStart) -> None:
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _stays(line, start)]
            write_atomically(self._path, "".join(line + "\n" for line in kept).encode())

    def on_step(self, metrics: StepMetrics) -> None:
        values = asdict(metrics)
        values["perplexity"] = math.exp(min(metrics.loss, 700.0)) if math.isfinite(metrics.loss) else math.nan
        self._append({"kind": "step", **values})

    def on_evaluation(self, metrics: EvaluationMetrics) -> None:
        self._append({"kind": "evaluation", **asdict(metrics)})

    def _append(self, values: dict[str, Any]) -> None:
        # JSON has no NaN: a loss that is not finite is written as null.
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(plain) + "\n")
        except OSError as error:
            error.filename = str(self._path)  # a write to an open file does not say which
            raise


def _stays(line: str, start: PhaseStart) -> bool:
    """False for lines that the coming steps will write again, and for half a line left by a crash."""
    try:
        values = json.loads(line)
        phase, step = values["phase"], int(values["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    # An evaluation at the first step is repeated only when the phase starts from nothing.
    return phase != start.phase or 0 < start.first_step >= step


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, flush, rename. Raises UserError for a device, which would be gone after that."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: that is a device or a pipe; name a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)

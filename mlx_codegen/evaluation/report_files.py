"""Reports on disk: three files beside a model, written whole, and found again."""

import datetime
import json
import math
import os
from pathlib import Path
from typing import Any

from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.charts import report_png
from mlx_codegen.evaluation.compare import StoredReport
from mlx_codegen.evaluation.figures import Figure, PartResult
from mlx_codegen.evaluation.report import Report, as_json, as_markdown
from mlx_codegen.generation.engine import find_checkpoint
from mlx_codegen.training.metrics_log import write_atomically

FILE = "report.json"


def write_report(report: Report, folder: Path) -> str | None:
    """Writes report.json, report.md and report.png; each is there whole or not at all.

    Returns None, or one line that says why there is no picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing, picture = None, b""
    try:
        picture = report_png(report)
    except UserError as error:
        missing = f"without report.png: {error}"
    if picture:
        write_atomically(folder / "report.png", picture)
    else:
        (folder / "report.png").unlink(missing_ok=True)  # an older one would show other figures
    write_atomically(folder / "report.md", as_markdown(report).encode())
    write_atomically(folder / FILE, as_json(report).encode())
    return missing


def make_folder(folder: Path) -> None:
    """The folder that a report goes to. Raises UserError where nothing can be written to it, OSError where it cannot be made."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write in {folder}; give another folder with --output")


def own_folder(model: Path) -> Path:
    """Where a model's report goes that must not overwrite others': `last-report` for last.safetensors, else beside it."""
    return model if model.is_dir() else model.with_name(f"{model.stem}-report")


def find_report(path: Path) -> Path | None:
    """The report.json that belongs to a path: itself, in a folder, or beside a checkpoint and of no other.

    None where a model has none. Raises UserError where there is no model either.
    """
    if path.suffix == ".json" and path.is_file():
        return path
    if path.is_dir() and (path / FILE).is_file():
        return path / FILE
    checkpoint = find_checkpoint(path)
    if path.is_dir():
        return None
    # `evaluate RUN` and `evaluate CHECKPOINT` write to folders that other checkpoints share
    beside = (own_folder(path), path.parent, path.parent.parent)
    found = [folder / FILE for folder in beside if (folder / FILE).is_file() and _is_of(folder / FILE, checkpoint)]
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def read_report(file: Path) -> StoredReport:
    """Reads a report.json. Raises UserError for what is none."""
    try:
        return report_from(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{file}: no report of mlx-codegen evaluate, or a damaged one; make it anew") from None


def stored(report: Report) -> StoredReport:
    """A report as it would be read again."""
    return report_from(json.loads(as_json(report)))


def report_from(values: dict[str, Any]) -> StoredReport:
    """A report from its JSON; null is a figure that could not be had. KeyError and TypeError for something else."""
    parts = []
    for part in values["parts"]:
        figures = {name: _figure(figure) for name, figure in part["figures"].items()}
        parts.append(PartResult(part["name"], part["title"], figures, list(part["notes"])))
    model, time = str(values["model"]), str(values.get("time", ""))
    settings = {"top_k": 50, "top_p": 0.9} | values["settings"]  # older reports do not say: they knew no other
    return StoredReport(model, settings, parts, str(values.get("tokenizer", "")), _trained_since(model, time))


def _trained_since(model: str, time: str) -> bool:
    """Whether a model was written again after it was measured; False where that cannot be told."""
    try:
        return Path(model).stat().st_mtime > datetime.datetime.fromisoformat(time).timestamp() + 1
    except (ValueError, OSError):
        return False


def _is_of(file: Path, checkpoint: Path) -> bool:
    # By the end of its path: a run may have been moved together with its reports
    return Path(read_report(file).model).parts[-2:] == checkpoint.absolute().parts[-2:]


def _figure(values: dict[str, Any]) -> Figure:
    value, low, high = (math.nan if values[name] is None else float(values[name]) for name in ("value", "low", "high"))
    prompts = {name: (float(total), int(number)) for name, (total, number) in values.get("prompts", {}).items()}
    target = None if values.get("target") is None else float(values["target"])
    return Figure(value, low, high, int(values["samples"]), str(values["unit"]), target, prompts)

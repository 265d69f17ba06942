"""`mlx-codegen compare`: models side by side, and what moved by more than noise."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_codegen.errors import UserError

if TYPE_CHECKING:
    from mlx_codegen.evaluation.compare import StoredReport
    from mlx_codegen.evaluation.context import Settings


def compare(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="Run folders, checkpoints, or report.json files.")],
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Measure those that have no report yet.")] = False,
    png: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw a picture, too.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Put the reports of models side by side; the first is what the others are measured against.

    Example: mlx-codegen compare runs/nano runs/tiny --png sizes.png
    """
    if len(models) < 2:
        raise UserError("compare needs two models or more: mlx-codegen compare A B")
    if png is not None and (png.suffix.lower() != ".png" or not png.parent.is_dir()):
        raise UserError(f"--png {png}: give a name that ends in .png, in a folder that exists")
    from mlx_codegen.cli.comparison_display import draw_comparison
    from mlx_codegen.evaluation.compare import as_json, short_names
    from mlx_codegen.evaluation.compare import compare as put_together

    comparison = put_together(short_names(models), load_reports(models, evaluate))
    if png is not None:
        from mlx_codegen.evaluation.charts import comparison_png
        from mlx_codegen.training.metrics_log import write_atomically

        write_atomically(png, comparison_png(comparison))
    if json:
        print(as_json(comparison))
        return
    draw_comparison(comparison)
    if png is not None:
        print(png)


def load_reports(models: list[Path], evaluate: bool, like: "StoredReport | None" = None) -> "list[StoredReport]":
    """Reads every report, measuring first those that are missing, with the settings of those that are not, or of `like`."""
    from mlx_codegen.evaluation.report_files import find_report, own_folder, read_report
    from mlx_codegen.generation.engine import find_checkpoint

    files = [find_report(model) for model in models]
    for model, file in zip(models, files, strict=True):
        if file is None and not evaluate:
            # The folder is one that is looked into again
            output = "" if model.is_dir() else f" --output {own_folder(model)}"
            raise UserError(f"{model} has no report yet; make it: mlx-codegen evaluate {model}{output}, or add --evaluate")
    found = {model: read_report(file) for model, file in zip(models, files, strict=True) if file is not None}
    for model in models:
        if model not in found:
            settings = settings_like(next(iter(found.values()), like))
            found[model] = measured(find_checkpoint(model), own_folder(model), settings)
    return [found[model] for model in models]


def measured(checkpoint: Path, folder: Path, settings: "Settings") -> "StoredReport":
    """Evaluates a model, writes its report to `folder` and reads it again."""
    from mlx_codegen.cli.evaluate import measure
    from mlx_codegen.evaluation.report_files import FILE, make_folder, read_report, write_report
    from mlx_codegen.generation.engine import load

    engine = load(checkpoint)
    make_folder(folder)
    if missing := write_report(measure(engine, settings), folder):
        typer.echo(missing, err=True)
    typer.echo(f"{folder / FILE}", err=True)
    return read_report(folder / FILE)


def settings_like(report: "StoredReport | None") -> "Settings":
    """The settings of a report, as far as this version knows them; the usual ones where there is none."""
    from dataclasses import fields

    from mlx_codegen.evaluation.context import Settings
    from mlx_codegen.evaluation.report import PARTS, USUAL_PARTS

    jobs = os.cpu_count() or 1
    if report is None:
        return Settings(parts=USUAL_PARTS, jobs=jobs)
    known = {field.name for field in fields(Settings)}
    values: dict[str, Any] = {name: value for name, value in report.settings.items() if name in known}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    parts = tuple(part.name for part in report.parts if part.name in PARTS)
    return Settings(**{**values, "parts": parts, "jobs": jobs})

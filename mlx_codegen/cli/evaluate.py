"""`mlx-codegen evaluate`: what a model's scripts are worth, measured by parsing, linting and running them."""

import os
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[Path, typer.Argument(help="Run folder, checkpoint or exported model.")],
    only: Annotated[
        list[str] | None, typer.Option(help="A part, see above. Repeatable. Default: all that takes minutes and not hours.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Texts for each test prompt.")] = 4,
    temperature: Annotated[float, typer.Option(help="How varied the texts are.")] = 0.8,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer in tokens.")] = 300,
    seed: Annotated[int, typer.Option(help="Same seed, same texts, same figures.")] = 0,
    seen: Annotated[int, typer.Option(min=0, help="Test prompts of each task that was trained on.")] = 1,
    unseen: Annotated[int, typer.Option(min=0, help="Test prompts of each held-out task.")] = 3,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the report goes. Default: beside the model.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Sandboxes at a time.")] = os.cpu_count() or 1,
) -> None:
    """Measure a model on texts and tasks that training never saw.

    Parts: syntax (do scripts parse, does shellcheck find anything), function (they are run and checked), accepted (what
    --valid gives; only when asked for).

    Example: mlx-codegen evaluate runs/tiny --only syntax --samples 2
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mlx_codegen.cli.corpus import load as load_tasks
    from mlx_codegen.evaluation.context import Context, Settings
    from mlx_codegen.evaluation.report import USUAL_PARTS, as_json, as_markdown, check_parts
    from mlx_codegen.evaluation.report import evaluate as run_parts
    from mlx_codegen.generation.engine import check_sampling, find_checkpoint, load

    parts = tuple(only) if only else USUAL_PARTS
    check_parts(parts)
    check_sampling({"temperature": temperature, "max_tokens": max_tokens, "seed": seed})
    settings = Settings(parts, samples, temperature, max_tokens, seed, seen, unseen, jobs)
    checkpoint = find_checkpoint(model)
    folder = output or (model if model.is_dir() else model.parent)
    engine = load(checkpoint)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars: dict[str, int] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done)  # type: ignore[arg-type]

        report = run_parts(Context(engine, load_tasks(None), settings, on_progress))
    draw(report)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("report.json", as_json(report)), ("report.md", as_markdown(report))):
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{folder / 'report.json'}")


def draw(report: object) -> None:
    """One table for each part."""
    from rich.console import Console
    from rich.table import Table

    from mlx_codegen.evaluation.report import Report, figure_texts

    assert isinstance(report, Report)
    console = Console(highlight=False)
    for part in report.parts:
        table = Table("figure", "value", "95 % interval", "samples", "aim", title=part.title, title_justify="left")
        for name, figure in part.figures.items():
            value, interval, aim = figure_texts(figure)
            met = figure.target is not None and figure.value >= figure.target
            table.add_row(name, value, interval, f"{figure.samples:,}", aim, style="green" if met else None)
        console.print(table)
        for note in part.notes:
            console.print(note, style="dim", soft_wrap=True)

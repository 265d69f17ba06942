"""`mlx-codegen evaluate`: what a model's scripts are worth, measured by parsing, linting and running them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlx_codegen.evaluation.context import Settings
    from mlx_codegen.evaluation.report import Report
    from mlx_codegen.generation.engine import Engine


def evaluate(
    model: Annotated[Path, typer.Argument(help="Run folder, checkpoint or exported model.")],
    only: Annotated[
        list[str] | None, typer.Option(help="A part, see above. Repeatable. Default: all that takes minutes and not hours.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Texts for each test prompt.")] = 4,
    temperature: Annotated[float, typer.Option(help="How varied the texts are.")] = 0.8,
    top_k: Annotated[int, typer.Option("--top-k", help="Draw from the k likeliest tokens; 0 from all.")] = 50,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens with this share of probability.")] = 0.9,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer in tokens.")] = 300,
    seed: Annotated[int, typer.Option(help="Same seed, same texts, same figures.")] = 0,
    seen: Annotated[
        int, typer.Option(min=0, help="Test prompts of each trained task: with unseen values, and in unseen words.")
    ] = 1,
    unseen: Annotated[int, typer.Option(min=0, help="Test prompts of each held-out task.")] = 3,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the report goes. Default: beside the model.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Sandboxes at a time.")] = os.cpu_count() or 1,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Requests and commands (.jsonl) for the part commands. Default: those of the run."),
    ] = None,
) -> None:
    """Measure a model on texts and tasks that training never saw.

    Parts: perplexity (how well unseen text is foretold), syntax (do scripts parse, does shellcheck find anything),
    function (they are run and checked), commands (held-out one-line commands beside those that people wrote), probes
    (small questions with one right answer: brackets, keywords, indentation, patterns, English), bilingual (English
    before and after the code phase); only when asked for: answers (the best of eight, as generate answers), python
    (functions that pass their tests, for models trained on Python).

    Example: mlx-codegen evaluate runs/tiny --only syntax --samples 2
    """
    from mlx_codegen.evaluation.context import Settings
    from mlx_codegen.evaluation.pairs import file_sources
    from mlx_codegen.evaluation.report import USUAL_PARTS, check_parts
    from mlx_codegen.evaluation.report_files import make_folder
    from mlx_codegen.generation.engine import check_sampling, find_checkpoint, load

    parts = tuple(only) if only else USUAL_PARTS
    check_parts(parts)
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    check_sampling(sampling)
    files = tuple(map(str, pairs or ()))
    file_sources(files)
    settings = Settings(parts, samples, seen=seen, unseen=unseen, jobs=jobs, pairs=files, **sampling)
    checkpoint = find_checkpoint(model)
    folder = output or (model if model.is_dir() else model.parent)
    engine = load(checkpoint)
    make_folder(folder)  # found out now, not after measuring
    report = measure(engine, settings)
    draw(report)
    save(report, folder)


def measure(engine: "Engine", settings: "Settings") -> "Report":
    """Evaluate with a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mlx_codegen.cli.corpus import load as load_tasks
    from mlx_codegen.evaluation.context import Context
    from mlx_codegen.evaluation.report import evaluate as run_parts

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars: dict[str, int] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done)  # type: ignore[arg-type]

        return run_parts(Context(engine, load_tasks(None), settings, on_progress))


def save(report: "Report", folder: Path) -> None:
    """Write the report's files, and say where."""
    from mlx_codegen.evaluation.report_files import write_report

    if missing := write_report(report, folder):
        typer.echo(missing, err=True)
    print(f"{folder / 'report.json'}")


def draw(report: "Report") -> None:
    """One table for each part."""
    from rich.console import Console
    from rich.table import Table

    from mlx_codegen.evaluation.report import figure_texts

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

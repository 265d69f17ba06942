"""`mlx-codegen corpus verify|show|build|new`: the bundled bash tasks."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_codegen.errors import UserError

if TYPE_CHECKING:
    from mlx_codegen.data.tasks import Task

app = typer.Typer(help="Read, check, build and extend the bundled bash tasks.", rich_markup_mode=None)

FolderOption = Annotated[
    Path | None, typer.Option("--folder", metavar="DIR", help="A folder of tasks. Default: the bundled one, data/bash.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of the renderings.")]


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[TASK|CATEGORY]...", help="Default: all tasks.")] = None,
    folder: FolderOption = None,
    renderings: Annotated[int, typer.Option(min=1, help="Renderings of each task.")] = 5,
    seed: SeedOption = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Tasks at a time.")] = os.cpu_count() or 1,
) -> None:
    """Render tasks, parse and lint every script, run it in the sandbox, and check what it did.

    Exit status 1 if anything is wrong.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mlx_codegen.evaluation.corpus import Report, verify_tasks
    from mlx_codegen.evaluation.sandbox import why_unavailable
    from mlx_codegen.generation.verify import SHELLCHECK_HINT, shellcheck_path

    tasks = select(load(folder), names)
    errors = Console(stderr=True, highlight=False)
    if shellcheck_path() is None:
        errors.print(f"without shellcheck, scripts are not linted; {SHELLCHECK_HINT}", markup=False, soft_wrap=True)
    if reason := why_unavailable():
        errors.print(f"without a sandbox, scripts are not run: {reason}", markup=False, soft_wrap=True)
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        bar = progress.add_task("verifying", total=len(tasks))

        def on_task(task: "Task", report: Report) -> None:
            progress.advance(bar)
            for fault in report.faults:
                console.print(f"{task.category}/{task.name}: {fault.kind}: {fault.detail}", markup=False, soft_wrap=True)
                console.print(f"    prompt: {fault.rendering.prompt}", style="dim", markup=False, soft_wrap=True)

        report = verify_tasks(tasks, renderings, seed, jobs, on_task)
    faulty = {fault.task for fault in report.faults}
    console.print(
        f"{report.tasks} tasks, {report.renderings} renderings; {report.runs} run, {report.checks_passed} checks passed; "
        f"{report.shellcheck_findings} shellcheck findings; {len(faulty)} tasks with faults",
        soft_wrap=True,
    )
    if faulty:
        raise typer.Exit(1)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="TASK", help="The name of a task.")],
    folder: FolderOption = None,
    renderings: Annotated[int, typer.Option(min=1, help="How many different renderings.")] = 1,
    seed: SeedOption = 0,
) -> None:
    """Render a task for reading: documents as a model sees them, with what each one's setup and check would run."""
    from rich.console import Console
    from rich.syntax import Syntax

    from mlx_codegen.data.tasks import render_check
    from mlx_codegen.evaluation.corpus import varied_renderings

    task = select(load(folder), [name])[0]
    console = Console(highlight=False)
    for rendering in varied_renderings(task, renderings, seed):
        setup, check = render_check(task, rendering)
        for title, text in (("", rendering.document), ("setup", setup), ("check", check)):
            if title and text:
                console.print(f"--- {title} ---", style="dim")
            if text and console.is_terminal:
                console.print(Syntax(text.rstrip("\n"), "bash", background_color="default", word_wrap=True))
            elif text:
                print(text.rstrip("\n"))
        print()


@app.command()
def build(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    folder: FolderOption = None,
    renderings: Annotated[int, typer.Option(min=1, help="Renderings of each task; some tasks have no more than a few.")] = 250,
    seed: SeedOption = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Counts the tokens. Default: one trained on the corpus.")
    ] = None,
) -> None:
    """Write the corpus as files: bash_scripts/*.sh, pairs.jsonl (train), pairs-validation.jsonl, pairs-test.jsonl, stats.json."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn
    from rich.table import Table

    from mlx_codegen.cli.tokenizer import tokenizer_file
    from mlx_codegen.data.corpus import build_corpus
    from mlx_codegen.tokenizer import Tokenizer

    tasks = load(folder)
    loaded = Tokenizer.load(tokenizer_file(tokenizer)) if tokenizer else None
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as progress:
        line = progress.add_task("tokenizer")

        def on_pairs(pairs: int) -> None:
            progress.update(line, description=f"{pairs:,} pairs")

        stats = build_corpus(output, tasks, renderings, seed, loaded, on_pairs)
    table = Table("category", "tasks", "pairs", "lines", "tokens")
    for name, counts in [*sorted(stats.categories.items()), ("all", stats.total), *stats.parts.items()]:
        if name == "all":
            table.add_section()
        table.add_row(
            name, *(f"{n:,}" for n in (counts.tasks, counts.pairs, counts.lines, counts.tokens)), end_section=name == "all"
        )
    Console(highlight=False).print(table)
    print(f"{output}: {stats.total.pairs:,} distinct pairs of prompt and script")


@app.command()
def new(
    category: Annotated[str, typer.Argument(help="A folder of data/bash, e.g. monitoring.")],
    name: Annotated[str, typer.Argument(metavar="TASK", help="A new name, e.g. rotate_keys.")],
    command: Annotated[bool, typer.Option("--command", help="A one-line answer.")] = False,
    folder: FolderOption = None,
) -> None:
    """Write a small working task to start from."""
    from mlx_codegen.config import repository_folder
    from mlx_codegen.data.corpus import new_task

    path = new_task(folder or repository_folder("data") / "bash", category, name, command=command)
    print(f"{path}: edit it, then: mlx-codegen corpus verify {name}")


def load(folder: Path | None) -> "list[Task]":
    """Returns the tasks of a folder, by default the bundled ones."""
    from mlx_codegen.config import repository_folder
    from mlx_codegen.data.tasks import load_tasks

    return load_tasks(folder or repository_folder("data") / "bash")


def select(tasks: "list[Task]", names: list[str] | None) -> "list[Task]":
    """Returns the tasks with these names or of these categories, all without names; UserError for a name that is neither."""
    if not names:
        return tasks
    known = {task.name for task in tasks} | {task.category for task in tasks}
    for name in names:
        if name not in known:
            raise UserError(f"no task or category is called {name}; categories: {', '.join(sorted({t.category for t in tasks}))}")
    return [task for task in tasks if task.name in names or task.category in names]

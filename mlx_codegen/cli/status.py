"""`mlx-codegen status`: what is trained, where, how far, and how good it is."""

import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_codegen.cli.text_chart import short

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from mlx_codegen.training.status import CheckpointStatus, EvaluationStatus, PhaseStatus, ReleaseStatus, RunStatus

NOTHING = "nothing is trained in {} yet; start with: mlx-codegen train configs/nano.yaml"
STATE_STYLES = {"running": "bold green", "finished": "bold", "stopped": "bold yellow", "prepared": "bold"}


def status(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="A run, or a folder of runs. Default: runs/ and weights/.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show every run and release: how far it is, whether it is running, its best figures.

    Example: mlx-codegen status runs/tiny
    """
    from rich.console import Console

    from mlx_codegen.training.status import as_json as to_json
    from mlx_codegen.training.status import release_status, run_status

    runs, releases = _found(folder)
    run_statuses, release_statuses = [run_status(path) for path in runs], [release_status(path) for path in releases]
    if as_json:
        print(to_json(run_statuses, release_statuses), end="")
        return
    if not runs and not releases:
        print(NOTHING.format(f"{folder or 'runs'}/".replace("//", "/")))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # a pipe has no width: one line is one line
    found: list[RunStatus | ReleaseStatus] = [*run_statuses, *release_statuses]
    for index, each in enumerate(found):
        if index:
            console.print()
        _draw(console, each)


def _found(folder: Path | None) -> tuple[list[Path], list[Path]]:
    """Folders of runs and of releases. Raises UserError for a folder of something else."""
    from mlx_codegen.training.status import find_all, find_run, is_empty

    if folder is None:
        return find_all(Path("runs"))[0], find_all(Path("weights"))[1]
    runs, releases = find_all(folder)
    if not runs and not releases and not is_empty(folder):
        return [find_run(folder).path], []
    return runs, releases


def _draw(console: "Console", each: "RunStatus | ReleaseStatus") -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from mlx_codegen.training.status import RunStatus

    run = each if isinstance(each, RunStatus) else None
    console.print(title(each))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column()
    for phase in each.phases:
        table.add_row(phase.phase, f"{phase.share:.0%}", " · ".join(_phase_facts(phase)))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    lines = [_checkpoint_line(run.checkpoint)] if run and run.checkpoint else []
    lines += [_evaluation_line(each.evaluation)] if each.evaluation else []
    lines += [f"go on: mlx-codegen train {run.name} --resume"] if run and _can_go_on(run) else []
    for line in lines:
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))
    for note in each.notes:
        console.print(Padding(Text(f"! {note}", style="yellow"), (0, 0, 0, 2), expand=False))


def title(each: "RunStatus | ReleaseStatus") -> "Text":
    from rich.text import Text

    from mlx_codegen.training.status import RunStatus

    if isinstance(each, RunStatus):
        state, style = each.state, STATE_STYLES[each.state]
        evidence = f" ({each.evidence})" if each.evidence else ""
        facts = [f"{each.model}, {short(each.parameters)} parameters" if each.parameters else each.model]
    else:
        state, style, evidence = "release", "bold cyan", ""
        facts = [each.model, each.dtype]
    rest = "".join(f" · {fact}" for fact in (*facts, _size(each.size_bytes)) if fact)
    return Text.assemble((f"{each.path}: ", "bold"), (state, style), evidence, rest)


def _phase_facts(phase: "PhaseStatus") -> list[str]:
    if not phase.begun:
        return ["not begun"]
    total = f" of {phase.total_steps:,}" if phase.total_steps else ""
    facts = [f"step {phase.step:,}{total}", f"{short(phase.tokens_seen)} tokens"]
    if phase.best_loss is not None:
        bits = f" ({phase.best_bits_per_byte:.2f} bits/byte)" if phase.best_bits_per_byte is not None else ""
        facts.append(f"best validation {phase.best_loss:.3f}{bits} at step {phase.best_step:,}")
    if phase.tokens_per_second:
        facts.append(f"{phase.tokens_per_second:,.0f} tokens/s")
    if phase.finished and phase.total_steps and phase.step < phase.total_steps:
        facts.append("ended early: no more gain")
    return facts


def _checkpoint_line(checkpoint: "CheckpointStatus") -> str:
    from mlx_codegen.training.activity import rounded

    file = "/".join(checkpoint.path.parts[-2:])
    when = datetime.datetime.fromtimestamp(checkpoint.written).strftime("%Y-%m-%d %H:%M")
    ago = rounded(time.time() - checkpoint.written)
    return f"newest checkpoint: {file}, step {checkpoint.progress.step:,}, {when} ({ago} ago)"


def _evaluation_line(evaluation: "EvaluationStatus") -> str:
    figures = [f"{name} {_figure(figure)}" for name, figure in evaluation.figures.items()]
    return f"evaluation of {evaluation.time[:10]}: {' · '.join(figures) or 'no figures'} ({evaluation.path})"


def _figure(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "no samples"
    if figure["unit"] == "%":
        aim = f" (aim {figure['target']:.0%})" if figure["target"] is not None else ""
        return f"{figure['value']:.0%}{aim}"
    return f"{figure['value']:.2f} {figure['unit']}"


def _can_go_on(run: "RunStatus") -> bool:
    """--resume takes the phases in order, and finds its run under runs/ of the present folder."""
    here = run.path.resolve() == Path("runs", run.name).resolve()
    in_order = sorted(run.phases, key=lambda phase: phase.begun, reverse=True) == run.phases
    return run.state == "stopped" and run.checkpoint is not None and in_order and here


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"

"""`mlx-codegen watch`: a run seen from another terminal. Only reads its files; the training program knows nothing of it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_codegen.cli.runs import polite_stop

if TYPE_CHECKING:
    from mlx_codegen.training.status import RunStatus

SECONDS_BETWEEN_LOOKS = 1.0
SHARE_OF_TIME = 0.05
"""How much of a core watching may take, at most: the training needs it."""


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its name under runs/.")],
    summary: Annotated[bool, typer.Option("--summary", help="One page, once; so it is in a pipe, too.")] = False,
) -> None:
    """Follow a run while it trains: progress, losses, speed, the loss curve. Ends with the run, or with Ctrl-C.

    Example: mlx-codegen watch runs/tiny
    """
    from rich.console import Console
    from rich.live import Live

    from mlx_codegen.cli.watch_page import live_page, summary_page
    from mlx_codegen.training.history import read_history
    from mlx_codegen.training.status import find_run, run_status

    folder = find_run(run)
    console = Console(highlight=False)
    history = read_history(folder.metrics_file)
    status = run_status(folder.path, history)
    if console.is_terminal and not summary and not _is_over(status, history.current):
        try:
            # The second screen of the terminal is left again whatever stops the program.
            with polite_stop(lambda _: None, lambda: False), Live(console=console, screen=True, auto_refresh=False) as live:
                while not _is_over(status, history.current):
                    started = time.monotonic()
                    live.update(live_page(status, history, console.width, console.height), refresh=True)
                    history.read()
                    status = run_status(folder.path, history)
                    time.sleep(max(SECONDS_BETWEEN_LOOKS, (time.monotonic() - started) / SHARE_OF_TIME))
        except KeyboardInterrupt:
            pass
    console.print(summary_page(status, history, console.width))


def _is_over(status: "RunStatus", current: str | None) -> bool:
    """Nothing more comes: all phases are done, or the only one that was asked for."""
    done = any(phase.phase == current and phase.finished for phase in status.phases)
    return status.state == "finished" or (status.state == "stopped" and done)

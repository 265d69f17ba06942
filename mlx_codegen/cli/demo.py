"""`mlx-codegen demo`: a small model learns English, then bash, and writes a few scripts. `make demo` calls it."""

from pathlib import Path
from typing import Annotated

import typer

PROMPTS = ("Create a backup script", "Check disk space and warn when it is low", "Delete log files older than 14 days")
COMMANDS = ("Find all .txt files larger than 10M", "Count the lines in data.csv")


def demo(
    again: Annotated[bool, typer.Option("--again", help="Train anew instead of using the demo that is there.")] = False,
) -> None:
    """Train the nano model through both phases on the bundled data (a few minutes on two CPU cores) and use it."""
    import shutil

    from rich.console import Console

    from mlx_codegen.cli.answer import show_live
    from mlx_codegen.cli.train import train_with_display
    from mlx_codegen.config import load_run_config
    from mlx_codegen.generation.engine import load
    from mlx_codegen.training.phases import RunFolder

    console = Console()
    folder = RunFolder(Path("runs") / "demo")
    if again:
        shutil.rmtree(folder.path, ignore_errors=True)
    config = load_run_config("nano")
    train_with_display(folder, config, config.phase_names(), "mlx-codegen demo", resume=folder.holds_checkpoints())
    engine = load(folder.path)
    for command, prompts in ((False, PROMPTS), (True, COMMANDS)):
        for prompt in prompts:
            console.rule(prompt)
            show_live(engine.stream(prompt, command=command, temperature=0.5, seed=1), "temperature 0.5 · seed 1")
    console.print('\nYour turn: mlx-codegen generate "Create a backup script" --model runs/demo', highlight=False)

"""`mlx-codegen demo`: the trained release answers at once; then a small model learns English and bash before your eyes.

`make demo` calls it.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

PROMPTS = ("Create a backup script", "Check disk space and warn when it is low", "Find the 10 largest files in /var")
COMMANDS = ("Find all empty files in /tmp", "Show disk usage of /home")


def demo(
    train: Annotated[
        bool | None, typer.Option("--train/--no-train", help="Train without asking, or only show the release's answers.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Train anew instead of using the demo that is there.")] = False,
) -> None:
    """Show answers of the trained release; then train the nano model on the bundled data (a few minutes) and use it."""
    from rich.console import Console

    from mlx_codegen.hub.releases import releases

    console = Console(highlight=False)
    release = next(iter(releases()), None)
    if release is not None:
        console.print(f"Answers of the trained model in {release}:", soft_wrap=True)
        show_answers(release, console)
        console.print("As they came, right or wrong: read a script before you run it.", soft_wrap=True)
    if train is None and not again:
        train = release is None or _asks_for_training(console)
    if train or again:
        train_and_show(again, console)
    elif release is None:
        console.print("There is no release in weights/ to show; train a small model with: mlx-codegen demo", soft_wrap=True)


def train_and_show(again: bool, console: "Console") -> None:
    """Both phases of `nano`, resumed where an earlier demo stopped, and what it writes then."""
    import shutil

    from mlx_codegen.cli.train import train_with_display
    from mlx_codegen.config import load_run_config
    from mlx_codegen.training.run_folder import RunFolder

    folder = RunFolder(Path("runs") / "demo")
    if again:
        shutil.rmtree(folder.path, ignore_errors=True)
    config = load_run_config("nano")
    train_with_display(folder, config, config.phase_names(), "mlx-codegen demo --train", resume=folder.holds_checkpoints())
    show_answers(folder.path, console)
    console.print('\nYour turn: mlx-codegen generate "Create a backup script" --model runs/demo', soft_wrap=True)


def show_answers(model: Path, console: "Console") -> None:
    """A few scripts and one-line commands, always the same ones."""
    from mlx_codegen.cli.generate import write_best
    from mlx_codegen.generation import checked
    from mlx_codegen.generation.engine import find_checkpoint, load

    engine = load(find_checkpoint(model))
    for command, prompts in ((False, PROMPTS), (True, COMMANDS)):
        for prompt in prompts:
            console.rule(prompt)
            write_best(engine, prompt, checked.BATCH, on_terminal=sys.stdout.isatty(), command=command, seed=1)


def _asks_for_training(console: "Console") -> bool:
    """Asks where a person sits at the terminal; elsewhere says how."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        console.print("\nTo see a small model learn from nothing in a few minutes: mlx-codegen demo --train", soft_wrap=True)
        return False
    return typer.confirm("\nTrain a small model from nothing now, in a few minutes?", default=True)

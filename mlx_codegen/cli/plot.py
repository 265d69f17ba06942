"""`mlx-codegen plot`: loss curves as a picture."""

from pathlib import Path
from typing import Annotated

import typer

from mlx_codegen.errors import UserError


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Runs' folders, or their names under runs/.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Default: curves.png in the run's folder; of several runs, here."),
    ] = None,
) -> None:
    """Draw losses and learning rate of both phases; several runs over one another.

    Example: mlx-codegen plot runs/tiny runs/small --output sizes.png
    """
    from mlx_codegen.training.curves import as_png, draw_curves
    from mlx_codegen.training.history import read_history
    from mlx_codegen.training.metrics_log import write_atomically
    from mlx_codegen.training.status import find_run

    folders = [find_run(run) for run in dict.fromkeys(runs)]
    file = output or (folders[0].path / "curves.png" if len(folders) == 1 else Path("curves.png"))
    if file.suffix.lower() != ".png" or not file.parent.is_dir():
        raise UserError(f"--output {file}: give a name that ends in .png, in a folder that exists")
    names = [folder.path.resolve().name for folder in folders]
    labels = names if len(set(names)) == len(names) else [str(folder.path) for folder in folders]
    histories = {label: read_history(folder.metrics_file) for label, folder in zip(labels, folders, strict=True)}
    write_atomically(file, as_png(draw_curves(histories)))
    for label, history in histories.items():
        if history.broken_lines:
            typer.echo(f"{label}: broken lines passed over: {history.broken_lines:,}", err=True)
    print(file)

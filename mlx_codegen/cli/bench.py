"""`mlx-codegen bench`: speed of this machine, and what became of it since the last time."""

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_codegen.config import repository_folder

app = typer.Typer(help="Measure speed on this machine, beside other programs.", rich_markup_mode=None)

SizesOption = Annotated[str, typer.Option(metavar="NAME,NAME", help="Names in configs/, or config files.")]
SecondsOption = Annotated[float, typer.Option(help="Length of each measurement, warm-up not counted.")]
RoundsOption = Annotated[
    int | None, typer.Option(help="Turns of ours and the peers. Default: 3, or 1 when measurements are under 5 seconds.")
]
PeersOption = Annotated[bool, typer.Option("--peers/--no-peers", help="Measure mlx-lm and PyTorch beside ours.")]
SaveOption = Annotated[bool, typer.Option("--save/--no-save", help="Write results, tables and chart.")]
ResultsOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where results are. Default: benchmarks/results, or ./benchmark-results if installed."),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(help="Sequences a training batch. Default: 8 for nano, 4 for others on a CPU; the config's on a GPU."),
]
BatchesOption = Annotated[str, typer.Option(metavar="N,N", help="Texts written side by side.")]

EVERY_SIZE = "nano,tiny,small,medium,mini"
SMALL_SIZES = "nano,tiny"


def _suite() -> Any:
    """The code in benchmarks/: a folder of programs, in a checkout and in an installed package."""
    folder = str(repository_folder("benchmarks"))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("suite")


@app.command()
def train(
    sizes: SizesOption = EVERY_SIZE,
    seconds: SecondsOption = 20.0,
    rounds: RoundsOption = None,
    peers: PeersOption = True,
    batch_size: BatchSizeOption = None,
    save: SaveOption = True,
    results: ResultsOption = None,
) -> None:
    """Training: tokens a second, where a step's time goes, the share of the chip's peak, the promised rates.

    Example: mlx-codegen bench train --sizes nano,tiny --seconds 10
    """
    suite = _suite()
    suite.run(
        ("train",),
        suite.options(sizes, seconds, rounds, peers=peers, save=save, results=results, batch_size=batch_size),
    )


@app.command()
def generate(
    sizes: SizesOption = SMALL_SIZES,
    seconds: SecondsOption = 5.0,
    rounds: RoundsOption = None,
    peers: PeersOption = True,
    batches: BatchesOption = "1,8,32",
    save: SaveOption = True,
    results: ResultsOption = None,
) -> None:
    """Writing: tokens a second for one text and for many, and the wait for the first.

    Example: mlx-codegen bench generate --sizes tiny --batches 1,16
    """
    suite = _suite()
    suite.run(("generate",), suite.options(sizes, seconds, rounds, peers=peers, save=save, results=results, batches=batches))


@app.command()
def prepare(
    sizes: SizesOption = SMALL_SIZES,
    seconds: SecondsOption = 5.0,
    rounds: RoundsOption = None,
    save: SaveOption = True,
    results: ResultsOption = None,
) -> None:
    """Data: megabytes of text a second through prepare, its memory, and how soon training starts.

    Example: mlx-codegen bench prepare --sizes tiny
    """
    suite = _suite()
    suite.run(("prepare",), suite.options(sizes, seconds, rounds, peers=False, save=save, results=results))


@app.command("all")
def every(
    sizes: SizesOption = EVERY_SIZE,
    seconds: SecondsOption = 10.0,
    rounds: RoundsOption = None,
    peers: PeersOption = True,
    save: SaveOption = True,
    results: ResultsOption = None,
) -> None:
    """All three, one after the other.

    Example, about two minutes: mlx-codegen bench all --sizes nano --seconds 3
    """
    suite = _suite()
    suite.run(suite.BENCHMARKS, suite.options(sizes, seconds, rounds, peers=peers, save=save, results=results))


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="A result file of bench.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="A later one.")],
) -> None:
    """Two results side by side: what is faster, what is slower, what is noise."""
    _suite().compare(before, after)

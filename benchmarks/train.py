"""Tokens per second of training, beside mlx-lm's own trainer on a model of the same shape.

    python benchmarks/train.py --sizes nano,tiny --seconds 20 --rounds 3

Ours and the peer take turns, each time in a new process, so that a machine that slows down slows both; what counts
is the ratio of a pair. A step's tokens are batch x context on both sides, compilation and warm-up are left out.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from harness import in_child, machine_line, measure_and_show, parser, run, show_spread
from rich.console import Console
from rich.table import Table
from timing import OURS, Comparison, tokens_per_second

from mlx_codegen.config import RunConfig
from mlx_codegen.costs import model_costs
from mlx_codegen.errors import UserError

ONCE = "train_once.py"
WINDOW_SECONDS = 2.0
BATCH_SIZES = {"nano": 8}
DEFAULT_BATCH_SIZE = 4
PEER_NOTE = (
    "mlx-lm: its own trainer and compiled step, all parameters trained, AdamW, no clipping; it has the same fast BLAS "
    "(mlx_codegen was imported first) with its default number of threads. Its clock leaves out waiting for data, ours does not."
)


@dataclass
class SizeResult(Comparison):
    """Everything measured for one size; rates in tokens per second."""

    size: str
    batch_size: int
    context_length: int
    parameters: int
    training_flops_per_token: int
    peak_flops: float = 0.0

    def utilisation(self, rate: float) -> float:
        """Share of the measured float32 matrix-product peak that the model's own arithmetic used."""
        return rate * self.training_flops_per_token / self.peak_flops


def measure_size(config: RunConfig, size: str, options: argparse.Namespace, console: Console) -> SizeResult:
    """Rounds of ours and peer in turns."""
    batch_size = options.batch_size or BATCH_SIZES.get(Path(size).stem, DEFAULT_BATCH_SIZE)
    costs = model_costs(config.model, batch_size)
    result = SizeResult(size, batch_size, config.model.context_length, costs.parameters, costs.training_flops_per_token)
    arguments = ["--size", size, "--batch-size", str(batch_size), "--seconds", str(options.seconds)]

    def measure(side: str) -> list[float]:
        if side == OURS:
            result.peak_flops = max(result.peak_flops, in_child(ONCE, "peak"))
        return tokens_per_second(in_child(ONCE, side, *arguments), WINDOW_SECONDS)

    def report(line: str) -> None:
        console.print(f"{size}, {line} tokens/s", style="dim", highlight=False)

    result.take_turns(options.rounds, options.peer, measure, report)
    return result


def draw(results: list[SizeResult], facts: dict[str, str | int], console: Console) -> None:
    """The table, and what a reader must know to believe it."""
    table = Table("size", "parameters", "batch", title="Training, tokens per second: median (min to max of windows)")
    for column in ("ours", "mlx-lm", "ratio of pairs", "ours of peak", "mlx-lm of peak"):
        table.add_column(column, justify="right")
    for result in results:
        ours, peer = result.ours, result.peer
        assert ours is not None
        table.add_row(
            result.size,
            f"{result.parameters:,}",
            f"{result.batch_size} × {result.context_length}",
            show_spread(ours),
            show_spread(peer),
            show_spread(result.ratio, 2),
            f"{result.utilisation(ours.median):.0%}",
            f"{result.utilisation(peer.median):.0%}" if peer else "",
        )
    console.print(table)
    peaks = ", ".join(f"{result.peak_flops / 1e9:,.0f}" for result in results)
    console.print(
        f"{machine_line(facts)}\n"
        f"Of peak: model FLOPs over the best float32 matrix product measured between the rounds ({peaks} GFLOP/s).",
        style="dim",
        highlight=False,
    )
    if any(result.peer for result in results):
        console.print(PEER_NOTE, style="dim", highlight=False)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options. Raises UserError for values that make no measurement."""
    options_parser = parser(__doc__, sizes="nano,tiny", seconds=20.0)
    options_parser.add_argument("--batch-size", type=int, help="sequences a batch; default: 8 for nano, 4 for the others")
    options = options_parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0 or (options.batch_size or 1) < 1:
        raise UserError("--rounds, --seconds and --batch-size must be above zero")
    return options


def main(arguments: list[str]) -> None:
    """Measure, draw, save."""
    measure_and_show("train", parse(arguments), measure_size, draw, WINDOW_SECONDS)


if __name__ == "__main__":
    run(main)

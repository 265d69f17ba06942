"""Tokens per second of training, beside mlx-lm's own trainer on a model of the same shape.

    python benchmarks/train.py --sizes nano,tiny --seconds 20 --rounds 3

Ours and the peer take turns, each time in a new process, so that a machine that slows down slows both; what counts
is the ratio of a pair. A step's tokens are batch x context on both sides, compilation and warm-up are left out.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fingerprint import commit, fingerprint, machine
from rich.console import Console
from rich.table import Table
from timing import Spread, spread, tokens_per_second

from mlx_codegen.config import RunConfig, load_run_config
from mlx_codegen.costs import model_costs
from mlx_codegen.errors import UserError

RESULTS = Path(__file__).parent / "results"
WINDOW_SECONDS = 2.0
BATCH_SIZES = {"nano": 8}
DEFAULT_BATCH_SIZE = 4
PEER_NOTE = (
    "mlx-lm: its own trainer and compiled step, all parameters trained, AdamW, no clipping; it has the same fast BLAS "
    "(mlx_codegen was imported first) with its default number of threads. Its clock leaves out waiting for data, ours does not."
)


@dataclass
class SizeResult:
    """Everything measured for one size; rates in tokens per second, one per round and in all windows together."""

    size: str
    batch_size: int
    context_length: int
    parameters: int
    training_flops_per_token: int
    peak_flops: float = 0.0
    ours: Spread | None = None
    peer: Spread | None = None
    ratio: Spread | None = None
    ours_rounds: list[float] = field(default_factory=list)
    peer_rounds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def utilisation(self, rate: float) -> float:
        """Share of the measured float32 matrix-product peak that the model's own arithmetic used."""
        return rate * self.training_flops_per_token / self.peak_flops


def measure_size(config: RunConfig, size: str, options: argparse.Namespace, console: Console) -> SizeResult:
    """Rounds of ours and peer in turns."""
    batch_size = options.batch_size or BATCH_SIZES.get(Path(size).stem, DEFAULT_BATCH_SIZE)
    costs = model_costs(config.model, batch_size)
    context = config.model.context_length
    result = SizeResult(size, batch_size, context, costs.parameters, costs.training_flops_per_token)
    ours: list[float] = []
    peer: list[float] = []
    for number in range(1, options.rounds + 1):
        result.peak_flops = max(result.peak_flops, in_child("peak"))
        arguments = ["--size", size, "--batch-size", str(batch_size), "--seconds", str(options.seconds)]
        windows = tokens_per_second(in_child("ours", arguments), WINDOW_SECONDS)
        ours += windows
        result.ours_rounds.append(spread(windows).median)
        line = f"{size}, round {number}: ours {result.ours_rounds[-1]:,.0f}"
        if options.peer:
            windows = tokens_per_second(in_child("mlx-lm", arguments), WINDOW_SECONDS)
            peer += windows
            result.peer_rounds.append(spread(windows).median)
            result.ratios.append(result.ours_rounds[-1] / result.peer_rounds[-1])
            line += f", mlx-lm {result.peer_rounds[-1]:,.0f} tokens/s, ratio {result.ratios[-1]:.2f}"
        console.print(line, style="dim", highlight=False)
    result.ours = spread(ours)
    if options.peer:
        result.peer, result.ratio = spread(peer), spread(result.ratios)
    return result


def in_child(what: str, arguments: list[str] | None = None) -> Any:
    """What `train_once.py` measures in a process of its own. Raises UserError with its last words if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).with_name("train_once.py")), what, str(output), *(arguments or [])]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            raise UserError(f"measuring {what} failed: {(child.stderr.strip().splitlines() or ['no message'])[-1]}")
        return json.loads(output.read_text(encoding="utf-8"))


def draw(results: list[SizeResult], facts: dict[str, str | int], console: Console) -> None:
    """The table, and what a reader must know to believe it."""
    table = Table("size", "parameters", "batch", title="Training, tokens per second: median (min to max of windows)")
    for column in ("ours", "mlx-lm", "ratio of pairs", "ours of peak", "mlx-lm of peak"):
        table.add_column(column, justify="right")
    for result in results:
        ours, peer, ratio = result.ours, result.peer, result.ratio
        assert ours is not None
        table.add_row(
            result.size,
            f"{result.parameters:,}",
            f"{result.batch_size} × {result.context_length}",
            f"{ours.median:,.0f} ({ours.min:,.0f} to {ours.max:,.0f})",
            f"{peer.median:,.0f} ({peer.min:,.0f} to {peer.max:,.0f})" if peer else "",
            f"{ratio.median:.2f} ({ratio.min:.2f} to {ratio.max:.2f})" if ratio else "",
            f"{result.utilisation(ours.median):.0%}",
            f"{result.utilisation(peer.median):.0%}" if peer else "",
        )
    console.print(table)
    peaks = ", ".join(f"{result.peak_flops / 1e9:,.0f}" for result in results)
    console.print(
        f"{facts['chip']}, {facts['cpu_cores']} cores, {int(facts['memory_bytes']) / 2**30:.0f} GiB, {facts['os']}, "
        f"MLX {facts['mlx']} on {facts['device']}, {facts['precision']}, {facts['blas']}.\n"
        f"Of peak: model FLOPs over the best float32 matrix product measured between the rounds ({peaks} GFLOP/s).",
        style="dim",
        highlight=False,
    )
    if any(result.peer for result in results):
        console.print(PEER_NOTE, style="dim", highlight=False)


def save(results: list[SizeResult], facts: dict[str, str | int], options: argparse.Namespace) -> Path:
    """One JSON file; a second run on one day gets a number, nothing is written over."""
    folder: Path = options.results
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.timezone.utc)
    stem = f"train-{fingerprint(facts)}-{now:%Y-%m-%d}"
    names = (f"{stem}{f'-{number}' if number > 1 else ''}.json" for number in range(1, 1000))
    file = next(folder / name for name in names if not (folder / name).exists())
    values = {
        "benchmark": "train",
        "time": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": facts,
        "rounds": options.rounds,
        "seconds_per_measurement": options.seconds,
        "window_seconds": WINDOW_SECONDS,
        "sizes": [asdict(result) for result in results],
    }
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return file


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options. Raises UserError for values that make no measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="nano,tiny", help="names in configs/, or config files, separated by commas")
    parser.add_argument("--batch-size", type=int, help="sequences a batch; default: 8 for nano, 4 for the others")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement, warm-up not counted")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of measurements")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="measure mlx-lm's trainer too")
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True, help="write the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to (default: benchmarks/results)")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0 or (options.batch_size or 1) < 1:
        raise UserError("--rounds, --seconds and --batch-size must be above zero")
    return options


def main(arguments: list[str]) -> None:
    """Measure, draw, save."""
    options = parse(arguments)
    configs = {size: load_run_config(size) for size in options.sizes.split(",")}
    console = Console()
    if not console.is_terminal:
        console.width = 160
    results = [measure_size(config, size, options, console) for size, config in configs.items()]
    facts = machine()
    draw(results, facts, console)
    if options.save:
        console.print(f"written: {save(results, facts, options)}", highlight=False)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

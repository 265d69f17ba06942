"""Tokens per second of generation and the wait for the first of them, beside mlx-lm with the same weights.

    python benchmarks/generate.py --sizes nano,tiny --seconds 5 --rounds 3

Ours and the peer take turns, each time in a new process, so that a machine that slows down slows both; what counts
is the ratio of a pair. Both draw with the same settings and write the same number of tokens after the same prompts.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from generate_once import NEW_TOKENS, prompts
from harness import in_child, machine_line, measure_and_show, parser, run, show_spread
from random_model import weight_bytes_per_token, write_random_model
from rich.console import Console
from rich.table import Table
from timing import OURS, PEER, Comparison, Spread, spread, tokens_per_second

from mlx_codegen.config import RunConfig
from mlx_codegen.costs import model_costs
from mlx_codegen.errors import UserError
from mlx_codegen.generation.engine import load

ONCE = "generate_once.py"
WINDOW_SECONDS = 1.0
COLD_STARTS = 5
CLOCK_NOTE = (
    f"A call: prompts of 25 tokens, all different, {NEW_TOKENS} new tokens each, end-of-text never drawn; temperature 0.8, top-p "
    "0.9, top-k 50. The clock runs over the whole call, reading the prompts included; loading, compiling and one warm-up call "
    "are left out. Ours counts turning text into tokens and back, and a random sequence of its own for each row; mlx-lm's "
    "(generate_step for one text, BatchGenerator for several) takes and gives token ids. It has the same fast BLAS "
    "(mlx_codegen was imported first). Peak: MLX's arrays, weights included."
)
LIMIT_NOTE = (
    "Limit: batch x bandwidth of memory / bytes of weights that a step reads; caches (keys and values) not counted. The "
    "bandwidth is the best of a matrix of 512 MiB times a vector. Weights that fit into the processor's caches are read faster."
)
COLD_NOTE = (
    "Cold: a new process whose output is a pipe, seconds from its start. `mlx-codegen generate` writes the request as a comment "
    "at once (first character), then what the model adds (first new character). mlx-lm: its loading and generate_step "
    "up to the first token, with no tokenizer to load and no import of ours, thus with the BLAS that MLX brings."
)


@dataclass
class BatchResult(Comparison):
    """One size at one batch size: tokens per second of all rows together."""

    batch: int
    limit: float = 0.0
    ours_peak_bytes: int = 0
    peer_peak_bytes: int = 0


@dataclass
class ColdResult(Comparison):
    """Seconds to the first new character, ours and the peer's, and to the first character of all, the prompt's."""

    first_character: Spread | None = None
    first_character_starts: list[float] = field(default_factory=list)


@dataclass
class SizeResult:
    """Everything measured for one size."""

    size: str
    parameters: int
    weight_bytes_per_token: int
    bandwidth: float = 0.0
    batches: list[BatchResult] = field(default_factory=list)
    cold: ColdResult = field(default_factory=ColdResult)


def measure_size(config: RunConfig, size: str, options: argparse.Namespace, console: Console) -> SizeResult:
    """All batch sizes, then cold starts, with weights that are written once."""
    result = SizeResult(size, model_costs(config.model, 1).parameters, weight_bytes_per_token(config))
    with tempfile.TemporaryDirectory() as name:
        checkpoint, folder = write_random_model(config, Path(name))
        for batch in options.batches:
            result.bandwidth = max(result.bandwidth, in_child(ONCE, "bandwidth"))
            result.batches.append(measure_batch(checkpoint, folder, batch, size, options, console))
        measure_cold(result.cold, checkpoint, folder, size, options, console)
    for measured in result.batches:
        measured.limit = measured.batch * result.bandwidth / result.weight_bytes_per_token
    return result


def measure_batch(
    checkpoint: Path, folder: Path, batch: int, size: str, options: argparse.Namespace, console: Console
) -> BatchResult:
    """Rounds of ours and peer in turns."""
    result = BatchResult(batch)
    arguments = ["--checkpoint", str(checkpoint), "--folder", str(folder)]
    arguments += ["--batch", str(batch), "--seconds", str(options.seconds)]

    def measure(side: str) -> list[float]:
        measured = in_child(ONCE, side, *arguments)
        if side == OURS:
            result.ours_peak_bytes = max(result.ours_peak_bytes, measured["peak_bytes"])
        else:
            result.peer_peak_bytes = max(result.peer_peak_bytes, measured["peak_bytes"])
        return tokens_per_second(measured["steps"], WINDOW_SECONDS)

    def report(line: str) -> None:
        console.print(f"{size}, batch {batch}, {line} tokens/s", style="dim", highlight=False)

    result.take_turns(options.rounds, options.peer, measure, report)
    return result


def measure_cold(
    result: ColdResult, checkpoint: Path, folder: Path, size: str, options: argparse.Namespace, console: Console
) -> None:
    """New processes in turns, more of them than rounds: each is short."""
    text, ids = load(checkpoint).encode_prompt(prompts(1)[0])
    ours = [sys.executable, "-m", "mlx_codegen", "generate", prompts(1)[0], "--model", str(checkpoint), "--max-tokens", "8"]
    peer = [sys.executable, str(Path(__file__).with_name("first_token_peer.py")), str(folder), *map(str, ids)]

    def measure(side: str) -> list[float]:
        if side != OURS:
            return [seconds_to_bytes(peer, [1])[0]]
        first, first_new = seconds_to_bytes(ours, [1, len(text.encode()) + 1])
        result.first_character_starts.append(first)
        return [first_new]

    def report(line: str) -> None:
        console.print(f"{size}, cold start, {line} seconds", style="dim", highlight=False)

    measure(OURS)  # the first start of all reads files from the disk and compiles
    result.first_character_starts.clear()
    if options.peer:
        measure(PEER)
    result.take_turns(max(options.rounds, COLD_STARTS) if options.rounds > 1 else 1, options.peer, measure, report)
    result.first_character = spread(result.first_character_starts)


def seconds_to_bytes(command: list[str], numbers: list[int]) -> list[float]:
    """Seconds from the start of a process until its output has so many bytes. Raises UserError if it ends before."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None and process.stderr is not None
        times: list[float] = []
        received = 0
        while len(times) < len(numbers):
            piece = process.stdout.read(4096)
            received += len(piece)
            times += [time.perf_counter() - start for number in numbers[len(times) :] if received >= number]
            if not piece:
                break
        process.stdout.read()
        words = process.stderr.read().decode(errors="replace").strip().splitlines()
    if len(times) < len(numbers):
        raise UserError(f"a cold start wrote {received} bytes and ended: {(words or ['no message'])[-1]}")
    return times


def draw(results: list[SizeResult], facts: dict[str, str | int], console: Console) -> None:
    """The tables, and what a reader must know to believe them."""
    console.print(_decoding_table(results))
    console.print(_cold_table(results))
    bandwidths = ", ".join(f"{result.bandwidth / 1e9:.1f}" for result in results)
    read = ", ".join(f"{result.weight_bytes_per_token / 1e6:.1f}" for result in results)
    notes = [machine_line(facts), CLOCK_NOTE, f"{LIMIT_NOTE} Here {bandwidths} GB/s, {read} MB of weights.", COLD_NOTE]
    for note in notes:
        console.print(note, style="dim", highlight=False)


def _decoding_table(results: list[SizeResult]) -> Table:
    table = Table("size", "parameters", title="Generation, tokens per second of all rows: median (min to max of windows)")
    for column in ("batch", "ours", "mlx-lm", "ratio of pairs", "limit", "ours of limit", "peak MB", "mlx-lm's"):
        table.add_column(column, justify="right")
    for result in results:
        for measured in result.batches:
            assert measured.ours is not None
            table.add_row(
                result.size,
                f"{result.parameters:,}",
                str(measured.batch),
                show_spread(measured.ours),
                show_spread(measured.peer),
                show_spread(measured.ratio, 2),
                f"{measured.limit:,.0f}",
                f"{measured.ours.median / measured.limit:.0%}",
                f"{measured.ours_peak_bytes / 1e6:,.0f}",
                f"{measured.peer_peak_bytes / 1e6:,.0f}" if measured.peer else "",
            )
    return table


def _cold_table(results: list[SizeResult]) -> Table:
    table = Table("size", title="From a cold shell, seconds: median (min to max of starts)")
    for column in ("ours, first character", "ours, first new character", "mlx-lm, first token"):
        table.add_column(column, justify="right")
    for result in results:
        cold = result.cold
        table.add_row(result.size, *(show_spread(values, 2) for values in (cold.first_character, cold.ours, cold.peer)))
    return table


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options. Raises UserError for values that make no measurement."""
    options_parser = parser(__doc__, sizes="nano,tiny", seconds=5.0)
    options_parser.add_argument("--batches", default="1,8,32", help="texts written side by side, separated by commas")
    options = options_parser.parse_args(arguments)
    try:
        options.batches = [int(batch) for batch in options.batches.split(",")]
    except ValueError:
        raise UserError(f"--batches {options.batches}: give numbers separated by commas, such as 1,8,32") from None
    if options.rounds < 1 or options.seconds <= 0 or min(options.batches) < 1:
        raise UserError("--rounds, --seconds and --batches must be above zero")
    return options


def main(arguments: list[str]) -> None:
    """Measure, draw, save."""
    measure_and_show("generate", parse(arguments), measure_size, draw, WINDOW_SECONDS)


if __name__ == "__main__":
    run(main)

"""Writing: tokens per second, and the wait for the first of them, beside mlx-lm with the same weights.

Ours and the peer take turns, each time in a new process, so that a machine that slows down slows both; what counts
is the ratio of a pair. Both draw with the same settings and write the same number of tokens after the same prompts.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from children import child_environment, in_child
from generate_once import NEW_TOKENS, prompts
from harness import Bench, Report, plain, stem
from random_model import weight_bytes_per_token, write_random_model
from results import Figure
from tables import Table, show_spread
from timing import MLX_LM, OURS, Comparison, Spread, spread, take_turns, tokens_per_second

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
    "Limit: batch × bandwidth of memory / bytes of weights that a step reads; caches (keys and values) not counted. The "
    "bandwidth is the best of a matrix of 512 MiB times a vector. Weights that fit into the processor's caches are read faster."
)
COLD_NOTE = (
    "Cold: a new process whose output is a pipe, seconds from its start. `mlx-codegen generate` writes the request as a comment "
    "at once (first character), then what the model adds (first new character). mlx-lm: its loading and generate_step "
    "up to the first token, with no tokenizer to load and no import of ours, thus with the BLAS that MLX brings."
)


@dataclass
class BatchResult:
    """One size at one batch size: tokens per second of all rows together; the most bytes of arrays by side."""

    batch: int
    rates: Comparison
    peak_bytes: dict[str, int]
    limit: float = 0.0


@dataclass
class ColdResult:
    """Seconds to the first new character, ours and the peer's, and to the first character of all, the prompt's."""

    first_new: Comparison
    first_character: Spread


@dataclass
class SizeResult:
    """Everything measured for one size."""

    size: str
    parameters: int
    weight_bytes_per_token: int
    cold: ColdResult
    bandwidth: float = 0.0
    batches: list[BatchResult] = field(default_factory=list)


def measure(bench: Bench) -> Report:
    """All sizes, one after the other."""
    results = [measure_size(size, config, bench) for size, config in bench.configs.items()]
    details = {"window_seconds": WINDOW_SECONDS, "sizes": [plain(result) for result in results]}
    return Report([decoding_table(results), cold_table(results)], figures(results), details)


def measure_size(size: str, config: RunConfig, bench: Bench) -> SizeResult:
    """All batch sizes, then cold starts, with weights that are written once."""
    with tempfile.TemporaryDirectory() as name:
        checkpoint, folder = write_random_model(config, Path(name))
        bandwidth, batches = 0.0, []
        for batch in bench.options.batches:
            bandwidth = max(bandwidth, in_child(ONCE, "bandwidth"))
            batches.append(measure_batch(checkpoint, folder, batch, size, bench))
        cold = measure_cold(checkpoint, folder, size, bench)
    read = weight_bytes_per_token(config)
    for measured in batches:
        measured.limit = measured.batch * bandwidth / read
    return SizeResult(size, model_costs(config.model, 1).parameters, read, cold, bandwidth, batches)


def peers(bench: Bench) -> list[str]:
    """mlx-lm, where peers are wanted."""
    return [MLX_LM] if bench.options.peers else []


def measure_batch(checkpoint: Path, folder: Path, batch: int, size: str, bench: Bench) -> BatchResult:
    """Rounds of ours and peer in turns."""
    arguments = ["--checkpoint", str(checkpoint), "--folder", str(folder)]
    arguments += ["--batch", str(batch), "--seconds", str(bench.options.seconds)]
    peak_bytes: dict[str, int] = {}

    def rates(side: str) -> list[float]:
        measured = in_child(ONCE, side, *arguments)
        peak_bytes[side] = max(peak_bytes.get(side, 0), measured["peak_bytes"])
        return tokens_per_second(measured["steps"], WINDOW_SECONDS)

    def report(line: str) -> None:
        bench.say(f"{size}, batch {batch}, {line} tokens/s")

    return BatchResult(batch, take_turns(bench.options.rounds, peers(bench), rates, report), peak_bytes)


def measure_cold(checkpoint: Path, folder: Path, size: str, bench: Bench) -> ColdResult:
    """New processes in turns, more of them than rounds: each is short."""
    text, ids = load(checkpoint).encode_prompt(prompts(1)[0])
    ours = [sys.executable, "-m", "mlx_codegen", "generate", prompts(1)[0], "--model", str(checkpoint), "--max-tokens", "8"]
    ours += ["--best-of", "1"]  # which shows a text as it comes
    peer = [sys.executable, str(Path(__file__).with_name("first_token_peer.py")), str(folder), *map(str, ids)]
    first_characters: list[float] = []

    def seconds(side: str) -> list[float]:
        if side != OURS:
            return [seconds_to_bytes(peer, [1])[0]]
        first, first_new = seconds_to_bytes(ours, [1, len(text.encode()) + 1])
        first_characters.append(first)
        return [first_new]

    def report(line: str) -> None:
        bench.say(f"{size}, cold start, {line} seconds")

    for side in (OURS, *peers(bench)):
        seconds(side)  # the first start of all reads files from the disk and compiles
    first_characters.clear()
    starts = max(bench.options.rounds, COLD_STARTS) if bench.options.rounds > 1 else 1
    first_new = take_turns(starts, peers(bench), seconds, report)
    return ColdResult(first_new, spread(first_characters))


def seconds_to_bytes(command: list[str], numbers: list[int]) -> list[float]:
    """Seconds from the start of a process until its output has so many bytes. Raises UserError if it ends before."""
    start = time.perf_counter()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen(command, env=child_environment(), **pipes) as process:
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


def figures(results: list[SizeResult]) -> list[Figure]:
    """What the next run is compared by."""
    found: list[Figure] = []
    for result in results:
        name = stem(result.size)
        for each in result.batches:
            found += _sides(f"{name}, {each.batch} text{'s' if each.batch > 1 else ''}", "tokens/s", each.rates)
        found += _sides(f"{name}, first new character", "seconds", result.cold.first_new)
    return found


def _sides(name: str, unit: str, comparison: Comparison) -> list[Figure]:
    more_is_better = unit != "seconds"
    ratio = "ratio" if more_is_better else "ratio of seconds"
    found = [Figure(name, OURS, unit, comparison.ours.rate, more_is_better)]
    for side, peer in comparison.peers.items():
        found.append(Figure(name, side, unit, peer.rate, more_is_better))
        found.append(Figure(name, f"{OURS} / {side}", ratio, peer.ratio, more_is_better))
    return found


def decoding_table(results: list[SizeResult]) -> Table:
    """Tokens per second of all rows together."""
    columns = ("size", "parameters", "texts", OURS, MLX_LM, "ratio", "limit", "ours of limit", "peak, MB", "mlx-lm's")
    table = Table("Writing, tokens per second of all texts together: median (min to max of windows)", columns)
    for result in results:
        for each in result.batches:
            ours, peer = each.rates.ours.rate, each.rates.peers.get(MLX_LM)
            table.rows.append((
                result.size,
                f"{result.parameters:,}",
                str(each.batch),
                show_spread(ours),
                show_spread(peer.rate if peer else None),
                show_spread(peer.ratio if peer else None, 2),
                f"{each.limit:,.0f}",
                f"{ours.median / each.limit:.0%}",
                f"{each.peak_bytes[OURS] / 1e6:,.0f}",
                f"{each.peak_bytes[MLX_LM] / 1e6:,.0f}" if peer else "",
            ))  # fmt: skip
    bandwidths = ", ".join(f"{result.bandwidth / 1e9:.1f}" for result in results)
    read = ", ".join(f"{result.weight_bytes_per_token / 1e6:.1f}" for result in results)
    table.notes += [CLOCK_NOTE, f"{LIMIT_NOTE} Here {bandwidths} GB/s, {read} MB of weights."]
    return table


def cold_table(results: list[SizeResult]) -> Table:
    """From a cold shell."""
    columns = ("size", "ours, first character", "ours, first new character", "mlx-lm, first token")
    table = Table("From a cold shell, seconds: median (min to max of starts)", columns, notes=[COLD_NOTE])
    for result in results:
        peer = result.cold.first_new.peers.get(MLX_LM)
        values = (result.cold.first_character, result.cold.first_new.ours.rate, peer.rate if peer else None)
        table.rows.append((result.size, *(show_spread(value, 2) for value in values)))
    return table

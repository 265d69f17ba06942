"""`mlx-codegen bench` without its command line: run benchmarks, show them, keep them, hold them against the last ones."""

import importlib
import json
import math
import os
from pathlib import Path

from chart import NO_CHART, can_draw, draw_chart
from fingerprint import machine, machine_line
from harness import Bench, Options, plain, read_configs
from results import (
    comparison_table,
    differences,
    new_file,
    newest_result,
    read_result,
    result_values,
    slower_than_before,
)
from rich.console import Console
from tables import draw, markdown

from mlx_codegen import backend
from mlx_codegen.errors import UserError
from mlx_codegen.training.metrics_log import write_atomically

BENCHMARKS = ("train", "generate", "prepare")
SHORT_SECONDS = 5.0
ROUNDS = 3
HERE = Path(__file__).parent
PIPE_COLUMNS = 160
BUSY_SHARE = 0.5
"""Of the cores: a higher load before anything is measured means that others use them."""


def default_results() -> Path:
    """benchmarks/results of a checkout; an installed package keeps its results where it is called."""
    checkout = HERE.parent / "pyproject.toml"
    return HERE / "results" if checkout.exists() else Path("benchmark-results")


def options(
    sizes: str,
    seconds: float,
    rounds: int | None,
    *,
    peers: bool,
    save: bool,
    results: Path | None,
    batch_size: int | None = None,
    batches: str = "1,8,32",
) -> Options:
    """Options from what was typed. Raises UserError for values that make no measurement."""
    try:
        batch_numbers = tuple(int(batch) for batch in batches.split(","))
    except ValueError:
        raise UserError(f"--batches {batches}: give numbers separated by commas, such as 1,8,32") from None
    names = tuple(dict.fromkeys(size.strip() for size in sizes.split(",") if size.strip()))
    if not names:
        raise UserError("--sizes: name at least one, such as nano,tiny")
    counts = [number for number in (*batch_numbers, rounds, batch_size) if number is not None]
    if not 0 < seconds < math.inf or min(counts) < 1:
        raise UserError("--seconds, --rounds, --batch-size and --batches must be finite numbers above zero")
    return Options(
        sizes=names,
        seconds=seconds,
        rounds=rounds or (ROUNDS if seconds >= SHORT_SECONDS else 1),
        peers=peers,
        save=save,
        results=results or default_results(),
        batch_size=batch_size,
        batches=batch_numbers,
    )


def run(benchmarks: tuple[str, ...], chosen: Options) -> None:
    """Measure, draw, save, and point out what became slower. Raises UserError for what a person can put right."""
    if chosen.save:  # found out now, not after measuring
        chosen.results.mkdir(parents=True, exist_ok=True)
        if not os.access(chosen.results, os.W_OK):
            raise UserError(f"cannot write in {chosen.results}; give another folder with --results, or --no-save")
    bench = Bench(chosen, read_configs(chosen.sizes), machine(), new_console())
    busy = os.getloadavg()[0]
    if busy > BUSY_SHARE * backend.cpu_count():
        bench.say(f"other programs are at work here (load {busy:.1f}): rates will be low, ratios rough")
    for benchmark in benchmarks:
        _run_one(benchmark, bench)


def compare(before: Path, after: Path) -> None:
    """Print two result files side by side. Raises UserError where nothing can be compared."""
    draw([comparison_table(read_result(before), read_result(after))], new_console())


def new_console() -> Console:
    """As wide as the terminal, and wide enough for a table in a pipe."""
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


def _run_one(benchmark: str, bench: Bench) -> None:
    console, chosen = bench.console, bench.options
    report = importlib.import_module(benchmark).measure(bench)
    draw(report.tables, console)
    console.print(machine_line(bench.facts), style="dim", highlight=False)
    before = newest_result(chosen.results, benchmark, bench.facts)
    # Where results lie on somebody's disk is nobody else's business
    chosen_here = {name: value for name, value in plain(chosen).items() if name != "results"}
    values = result_values(benchmark, bench.facts, report.figures, options=chosen_here, **report.details)
    if before is not None:
        for line in slower_than_before(differences(read_result(before), values)):
            console.print(f"slower than in {before.name}: {line}", style="yellow", highlight=False, soft_wrap=True)
    if not chosen.save:
        return
    file = new_file(chosen.results, benchmark, bench.facts)
    write_atomically(file, (json.dumps(values, indent=2, default=str) + "\n").encode())
    title = f"# mlx-codegen bench {benchmark}\n\n{machine_line(bench.facts)}\n\n"
    write_atomically(file.with_suffix(".md"), (title + markdown(report.tables)).encode())
    written = [file, file.with_suffix(".md")]
    if can_draw():
        draw_chart(file.with_suffix(".png"), f"mlx-codegen bench {benchmark}\n{machine_line(bench.facts)}", report.figures)
        written.append(file.with_suffix(".png"))
    else:
        console.print(NO_CHART, style="dim", highlight=False)
    console.print("written: " + ", ".join(map(str, written)), highlight=False, soft_wrap=True)

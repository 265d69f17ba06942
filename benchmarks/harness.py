"""What every benchmark here does: measurements in processes of their own, options, one file of results."""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fingerprint import commit, fingerprint, machine
from rich.console import Console
from timing import Spread

from mlx_codegen.config import load_run_config
from mlx_codegen.errors import UserError

RESULTS = Path(__file__).parent / "results"
PIPE_COLUMNS = 160


def in_child(script: str, what: str, *arguments: str) -> Any:
    """What `script`, a program beside this file, measures in a process of its own.

    Raises UserError with its last words if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).with_name(script)), what, str(output), *arguments]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            raise UserError(f"measuring {what} failed: {(child.stderr.strip().splitlines() or ['no message'])[-1]}")
        return json.loads(output.read_text(encoding="utf-8"))


def parser(description: str | None, sizes: str, seconds: float) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", default=sizes, help="names in configs/, or config files, separated by commas")
    options.add_argument("--seconds", type=float, default=seconds, help="length of each measurement, warm-up not counted")
    options.add_argument("--rounds", type=int, default=3, help="pairs of measurements")
    options.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="measure mlx-lm too")
    options.add_argument("--save", action=argparse.BooleanOptionalAction, default=True, help="write the results")
    options.add_argument("--results", type=Path, default=RESULTS, help="where to (default: benchmarks/results)")
    return options


def new_console() -> Console:
    """As wide as the terminal, and wide enough for a table in a pipe."""
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


def show_spread(values: Spread | None, digits: int = 0) -> str:
    """`median (min to max)`; nothing for what was not measured."""
    if values is None:
        return ""
    return f"{values.median:,.{digits}f} ({values.min:,.{digits}f} to {values.max:,.{digits}f})"


def machine_line(facts: dict[str, str | int]) -> str:
    """The machine in one line for people."""
    threads = "" if facts["blas_threads"] == "default" else f", OPENBLAS_NUM_THREADS={facts['blas_threads']}"
    return (
        f"{facts['chip']}, {facts['cpu_cores']} cores, {int(facts['memory_bytes']) / 2**30:.0f} GiB, {facts['os']}, "
        f"MLX {facts['mlx']} on {facts['device']}, {facts['precision']}, {facts['blas']}{threads}."
    )


Draw = Callable[[list[Any], dict[str, str | int], Console], None]


def measure_and_show(
    benchmark: str, options: argparse.Namespace, measure_size: Callable[..., Any], draw: Draw, window_seconds: float
) -> None:
    """Every size in turn, with all configs read before the first; then the tables, then the file.

    `measure_size(config, size, options, console)` gives a dataclass.
    """
    configs = {size: load_run_config(size) for size in options.sizes.split(",")}
    console = new_console()
    results = [measure_size(config, size, options, console) for size, config in configs.items()]
    facts = machine()
    draw(results, facts, console)
    if options.save:
        sizes = [asdict(result) for result in results]
        file = save(benchmark, facts, options, window_seconds=window_seconds, sizes=sizes)
        console.print(f"written: {file}", highlight=False)


def save(benchmark: str, facts: dict[str, str | int], options: argparse.Namespace, **measured: Any) -> Path:
    """One JSON file; a second run on one day gets a number, nothing is written over."""
    folder: Path = options.results
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.timezone.utc)
    stem = f"{benchmark}-{fingerprint(facts)}-{now:%Y-%m-%d}"
    names = (f"{stem}{f'-{number}' if number > 1 else ''}.json" for number in range(1, 1000))
    file = next(folder / name for name in names if not (folder / name).exists())
    values = {
        "benchmark": benchmark,
        "time": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": facts,
        "rounds": options.rounds,
        "seconds_per_measurement": options.seconds,
        **measured,
    }
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return file


def run(main: Callable[[list[str]], None]) -> None:
    """Run a benchmark; what the person can put right is one line and exit status 2."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

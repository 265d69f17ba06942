"""What every benchmark gets and gives: options and configs, tables and figures."""

import importlib.util
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fingerprint import Facts
from results import Figure
from rich.console import Console
from tables import Table
from timing import MLX_LM, PYTORCH

from mlx_codegen import backend
from mlx_codegen.config import RunConfig, load_run_config

SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True)
class Options:
    """What to measure and how long. `rounds` are turns of ours and the peers."""

    sizes: tuple[str, ...]
    seconds: float
    rounds: int
    peers: bool
    save: bool
    results: Path
    batch_size: int | None = None
    batches: tuple[int, ...] = (1, 8, 32)


@dataclass
class Report:
    """What a benchmark found: tables for people, figures to compare runs by, everything else as plain values."""

    tables: list[Table]
    figures: list[Figure]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bench:
    """What a benchmark works with: the options, their configs, the machine, and where to say how far it is."""

    options: Options
    configs: dict[str, RunConfig]
    facts: Facts
    console: Console

    def say(self, line: str) -> None:
        """A line of progress."""
        self.console.print(line, style="dim", highlight=False)


def read_configs(sizes: tuple[str, ...]) -> dict[str, RunConfig]:
    """Every config by the name that it was asked for, all read before anything is measured. Raises UserError."""
    return {size: load_run_config(size) for size in sizes}


def training_peers(options: Options) -> list[str]:
    """The trainers that can be measured beside ours."""
    if not options.peers:
        return []
    torch = all(importlib.util.find_spec(package) for package in ("torch", "transformers"))
    return [MLX_LM, PYTORCH] if torch else [MLX_LM]


def fits(needed_bytes: int) -> bool:
    """Whether arrays of so many bytes leave the rest of the machine (or of the GPU's own memory) some room."""
    import mlx.core as mx

    of_gpu = mx.device_info().get("total_memory") if backend.device_kind() == "cuda" else None
    return needed_bytes <= SHARE_OF_MEMORY * int(of_gpu or backend.total_memory_bytes())


def stem(size: str) -> str:
    """`tiny` for tiny and for path/to/tiny.yaml."""
    return Path(size).stem


def plain(value: Any) -> Any:
    """A dataclass as dictionaries and lists, for JSON."""
    return asdict(value)

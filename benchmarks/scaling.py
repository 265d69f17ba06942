"""What several processes gain: one process, all together, the all-reduce by itself, in turns; and the model held against it.

python benchmarks/scaling.py                                     two processes on this machine
mlx.launch --hostfile hosts.json -- python benchmarks/scaling.py   several machines

Every process takes part in every measurement or waits for it without using a core. Rank 0 prints a table and, with --json,
writes all figures to a file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx_codegen  # noqa: F401  (first of all: it loads the fast BLAS)
from mlx_codegen import backend
from mlx_codegen.config import find_config, load_run_config
from mlx_codegen.errors import UserError
from mlx_codegen.training.distributed import Group, joined_group

WARM_UP = 2


def main() -> None:
    """Start the processes, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano", help="a file, or the name of one in configs/")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences of each process")
    parser.add_argument("--processes", type=int, default=2, help="on this machine, where mlx.launch did not start them")
    parser.add_argument("--rounds", type=int, default=10, help="each measures every thing once")
    parser.add_argument("--json", type=Path, help="where rank 0 writes all figures")
    options = parser.parse_args()
    if "MLX_RANK" not in os.environ:
        launcher = Path(sys.executable).with_name("mlx.launch")
        sys.exit(subprocess.run([launcher, "-n", str(options.processes), "--", sys.executable, *sys.argv]).returncode)
    try:
        with joined_group(_end) as group:
            if group is None:
                raise UserError("one process has nothing to share; start at least two")
            seconds, processor = measure(group, options)
            if group.rank == 0:
                report(group, seconds, processor, options)
    except UserError as error:
        sys.exit(f"error: {error}")


def _end(rank: int, host: str, why: str) -> None:
    os.write(2, f"error: rank {rank} ({host}) ended: {why}\n".encode())
    os._exit(2)


Rounds = dict[str, list[float]]
"""Seconds of each round by name of what was measured."""


def measure(group: Group, options: argparse.Namespace) -> tuple[Rounds, Rounds]:
    """Time by rank 0's clock, and processor time of all processes together, which other programs disturb less."""
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_map

    from mlx_codegen.model import Transformer
    from mlx_codegen.training.step import TrainStep

    config = load_run_config(find_config(options.config))
    settings = config.phase(config.phase_names()[-1])
    assert settings is not None
    precision, compiled = backend.resolve_precision(config.precision), backend.compiling_pays()
    here = len(group.ranks_on_this_machine)
    mx.random.seed(0)
    model = Transformer(config.model)
    random = np.random.default_rng(group.rank)
    every_core = backend.compute_streams()
    backend.share_cores(here)
    own_cores = backend.compute_streams()

    def step(streams: list[mx.Stream], sequences: int, partners: Group | None) -> Callable[[], None]:
        train_step = TrainStep(model, settings, precision, streams, compiled=compiled, group=partners)

        def once() -> None:
            shape = (sequences, config.model.context_length + 1)
            tokens = mx.array(random.integers(0, config.model.vocab_size, shape).astype(np.int32))
            mx.eval(*train_step([tokens], 1e-4), *train_step.arrays())

        return once

    alone, together = step(own_cores, options.batch_size, None), step(own_cores, options.batch_size, group)
    whole = step(every_core, here * options.batch_size, None)
    gradients = tree_map(mx.zeros_like, model.parameters())

    def only_rank_0(work: Callable[[], None]) -> Callable[[], None]:
        return work if group.rank == 0 else lambda: None

    works: dict[str, Callable[[], None]] = {
        "one process, all cores": only_rank_0(whole),
        "one process, its share": only_rank_0(alone),
        "all at once, no exchange": alone,
        "all-reduce": lambda: mx.eval(group.sum(gradients)),
        "all together": together,
    }
    seconds: Rounds = {name: [] for name in works}
    processor: Rounds = {name: [] for name in works}
    for number in range(WARM_UP + options.rounds):
        for name, work in works.items():
            group.barrier()
            started, used = time.perf_counter(), time.process_time()
            work()
            used_by_all = sum(group.gather(time.process_time() - used))
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
                processor[name].append(used_by_all)
    return seconds, processor


def report(group: Group, seconds: Rounds, processor: Rounds, options: argparse.Namespace) -> None:
    """A table, ratios of pairs from the same round, and the prediction of the model."""
    from mlx.utils import tree_flatten

    from mlx_codegen.model import Transformer

    config = load_run_config(find_config(options.config))
    size = 4 * sum(value.size for _, value in tree_flatten(Transformer(config.model).parameters()))
    here, cores = len(group.ranks_on_this_machine), backend.cpu_count()
    print(f"{group.size} processes, {here} on this machine, {cores} cores each; load {os.getloadavg()[0]:.1f}")
    print(f"{options.config}, {options.batch_size} sequences each, {size / 1e6:.1f} MB of gradients, {options.rounds} rounds")
    print("\n| milliseconds | median | smallest | largest | processor time |\n| --- | --- | --- | --- | --- |")
    for name, values in seconds.items():
        figures = (statistics.median(values), min(values), max(values), statistics.median(processor[name]))
        print(f"| {name} | " + " | ".join(f"{1e3 * figure:.1f}" for figure in figures) + " |")
    # One after the other, as training does it
    predicted = [a + b for a, b in zip(seconds["all at once, no exchange"], seconds["all-reduce"], strict=True)]
    measured = seconds["all together"]
    print(f"\nthe same tokens by one process on all cores: {_ratio(seconds['one process, all cores'], measured)}")
    print(f"weak scaling: {_ratio(seconds['one process, its share'], measured)}")
    print(f"steps without exchange + all-reduce: {_ratio(predicted, measured)}")
    print("(each as a multiple of the time of all together: median, smallest to largest)")
    by_one, by_all = processor["one process, all cores"], processor["all together"]
    print(f"the same tokens by one process, in processor time: {_ratio(by_one, by_all)}")
    sent = 2 * (group.size - 1) / group.size * size
    print(f"all-reduce: {sent / statistics.median(seconds['all-reduce']) / 1e6:.0f} MB/s sent by each")
    if options.json:
        values_of = {"seconds": seconds, "processor_seconds": processor}
        written: dict[str, Any] = {"options": vars(options) | {"json": None}, "bytes": size, **values_of}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def _ratio(above: list[float], below: list[float]) -> str:
    values = [a / b for a, b in zip(above, below, strict=True)]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()

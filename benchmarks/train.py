"""Training: tokens per second beside mlx-lm's trainer and PyTorch, where a step's time goes, and what was promised.

Ours and the peers take turns, each time in a new process, so that a machine that slows down slows all; what counts
is the ratio of a pair. Compilation and warm-up are left out everywhere.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from children import in_child
from documents import CODE, prepare_documents
from energy import NO_ENERGY, PowerLog, power_log
from fingerprint import Facts
from harness import Bench, Report, fits, plain, stem, training_peers
from real_command import COMMAND, command_rates
from results import Figure
from tables import Table, show_spread
from timing import MLX_LM, OURS, PYTORCH, Comparison, Spread, take_turns, tokens_per_second
from verdict import PROMISED_CHIP, verdict

from mlx_codegen import backend
from mlx_codegen.chips import find_chip
from mlx_codegen.config import RunConfig, to_yaml
from mlx_codegen.costs import model_costs
from mlx_codegen.hub import hugging_face_config

ONCE = "train_once.py"
WINDOW_SECONDS = 2.0
CPU_BATCH_SIZES = {"nano": 8}
CPU_BATCH_SIZE = 4
FULL_NOTE = (
    "Batches of random tokens, every sequence as long as the context: a step has batch × context tokens for all. Ours: the step "
    "of mlx-codegen train with the recipe's optimizer and clipping, data made within the clock. mlx-lm: its own trainer, all "
    "parameters trained, AdamW, no clipping, its clock stops while it waits for data; same fast BLAS as ours, default threads. "
    "PyTorch: transformers' model, AdamW, no clipping, not compiled; float32 on CPUs, else autocast. Ratio: ours over theirs, "
    "pair by pair."
)
DOCUMENTS_NOTE = (
    "Tokens of text per second on the bundled scripts: ours packs them without padding and reads them through the data path of "
    "mlx-codegen train; mlx-lm's trainer sorts them by length and pads each batch. Padding counts for neither."
)
SPLIT_NOTE = (
    "The step is one graph, compiled on GPUs: forward, backward and optimizer are graphs of their own here, evaluated one after "
    "the other, and add up to more than they cost within the step; backward is gradients less forward. What the host sees of the "
    "whole: handing out (building the graph and queueing it; a CPU's queue is short, so most of the work is done meanwhile), "
    "data (making the next batch) and wait (for the rest of the device's work: data costs nothing while there is wait)."
)
MACHINE_NOTE = (
    "Model FLOPs: 6 for each matrix entry and token (2 forward, 4 backward), plus causal attention; recomputing, optimizer and "
    "element-wise work count nothing. Memory: the most that MLX's arrays took, and the whole process (RSS)."
)
COMMAND_NOTE = (
    "Steps of the real command, with its display on a terminal, its log and its data, seen from outside; and bare steps on "
    "a ready batch, in turns. Slower: what data, logging and display cost, should be below 2 %."
)


@dataclass
class SizeResult:
    """Everything measured for one size; rates in tokens per second, the split in seconds."""

    size: str
    optimizer: str
    batch_size: int
    context_length: int
    parameters: int
    training_flops_per_token: int
    peak_flops: float
    peak_source: str
    full: Comparison
    documents: Comparison
    command: Comparison
    split: dict[str, float]
    peak_bytes: int
    resident_bytes: int
    watts: float | None

    @property
    def utilisation(self) -> float:
        """Share of the peak that the model's own arithmetic used."""
        return self.full.ours.rate.median * self.training_flops_per_token / self.peak_flops


@dataclass
class Children:
    """Measurements of one size in processes of their own, and what they leave behind."""

    arguments: list[str]
    seconds: float
    power: PowerLog
    peak_flops: float = 0.0
    peak_bytes: int = 0
    resident_bytes: int = 0
    watts: list[float] = field(default_factory=list)

    def full(self, side: str) -> list[float]:
        """Rates on full batches of random tokens."""
        if side == PYTORCH:
            return tokens_per_second(in_child("torch_once.py", PYTORCH, *self.arguments)["steps"], WINDOW_SECONDS)
        if side == MLX_LM:
            return self.rates(in_child(ONCE, MLX_LM, *self.arguments))
        self.peak_flops = max(self.peak_flops, in_child(ONCE, "peak", *self.arguments))
        measured = in_child(ONCE, OURS, *self.arguments)
        self.peak_bytes = max(self.peak_bytes, measured["peak_bytes"])
        self.resident_bytes = max(self.resident_bytes, measured["resident_bytes"])
        watts = self.power.mean_watts(measured["started"], measured["ended"])
        self.watts += [] if watts is None else [watts]
        return self.rates(measured)

    def documents(self, side: str) -> list[float]:
        """Rates on the bundled scripts."""
        return self.rates(in_child(ONCE, f"{side}-documents", *self.arguments))

    @staticmethod
    def rates(measured: Any) -> list[float]:
        """Windows of steps."""
        return tokens_per_second(measured["steps"], WINDOW_SECONDS)


def measure(bench: Bench) -> Report:
    """All sizes that fit the memory, one after the other."""
    results: list[SizeResult] = []
    skipped: list[str] = []
    with power_log() as power:
        for size, config in bench.configs.items():
            batch_size = bench.options.batch_size or default_batch_size(size, config)
            streams = len(backend.compute_streams())
            needed = model_costs(config.model, batch_size, config.gradient_checkpointing, streams).training_bytes
            if fits(needed):
                results.append(measure_size(size, config, batch_size, bench, power))
            else:
                skipped.append(f"{size} (needs about {needed / 1e9:,.1f} GB for batches of {batch_size})")
    details = {"window_seconds": WINDOW_SECONDS, "skipped": skipped, "sizes": [plain(result) for result in results]}
    return Report(tables(results, skipped, bench.facts), figures(results), details)


def default_batch_size(size: str, config: RunConfig) -> int:
    """The recipe's own where a GPU holds it; a CPU would take minutes for a step of that."""
    if backend.device_kind() == "cpu":
        return CPU_BATCH_SIZES.get(stem(size), CPU_BATCH_SIZE)
    settings = config.phase(config.phase_names()[-1])
    assert settings is not None
    return settings.batch_size


def measure_size(size: str, config: RunConfig, batch_size: int, bench: Bench, power: PowerLog) -> SizeResult:
    """Full batches, documents, the real command, and one step taken apart."""
    options = bench.options
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = prepare_documents(folder, config, batch_size, options.seconds)
        (folder / "config.yaml").write_text(to_yaml(prepared), encoding="utf-8")
        (folder / "hugging_face.json").write_text(json.dumps(hugging_face_config(prepared.model)), encoding="utf-8")
        precision = backend.resolve_precision(config.precision)
        arguments = ["--folder", name, "--batch-size", str(batch_size), "--seconds", str(options.seconds)]
        arguments += ["--precision", precision, "--threads", str(backend.cpu_count())]
        children = Children(arguments, options.seconds, power)

        def report(what: str) -> Any:
            return lambda line: bench.say(f"{size}, {what}, {line} tokens/s")

        def command(side: str) -> list[float]:
            if side == OURS:
                return children.rates(in_child(ONCE, "bare", *arguments))
            return tokens_per_second(command_rates(folder, options.seconds), WINDOW_SECONDS)

        peers = training_peers(options)
        full = take_turns(options.rounds, peers, children.full, report("full batches"))
        padded = [MLX_LM] if MLX_LM in peers else []
        documents = take_turns(options.rounds, padded, children.documents, report("documents"))
        in_command = take_turns(options.rounds, [COMMAND], command, report("the real command"))
        split = in_child(ONCE, "split", *arguments)
    settings = prepared.phase(CODE)
    assert settings is not None
    costs = model_costs(prepared.model, batch_size)
    chip = find_chip(str(bench.facts["chip"]), _int(bench.facts["gpu_cores"]))
    return SizeResult(
        size=size,
        optimizer=settings.optimizer,
        batch_size=batch_size,
        context_length=prepared.model.context_length,
        parameters=costs.parameters,
        training_flops_per_token=costs.training_flops_per_token,
        peak_flops=chip.peak_flops(precision) if chip else children.peak_flops,
        peak_source=chip.peak_source(precision) if chip else f"best {precision} matrix product measured between the rounds",
        full=full,
        documents=documents,
        command=in_command,
        split=split,
        peak_bytes=children.peak_bytes,
        resident_bytes=children.resident_bytes,
        watts=sum(children.watts) / len(children.watts) if children.watts else None,
    )


def _int(value: str | int | None) -> int | None:
    return value if isinstance(value, int) else None


def figures(results: list[SizeResult]) -> list[Figure]:
    """What the next run is compared by."""
    found: list[Figure] = []
    for result in results:
        name = f"{stem(result.size)} {result.batch_size} × {result.context_length} {result.optimizer}"
        for what, comparison in (("full batches", result.full), ("documents", result.documents)):
            found.append(Figure(f"{name}, {what}", OURS, "tokens/s", comparison.ours.rate))
            for side, peer in comparison.peers.items():
                found.append(Figure(f"{name}, {what}", side, "tokens/s", peer.rate))
                found.append(Figure(f"{name}, {what}", f"{OURS} / {side}", "ratio", peer.ratio))
    return found


def tables(results: list[SizeResult], skipped: list[str], facts: Facts) -> list[Table]:
    """Everything for people."""
    made = [full_table(results), documents_table(results), split_table(results), machine_table(results)]
    made += [command_table(results), verdict_table(results, str(facts["chip"]))]
    if skipped:
        made[0].notes.append(f"Left out, for want of memory: {', '.join(skipped)}.")
    return made


def full_table(results: list[SizeResult]) -> Table:
    """Tokens per second beside the peers."""
    columns = ("size", "optimizer", "batch", OURS, MLX_LM, "ratio", PYTORCH, "ratio")
    table = Table("Training on full batches, tokens per second: median (min to max of windows)", columns, text_columns=2)
    for result in results:
        cells = [result.size, result.optimizer, f"{result.batch_size} × {result.context_length}"]
        cells.append(show_spread(result.full.ours.rate))
        for side in (MLX_LM, PYTORCH):
            peer = result.full.peers.get(side)
            cells += [show_spread(peer.rate if peer else None), show_spread(peer.ratio if peer else None, 2)]
        table.rows.append(tuple(cells))
    table.notes.append(FULL_NOTE)
    return table


def documents_table(results: list[SizeResult]) -> Table:
    """Tokens of text per second, packed and padded."""
    table = Table("Training on documents, tokens of text per second", ("size", "ours, packed", "mlx-lm, padded", "ratio"))
    for result in results:
        peer = result.documents.peers.get(MLX_LM)
        cells = (show_spread(peer.rate if peer else None), show_spread(peer.ratio if peer else None, 2))
        table.rows.append((result.size, show_spread(result.documents.ours.rate), *cells))
    table.notes.append(DOCUMENTS_NOTE)
    return table


def split_table(results: list[SizeResult]) -> Table:
    """Milliseconds of a step."""
    parts = ("whole", "forward", "backward", "optimizer", "handing out", "data", "wait")
    table = Table("One step of ours, milliseconds (medians)", ("size", "batch", *parts))
    for result in results:
        batch = f"{result.batch_size} × {result.context_length}"
        table.rows.append((result.size, batch, *(f"{1000 * result.split[part]:,.1f}" for part in parts)))
    table.notes.append(SPLIT_NOTE)
    return table


def machine_table(results: list[SizeResult]) -> Table:
    """Arithmetic, memory, energy."""
    columns = ("size", "parameters", "MFLOP/token", "GFLOP/s", "of peak", "arrays, MB", "process, MB", "mJ/token")
    table = Table("What ours makes of the machine", columns)
    for result in results:
        rate = result.full.ours.rate.median
        table.rows.append((
            result.size,
            f"{result.parameters:,}",
            f"{result.training_flops_per_token / 1e6:,.1f}",
            f"{rate * result.training_flops_per_token / 1e9:,.1f}",
            f"{result.utilisation:.1%}",
            f"{result.peak_bytes / 1e6:,.0f}",
            f"{result.resident_bytes / 1e6:,.0f}",
            "" if result.watts is None else f"{1000 * result.watts / rate:,.2f}",
        ))  # fmt: skip
    peaks = dict.fromkeys(f"{result.peak_flops / 1e9:,.0f} GFLOP/s ({result.peak_source})" for result in results)
    table.notes += [MACHINE_NOTE, "Peak: " + ", ".join(peaks) + "."]
    if not any(result.watts for result in results):
        table.notes.append(NO_ENERGY)
    return table


def command_table(results: list[SizeResult]) -> Table:
    """What stands around the step."""
    columns = ("size", "bare steps, tokens/s", f"{COMMAND}, tokens/s", "slower")
    table = Table("The real command", columns)
    for result in results:
        peer = result.command.peers[COMMAND]
        cost = Spread(*(100 * (value - 1) for value in (peer.ratio.median, peer.ratio.min, peer.ratio.max)))
        bare = show_spread(result.command.ours.rate)
        table.rows.append((result.size, bare, show_spread(peer.rate), f"{show_spread(cost, 1)} %"))
    table.notes.append(COMMAND_NOTE)
    return table


def verdict_table(results: list[SizeResult], chip: str) -> Table:
    """Each size against its promise."""
    there = f"on an {PROMISED_CHIP}" if chip == PROMISED_CHIP else f"projected to an {PROMISED_CHIP}"
    columns = ("size", "promised", "asks of its peak", "used of the peak here", there, "ratio", "verdict")
    table = Table(f"The promise: tokens per second of training on an {PROMISED_CHIP}", columns)
    for result in results:
        found = verdict(stem(result.size), result.full.ours.rate.median, result.training_flops_per_token, result.peak_flops, chip)
        if found is not None:
            shares = (f"{found.share_of_peak:.0%}", f"{found.utilisation:.0%}")
            table.rows.append((
                result.size, f"{found.promised:,}", *shares, f"{found.rate:,.0f}", f"{found.ratio:.2f}", found.words(),
            ))  # fmt: skip
    promised_chip = find_chip(PROMISED_CHIP)
    assert promised_chip is not None
    peak = f"{promised_chip.peak_flops('float16') / 1e12:.1f} TFLOP/s"
    table.notes.append(f"Peak of an {PROMISED_CHIP}: {peak} ({promised_chip.peak_source('float16')}), float16 as float32.")
    if chip != PROMISED_CHIP:
        table.notes.append(f"This is no {PROMISED_CHIP}. The projection takes the share of the peak that was used here.")
    return table

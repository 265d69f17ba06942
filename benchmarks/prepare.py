"""Data: megabytes of text a second through prepare, the memory that it takes, and how soon training starts after it."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from children import in_child
from documents import prepare_documents
from harness import Bench, Report, plain, stem
from random_model import bundled_tokenizer
from real_command import start_seconds
from results import Figure
from tables import Table, show_spread
from timing import OURS, Spread, spread

from mlx_codegen.config import RunConfig, SourceConfig, to_yaml
from mlx_codegen.data.sources import read_documents

ONCE = "prepare_once.py"
BYTES_PER_SECOND = 4_000_000
"""So much text for each second of --seconds: about what prepare takes that long for."""
DOCUMENTS = {"english": 12_000, "bash": 16_000}
STARTS = 3
GOALS_NOTE = "Goals: 20 MB/s from files on two cores, memory that does not grow with the text, training within two seconds."
TEXT_NOTE = (
    "From files: the bundled English and scripts, written to a JSON Lines file before, through all of prepare (read, clean, "
    "drop repeats, split, tokenise, write), again and again into new folders. Bundled: the scripts as they ship, whose tasks "
    "prepare renders first. Memory of the process (RSS), Python, MLX and tokenizer included; also with a quarter of the text."
)
START_NOTE = (
    "From the start of mlx-codegen train, its data prepared before, until it announces its phase (weights made, data open), "
    "and until its first step is in the log, after the first checkpoint and evaluation."
)


@dataclass
class TextResult:
    """Prepare with one vocabulary; rates in MB of text a second."""

    pieces: int
    text_bytes: int
    from_files: Spread
    bundled: Spread
    resident_bytes: int
    resident_bytes_of_quarter: int


@dataclass
class StartResult:
    """Seconds from the start of the command."""

    size: str
    announced: Spread
    first_step: Spread


def measure(bench: Bench) -> Report:
    """Each vocabulary once, and the start of every size."""
    by_vocabulary = {config.model.vocab_size: config for config in bench.configs.values()}
    texts = [measure_text(config, bench) for config in by_vocabulary.values()]
    starts = [measure_start(size, config, bench) for size, config in bench.configs.items()]
    details = {"texts": [plain(result) for result in texts], "starts": [plain(result) for result in starts]}
    return Report([text_table(texts), start_table(starts)], figures(texts, starts), details)


def measure_text(config: RunConfig, bench: Bench) -> TextResult:
    """Rounds of both origins in turns, in new processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = bundled_tokenizer(config)
        (folder / "tokenizer.model").write_bytes(tokenizer.model_bytes)
        budget = int(bench.options.seconds * BYTES_PER_SECOND)
        text_bytes = write_text(folder / "text.jsonl", budget)
        write_text(folder / "quarter.jsonl", text_bytes // 4)
        arguments = ["--folder", name, "--seconds", str(bench.options.seconds)]
        resident_of_quarter = in_child(ONCE, "quarter", *arguments)["resident_bytes"]
        rates: dict[str, list[float]] = {"text": [], "bundled": []}
        resident = 0
        for number in range(1, bench.options.rounds + 1):
            for what, found in rates.items():
                measured = in_child(ONCE, what, *arguments)
                found += [done / seconds / 1e6 for done, seconds in measured["steps"]]
                resident = max(resident, measured["resident_bytes"] if what == "text" else 0)
            last = ", ".join(f"{what} {found[-1]:.1f}" for what, found in rates.items())
            bench.say(f"prepare, {tokenizer.vocab_size} pieces, round {number}: {last} MB/s")
    from_files, bundled = spread(rates["text"]), spread(rates["bundled"])
    return TextResult(tokenizer.vocab_size, text_bytes, from_files, bundled, resident, resident_of_quarter)


def write_text(file: Path, budget: int) -> int:
    """About `budget` bytes of bundled documents, languages in turns, as JSON Lines; returns the bytes of text."""
    written = 0
    with file.open("w", encoding="utf-8") as stream:
        for document in _alternating(*(_documents(language) for language in DOCUMENTS)):
            if written >= budget:
                break
            written += len(document.encode())
            stream.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
    return written


def _documents(language: Any) -> Iterator[str]:
    return islice(read_documents(SourceConfig(name=language, bundled=language)), DOCUMENTS[language])


def _alternating(*streams: Iterator[str]) -> Iterator[str]:
    """One of each in turns, until all have ended."""
    left = list(streams)
    while left:
        for stream in tuple(left):
            document = next(stream, None)
            if document is None:
                left.remove(stream)
            else:
                yield document


def measure_start(size: str, config: RunConfig, bench: Bench) -> StartResult:
    """Several starts of the real command; one before them reads files from the disk."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = prepare_documents(folder, config, 1, bench.options.seconds)
        (folder / "config.yaml").write_text(to_yaml(prepared), encoding="utf-8")
        start_seconds(folder)
        times = [start_seconds(folder) for _ in range(STARTS if bench.options.rounds > 1 else 1)]
    announced, first_step = (spread(each) for each in zip(*times, strict=True))
    bench.say(f"{size}, start of training: {announced.median:.2f} s, first step {first_step.median:.2f} s")
    return StartResult(size, announced, first_step)


def figures(texts: list[TextResult], starts: list[StartResult]) -> list[Figure]:
    """What the next run is compared by."""
    found: list[Figure] = []
    for result in texts:
        found.append(Figure(f"prepare from files, {result.pieces} pieces", OURS, "MB/s", result.from_files))
        found.append(Figure(f"prepare bundled scripts, {result.pieces} pieces", OURS, "MB/s", result.bundled))
    found += [Figure(f"{stem(each.size)}, start of training", OURS, "seconds", each.announced, False) for each in starts]
    return found


def text_table(results: list[TextResult]) -> Table:
    """Megabytes a second, and memory."""
    columns = ("pieces", "text, MB", "from files, MB/s", "bundled, MB/s", "memory, MB", "a quarter's, MB")
    table = Table("Prepare: median (min to max of passes)", columns, notes=[TEXT_NOTE, GOALS_NOTE])
    for each in results:
        rates = (show_spread(each.from_files, 1), show_spread(each.bundled, 1))
        memory = (f"{each.resident_bytes / 1e6:,.0f}", f"{each.resident_bytes_of_quarter / 1e6:,.0f}")
        table.rows.append((f"{each.pieces:,}", f"{each.text_bytes / 1e6:.1f}", *rates, *memory))
    return table


def start_table(results: list[StartResult]) -> Table:
    """Seconds to training."""
    table = Table("Start of training from prepared files, seconds", ("size", "phase announced", "first step done"))
    for each in results:
        table.rows.append((each.size, show_spread(each.announced, 2), show_spread(each.first_step, 2)))
    table.notes.append(START_NOTE)
    return table

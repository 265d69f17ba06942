"""`mlx-codegen train` as a person runs it, on a terminal, watched through its log from outside."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from children import child_environment
from documents import CODE, run_folder
from timing import Step

from mlx_codegen.errors import UserError

COMMAND = "mlx-codegen train"
WARM_UP_STEPS = 3
POLL_SECONDS = 0.005
PATIENCE_SECONDS = 600.0


class Terminal:
    """What a program wrote on its terminal, as it comes, and when the first of it came."""

    def __init__(self) -> None:
        self.text = ""
        self.times: list[tuple[float, int]] = []

    def read(self, descriptor: int) -> None:
        """Take in everything until the program ends."""
        with suppress(OSError):  # Linux's way to say that the other side is closed
            while piece := os.read(descriptor, 65536):
                self.text += piece.decode(errors="replace")
                self.times.append((time.perf_counter(), len(self.text)))

    def time_of(self, words: str) -> float | None:
        """When these words stood there; None if they do not."""
        place = self.text.find(words)
        end = place + len(words)
        return None if place < 0 else next(moment for moment, length in self.times if length >= end)


@contextmanager
def training(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """The command in a folder that `prepare_documents` made ready, until the end of the block."""
    arguments = ["train", "config.yaml", "--phase", CODE, "--name", run_folder(folder).path.name]
    command = [sys.executable, "-m", "mlx_codegen", *arguments, "--tokenizer", "tokenizer.model"]
    run = run_folder(folder)
    for old in (run.metrics_file, run.checkpoint(CODE, "last"), run.checkpoint(CODE, "best")):
        old.unlink(missing_ok=True)  # so that the command starts anew
    environment = {**child_environment(), "TERM": "xterm-256color"}
    ours, theirs = pty.openpty()
    terminal = Terminal()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    reader = Thread(target=terminal.read, args=(ours,), daemon=True)
    reader.start()
    try:
        yield process, terminal
    finally:
        process.send_signal(signal.SIGKILL)  # its folder goes with it: nothing to save
        process.wait()
        reader.join(timeout=5)
        os.close(ours)


def steps(folder: Path, process: "subprocess.Popen[bytes]", terminal: Terminal) -> Iterator[tuple[float, int]]:
    """The time at which each step's line stood in the log, and the tokens seen so far. Raises UserError if it ends."""
    file = run_folder(folder).metrics_file
    deadline = time.perf_counter() + PATIENCE_SECONDS
    while not file.exists():
        _check_alive(process, terminal, deadline)
        time.sleep(POLL_SECONDS)
    with file.open(encoding="utf-8") as stream:
        pending = ""
        while True:
            pending += stream.readline()
            if not pending.endswith("\n"):
                _check_alive(process, terminal, deadline)
                time.sleep(POLL_SECONDS)
                continue
            moment, values, pending = time.perf_counter(), json.loads(pending), ""
            if values["kind"] == "step":
                yield moment, values["tokens_seen"]


def command_rates(folder: Path, seconds: float) -> list[Step]:
    """Tokens and seconds of each step of the command, waiting for data, logging and display included."""
    found: list[Step] = []
    with training(folder) as (process, terminal):
        before: tuple[float, int] | None = None
        for number, (moment, tokens) in enumerate(steps(folder, process, terminal), 1):
            if before is not None:
                found.append((tokens - before[1], moment - before[0]))
            if number >= WARM_UP_STEPS:
                before = (moment, tokens)
            if sum(duration for _, duration in found) >= seconds:
                return found
    raise AssertionError("steps() ends with an error only")


def start_seconds(folder: Path) -> tuple[float, float]:
    """Seconds from the start of the command until it announces the phase, and until its first step is in the log."""
    start = time.perf_counter()
    with training(folder) as (process, terminal):
        first_step, _ = next(steps(folder, process, terminal))
    announced = terminal.time_of(f"{CODE} phase")
    assert announced is not None, "a step was logged before the phase was announced"
    return announced - start, first_step - start


def _check_alive(process: "subprocess.Popen[bytes]", terminal: Terminal, deadline: float) -> None:
    if process.poll() is not None or time.perf_counter() > deadline:
        words = terminal.text.strip().splitlines() or ["no message"]
        raise UserError(f"{COMMAND} ended, or made no step in {PATIENCE_SECONDS:.0f} seconds: {words[-1]}")

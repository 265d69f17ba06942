"""Watts of a Mac's chip while something runs, from `powermetrics`; nothing elsewhere, or where it may not be read.

`powermetrics --format plist` writes one property list a sample, each after the first behind a NUL byte. `processor` holds
`combined_power` (CPU, GPU and neural engine) in milliwatts.
"""

import os
import plistlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import IO
from xml.parsers.expat import ExpatError

SAMPLE_SECONDS = 0.5
SAMPLE_END = b"</plist>"
PROGRAM = "powermetrics"
OPTIONS = ["--samplers", "cpu_power,gpu_power", "--format", "plist", "-i", f"{SAMPLE_SECONDS * 1000:.0f}"]
NO_ENERGY = "Energy was not measured: macOS's powermetrics needs root (run sudo -v first); other systems have none."


def watts_in(sample: bytes) -> float | None:
    """Power of the whole chip in one property list; None for anything else."""
    try:
        return float(plistlib.loads(sample.strip(b"\0\r\n "))["processor"]["combined_power"]) / 1000
    except (plistlib.InvalidFileException, ExpatError, ValueError, KeyError, TypeError):
        return None


class PowerLog:
    """Samples as they come: the time at which each ended, and watts."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []

    def read(self, stream: IO[bytes]) -> None:
        """Take in samples until the stream (unbuffered) ends."""
        pending = b""
        while piece := stream.read(65536):
            *done, pending = (pending + piece).split(SAMPLE_END)
            watts = (watts_in(sample + SAMPLE_END) for sample in done)
            self.samples += [(time.time(), value) for value in watts if value is not None]

    def mean_watts(self, start: float, end: float) -> float | None:
        """Mean of the samples that lie between two times of `time.time()`; None if there are none."""
        watts = [value for stop, value in self.samples if start <= stop - SAMPLE_SECONDS and stop <= end]
        return sum(watts) / len(watts) if watts else None


@contextmanager
def power_log() -> Iterator[PowerLog]:
    """Watch the chip's power meanwhile. The log stays empty where that is not possible."""
    log = PowerLog()
    if sys.platform != "darwin" or shutil.which(PROGRAM) is None:
        yield log
        return
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]  # -n: never ask for a password
    command = [*root, PROGRAM, *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdout is not None
        reader = Thread(target=log.read, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            yield log
        finally:
            process.terminate()
            reader.join(timeout=5)

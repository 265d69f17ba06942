"""The command line in a process that computes on the CPU and kills itself (SIGKILL) at a given moment.

    fault_child.py WHEN ARGUMENTS...

WHEN is empty, `file N` (at the N-th time that a file of the run is opened to write, renamed or removed: all places between
two changes on disk) or `half N` (when half of the N-th checkpoint is written).
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import mlx_codegen  # noqa: F401  (before mlx.core)

import mlx.core as mx  # isort: skip

WRITING = os.O_WRONLY | os.O_RDWR


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_file_event(number: int) -> None:
    left = number

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open":
            changes = bool(arguments[2] & WRITING)
        else:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
        if changes and "runs" in Path(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else "").parts:
            left -= 1
            if left == 0:
                die()

    sys.addaudithook(watch)


def die_in_checkpoint(number: int) -> None:
    left, save = number, mx.save_safetensors

    def save_half(path: str, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
        nonlocal left
        save(path, arrays, metadata)
        left -= 1
        if left == 0:
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

    mx.save_safetensors = save_half


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    when, *sys.argv[1:] = sys.argv[1:]
    kind, _, count = when.partition(" ")
    if kind == "file":
        die_at_file_event(int(count))
    elif kind == "half":
        die_in_checkpoint(int(count))
    from mlx_codegen.cli.main import main

    main()

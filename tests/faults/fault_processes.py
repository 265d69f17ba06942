"""Real training processes for the fault tests: started, watched by what they write, ended, started again."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_run import TrainedRun, metrics, state_on_disk, tiny_config

from mlx_codegen.config import PHASES, to_yaml
from mlx_codegen.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("fault_child.py")
PATIENCE_SECONDS = 120.0
Note = Callable[[str, int, str], None]
"""The fixture `note`."""


def start(folder: RunFolder, *options: str, **how: Any) -> "subprocess.Popen[str]":
    """`mlx-codegen train tiny.yaml` with options."""
    return start_command(folder, "train", "tiny.yaml", *options, **how)


def start_command(
    folder: RunFolder,
    *arguments: str,
    die: str = "",
    file_limit: int | None = None,
    memory_limit: int | None = None,
    before_start: Callable[[], object] | None = None,
    **popen: Any,
) -> "subprocess.Popen[str]":
    """A command where `runs/tiny` is `folder`, in a process that computes on the CPU. `die` as in fault_child.py.

    `file_limit`: no file may grow beyond this many bytes, as on a full disk. `memory_limit`: bytes of address space.
    """
    top = folder.path.parents[1]
    if not (top / "tiny.yaml").exists():
        (top / "tiny.yaml").write_text(to_yaml(tiny_config()))

    def prepare() -> None:
        for kind, size in ((resource.RLIMIT_FSIZE, file_limit), (resource.RLIMIT_AS, memory_limit)):
            if size is not None:
                resource.setrlimit(kind, (size, size))

        if before_start is not None:
            before_start()

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | popen
    return subprocess.Popen(
        [sys.executable, str(CHILD), die, *arguments],
        cwd=top,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=prepare,
        **pipes,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, output, errors


def wait_for(reached: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Until something is true, or the process has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached() and process.poll() is None:
        assert time.monotonic() < deadline, "the process never came that far"
        time.sleep(0.002)


def steps_done(folder: RunFolder) -> int:
    """Steps in the log, of both phases together."""
    try:
        lines = folder.metrics_file.read_text().splitlines()
    except OSError:
        return 0
    return sum('"kind": "step"' in line for line in lines)


def wait_for_step(folder: RunFolder, count: int, process: "subprocess.Popen[str]") -> None:
    wait_for(lambda: steps_done(folder) >= count, process)


def signal_at_step(folder: RunFolder, count: int, number: signal.Signals, *options: str) -> tuple[int, str, str]:
    """Train until so many steps are in the log, then send a signal; what became of it."""
    process = start(folder, *options)
    wait_for_step(folder, count, process)
    process.send_signal(number)
    return finish(process)


def resume_to_the_end(folder: RunFolder) -> str:
    """Returns what is shown."""
    status, output, errors = finish(start(folder, "--resume"))
    assert (status, errors) == (0, "")
    return output


def assert_same_run(folder: RunFolder, unbroken: TrainedRun) -> None:
    """Same log line by line, same weights, moments, random state and position, bit for bit; and no other files."""
    assert metrics(folder) == metrics(unbroken.folder)
    for phase in PHASES:
        for name in ("best", "last"):
            ours = state_on_disk(folder.checkpoint(phase, name))
            theirs = state_on_disk(unbroken.folder.checkpoint(phase, name))
            assert ours[1] == theirs[1], f"{phase} {name}"
            assert ours[0] == theirs[0], f"{phase} {name}"
    assert files(folder) == files(unbroken.folder)


def files(folder: RunFolder) -> set[str]:
    """Names of all files of a run."""
    return {str(file.relative_to(folder.path)) for file in folder.path.rglob("*") if file.is_file()}


def one_line(errors: str) -> str:
    """The one line after `error: `."""
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    return errors.removeprefix("error: ").rstrip("\n")


def log(folder: RunFolder) -> list[dict[str, Any]]:
    """All lines of the log."""
    return [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]

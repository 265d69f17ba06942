"""Is a run being trained at this moment? Told from outside, without asking the training program.

Whoever trains a run holds its `lock` (see `lock.py`). On a file system without locks only time tells: a line is written for
every step, so files that have been quiet for long mean that nobody writes them.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from mlx_codegen.config import PHASES, PhaseName
from mlx_codegen.training.history import PhaseHistory
from mlx_codegen.training.lock import holder
from mlx_codegen.training.run_folder import RunFolder

QUIET_SECONDS = 120.0
"""Longer than any pause of a run in training: an evaluation, the start of the next phase."""
QUIET_STEPS = 10
"""The same in steps, for models whose steps take long."""


def activity(folder: RunFolder, histories: Mapping[PhaseName, PhaseHistory], finished: bool, now: float) -> tuple[str, str]:
    """`running`, `finished`, `stopped`, or `prepared` where no step was taken yet; and what that rests on."""
    owner = holder(folder.path)
    if owner:
        return "running", owner
    if finished:
        return "finished", ""
    quiet = now - last_written(folder)
    if owner is not None and quiet < _patience(histories):
        return "running", f"written to {rounded(quiet)} ago"
    return ("stopped" if histories else "prepared"), f"nothing written for {rounded(quiet)}"


def _patience(histories: Mapping[PhaseName, PhaseHistory]) -> float:
    """Seconds of silence that mean nothing yet."""
    last = [history.steps[-1] for history in histories.values() if history.steps]
    seconds = [each.tokens_seen / max(1, each.step) / each.tokens_per_second for each in last if each.tokens_per_second > 0]
    return max([QUIET_SECONDS, *(QUIET_STEPS * each for each in seconds)])


def last_written(folder: RunFolder) -> float:
    """When training last wrote anything, in seconds since 1970. Reports and pictures are of later."""
    files = [folder.metrics_file, folder.config_file, folder.tokenizer_file]
    files += [file for name in PHASES for file in (folder.path / name).glob("*.safetensors")]
    files += [file for name in PHASES for file in folder.data(name).glob("*")]
    times = [status.st_mtime for file in files if (status := file_status(file))]
    return max(times) if times else folder.path.stat().st_mtime


def file_status(file: Path) -> os.stat_result | None:
    """None for a file that is gone, as temporary ones of a running training may be."""
    try:
        return file.stat()
    except OSError:
        return None


def rounded(seconds: float) -> str:
    """`3 seconds`, `12 minutes`, `5 hours`, `8 days`."""
    seconds = max(0.0, seconds)
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}s"
    return f"{seconds:.0f} second{'' if round(seconds) == 1 else 's'}"

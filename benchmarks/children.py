"""Measurements in processes of their own, so that threads and memory of one do not reach the next."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx_codegen
from mlx_codegen.errors import UserError


def child_environment() -> dict[str, str]:
    """Ours, with the package findable from any folder."""
    package = str(Path(mlx_codegen.__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def in_child(script: str, what: str, *arguments: str) -> Any:
    """What `script`, a program beside this file, measures in a process of its own.

    Raises UserError with its last words if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).with_name(script)), what, str(output), *arguments]
        child = subprocess.run(command, env=child_environment(), capture_output=True, text=True, errors="replace")
        if child.returncode:
            raise UserError(f"measuring {what} failed: {(child.stderr.strip().splitlines() or ['no message'])[-1]}")
        return json.loads(output.read_text(encoding="utf-8"))


def resident_bytes() -> int:
    """The most memory that this process has taken so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB on Linux

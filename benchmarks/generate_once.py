"""One measurement in a process of its own: `generate.py` starts it, so that threads and memory of one do not reach the next.

Prints nothing; writes JSON to the file that it is given: `steps` (tokens and seconds of each call) with `peak_bytes`, or
the memory's bandwidth in bytes per second.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import MLX_LM, OURS, Step

import mlx_codegen  # noqa: F401  (first of all: it loads the fast BLAS, which the peer gets as well)

NEW_TOKENS = 128
TEMPERATURE, TOP_P, TOP_K = 0.8, 0.9, 50
BANDWIDTH_SHAPE = (8192, 16384)  # 512 MiB of float32: more than any cache


def prompts(count: int) -> list[str]:
    """Different requests of equal length, about 24 tokens with shebang and comment."""
    return [f"Copy the folder named by $1 to server {10 + row} and print how many files were changed" for row in range(count)]


def ours(checkpoint: Path, batch: int) -> Callable[[], int]:
    """One call writes a batch and returns how many tokens it wrote."""
    from mlx_codegen.generation.engine import load

    engine = load(checkpoint)
    settings: dict[str, Any] = {"temperature": TEMPERATURE, "top_p": TOP_P, "top_k": TOP_K, "max_tokens": NEW_TOKENS}
    requests, seeds = prompts(batch), list(range(batch))

    def write_batch() -> int:
        return sum(completion.tokens for completion in engine.complete(requests, seeds, **settings))

    def write_one() -> int:
        for _ in engine.stream(requests[0], seed=seeds[0], **settings):
            pass
        return NEW_TOKENS  # the same text as write_batch's, which was counted before

    _check(write_batch(), batch)
    return write_batch if batch > 1 else write_one


def peer(checkpoint: Path, folder: Path, batch: int) -> Callable[[], int]:
    """The same with mlx-lm: `generate_step` for one text, `BatchGenerator` for several. Token ids in, token ids out."""
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator, generate_step
    from mlx_lm.sample_utils import make_sampler
    from mlx_lm.utils import load_model

    from mlx_codegen.generation.engine import load

    engine = load(checkpoint)
    ids = [engine.encode_prompt(prompt)[1] for prompt in prompts(batch)]
    del engine
    model, _ = load_model(folder)
    sampler = make_sampler(TEMPERATURE, top_p=TOP_P, top_k=TOP_K)

    def write_one() -> int:
        return sum(1 for _ in generate_step(mx.array(ids[0]), model, max_tokens=NEW_TOKENS, sampler=sampler))

    def write_batch() -> int:
        # All prompts are read before the first token is written, as ours are
        generator = BatchGenerator(
            model, max_tokens=NEW_TOKENS, sampler=sampler, completion_batch_size=batch, prefill_batch_size=batch
        )
        generator.insert(ids)
        count = 0
        while responses := generator.next_generated():
            count += len(responses)
        generator.close()
        return count

    write = write_batch if batch > 1 else write_one
    _check(write(), batch)
    return write


def _check(tokens: int, batch: int) -> None:
    """What was compiled and warmed up must also have written what is counted."""
    assert tokens == batch * NEW_TOKENS, f"{tokens} tokens were written, not {batch} x {NEW_TOKENS}"


def measure(write: Callable[[], int], seconds: float) -> dict[str, Any]:
    """Calls until the time is over, at least one, and the most memory that MLX's arrays took (weights included)."""
    import mlx.core as mx

    mx.clear_cache()
    mx.reset_peak_memory()
    steps: list[Step] = []
    while not steps or sum(duration for _, duration in steps) < seconds:
        start = time.perf_counter()
        tokens = write()
        steps.append((tokens, time.perf_counter() - start))
    return {"steps": steps, "peak_bytes": mx.get_peak_memory()}


def measure_bandwidth(repeats: int = 5) -> float:
    """Best bytes per second of a matrix times a vector, which is what decoding does, with the BLAS's own threads."""
    import mlx.core as mx

    matrix, vector = mx.ones(BANDWIDTH_SHAPE), mx.ones(BANDWIDTH_SHAPE[1:])
    mx.eval(matrix @ vector)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(matrix @ vector)
        best = max(best, matrix.nbytes / (time.perf_counter() - start))
    return best


def main() -> None:
    """Measure one thing; see generate.py."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("what", choices=(OURS, MLX_LM, "bandwidth"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    if options.what == "bandwidth":
        result: Any = measure_bandwidth()
    else:
        side = options.what == OURS
        write = ours(options.checkpoint, options.batch) if side else peer(options.checkpoint, options.folder, options.batch)
        result = measure(write, options.seconds)
    options.output.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

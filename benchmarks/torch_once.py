"""The training step of a person who uses PyTorch and transformers: `train.py` starts it.

Imports nothing of ours, and with it not the BLAS that we load. Takes the arguments of train_once.py.
"""

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from timing import PYTORCH, Enough, Recorder
from transformers import AutoConfig, AutoModelForCausalLM


def device_kind() -> str:
    """The accelerator that PyTorch has, or the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def measure(shape: dict[str, Any], options: argparse.Namespace) -> Recorder:
    """AdamW steps on full batches of random tokens: float32 on a CPU, elsewhere autocast to the precision that ours uses."""
    device = device_kind()
    if options.threads:
        torch.set_num_threads(options.threads)
    config = AutoConfig.for_model(**shape)
    model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    half = device != "cpu" and options.precision != "float32"
    autocast = torch.autocast(device, getattr(torch, options.precision)) if half else contextlib.nullcontext()
    context = int(config.max_position_embeddings)
    recorder = Recorder(options.seconds)
    with contextlib.suppress(Enough):
        while True:
            start = time.perf_counter()
            tokens = torch.randint(config.vocab_size, (options.batch_size, context + 1), device=device)
            with autocast:
                logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()  # waits for the device
            if device != "cpu":
                getattr(torch, device).synchronize()
            recorder.add(options.batch_size * context, time.perf_counter() - start)
    return recorder


def main() -> None:
    """Measure, and write steps (tokens, seconds) as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("what", choices=(PYTORCH,))
    parser.add_argument("output", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="holds hugging_face.json, the model's shape")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    shape = json.loads((options.folder / "hugging_face.json").read_text(encoding="utf-8"))
    result = {"steps": measure(shape, options).steps, "device": device_kind()}
    options.output.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

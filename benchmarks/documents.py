"""Real text for the benchmarks: the bundled scripts, made ready in a folder as a run of mlx-codegen train has them."""

from pathlib import Path

from random_model import bundled_tokenizer

from mlx_codegen.config import PhaseName, RunConfig, build_run_config
from mlx_codegen.data.batches import TokenFile, TrainingBatches, open_token_files
from mlx_codegen.observer import Observer
from mlx_codegen.tokenizer import Tokenizer
from mlx_codegen.training.preparation import prepare_run
from mlx_codegen.training.run_folder import RunFolder

CODE: PhaseName = "code"
DOCUMENTS_PER_SECOND = 1000
FEWEST, MOST = 300, 4000
"""Documents for a measurement of so many seconds: rendering more than are read only costs time; after the last, a new epoch."""
NEVER = 1_000_000_000


def run_folder(folder: Path) -> RunFolder:
    """Where the run is: the name that the real command is given."""
    return RunFolder(folder / "runs" / "bench")


def prepare_documents(folder: Path, config: RunConfig, batch_size: int, seconds: float) -> RunConfig:
    """Write tokenizer and token files of a run below `folder`; return the config of that run.

    One phase with the recipe's settings, batches of `batch_size` and text for `seconds`, that never ends, evaluates or saves.
    """
    tokenizer = bundled_tokenizer(config)
    values = config.model_dump(mode="json", exclude_none=True)
    settings = values["phases"].get(CODE) or values["phases"]["language"]
    endless = {"steps": NEVER, "validate_every": NEVER, "checkpoint_every": NEVER, "validation_tokens": 1}
    count = min(MOST, max(FEWEST, int(seconds * DOCUMENTS_PER_SECOND)))
    sources = [{"name": "bash", "bundled": "bash", "max_documents": count}]
    changed = {**settings, **endless, "batch_size": batch_size, "gradient_accumulation": 1, "sources": sources}
    changed.pop("epochs", None)
    values["phases"] = {CODE: changed}
    values["model"]["vocab_size"] = tokenizer.vocab_size
    result = build_run_config(values)
    file = folder / "tokenizer.model"
    file.write_bytes(tokenizer.model_bytes)
    prepare_run(run_folder(folder), result, [CODE], Observer(), tokenizer_path=file)
    return result


def token_files(folder: Path) -> list[TokenFile]:
    """The training documents that `prepare_documents` wrote."""
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    return open_token_files(run_folder(folder).data(CODE), "train", {}, tokenizer.hash)


def packed_batches(folder: Path, batch_size: int, context_length: int) -> TrainingBatches:
    """Batches as training gets them."""
    return TrainingBatches(token_files(folder), batch_size, context_length, seed=0)


def documents(folder: Path) -> list[list[int]]:
    """Token ids of each document, end-of-text included."""
    (file,) = token_files(folder)
    starts = [0, *(int(end) for end in file.document_ends[:-1])]
    return [file.tokens[start : int(end)].tolist() for start, end in zip(starts, file.document_ends, strict=True)]

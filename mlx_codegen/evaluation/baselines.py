"""What a trained model is compared with: random weights, a 3-gram model, and, given by hand, a model that skipped English.

Measured once and stored in one file, without the values of single prompts, so that every later figure has a before.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_codegen.config import PHASES
from mlx_codegen.data.batches import open_token_files
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.compare import StoredReport
from mlx_codegen.evaluation.context import Settings
from mlx_codegen.evaluation.figures import PartResult
from mlx_codegen.evaluation.held_out import run_of
from mlx_codegen.evaluation.ngram import NgramModel
from mlx_codegen.evaluation.report import Report, without_nan
from mlx_codegen.evaluation.report_files import report_from
from mlx_codegen.generation.engine import Engine, load
from mlx_codegen.hub.folder import open_checkpoint
from mlx_codegen.model import Transformer, count_parameters
from mlx_codegen.training.metrics_log import write_atomically

FORMAT = "mlx_codegen baselines 0"
NO_PHASES = {"bilingual": "left out: a baseline has no language phase that its code phase began from"}


def untrained(checkpoint: Path) -> tuple[Engine, str]:
    """A model of the checkpoint's shape, with the random weights that its training began from; and what it is, in words."""
    opened = open_checkpoint(checkpoint)
    mx.random.seed(opened.config.seed)
    model = Transformer(opened.model_config)
    engine = Engine(model, opened.tokenizer, phase=opened.progress.phase, origin=str(checkpoint))
    return engine, f"untrained: {count_parameters(model):,} random weights, seed {opened.config.seed}"


def three_gram(checkpoint: Path) -> tuple[Engine, str]:
    """A 3-gram model of all text that the checkpoint's run was given to train on; and what it is, in words.

    Raises UserError where the run's token files are missing or damaged.
    """
    trained = load(checkpoint)
    run = run_of(trained)
    folders = [run.data(phase) for phase in PHASES if (run.data(phase) / "manifest.json").exists()] if run else []
    files = [file for folder in folders for file in open_token_files(folder, "train", {}, trained.tokenizer.hash)]
    tokens = sum(len(file.tokens) for file in files)
    if not tokens:
        raise UserError(f"{checkpoint}: no training tokens beside it to count; give a run folder, with its data/ in it")
    model = NgramModel(trained.model.config, [file.tokens for file in files], trained.tokenizer.end_of_text_id)
    # Engine asks of a model no more than this one has
    engine = Engine(model, trained.tokenizer, phase=trained.phase, origin=str(checkpoint))  # type: ignore[arg-type]
    return engine, f"3-gram: {model.size():,} different ones in {tokens:,} tokens"


def trained(checkpoint: Path) -> str:
    """What a trained model is, in words: the tokens of its last phase are those that it was trained on there."""
    progress = open_checkpoint(checkpoint).progress
    return f"{checkpoint}: {progress.phase} phase, {progress.tokens_seen:,} tokens"


BASELINES: dict[str, Callable[[Path], tuple[Engine, str]]] = {"untrained": untrained, "3-gram": three_gram}


def measure_baseline(name: str, checkpoint: Path, settings: Settings, measure: Callable[[Engine, Settings], Report]) -> Report:
    """Evaluates a baseline by `measure`; the parts that it cannot be asked are in the report, with the reason.

    Its origin is the checkpoint, so that it is measured on what the run holds out.
    """
    engine, words = BASELINES[name](checkpoint)
    asked = tuple(part for part in settings.parts if part not in NO_PHASES)
    report = measure(engine, replace(settings, parts=asked))
    left_out = [PartResult(part, part, notes=[NO_PHASES[part]]) for part in settings.parts if part in NO_PHASES]
    return Report(words, settings, [*report.parts, *left_out], report.tokenizer)


def store(file: Path, reports: dict[str, StoredReport], facts: dict[str, Any]) -> None:
    """Writes the baselines, whole or not at all; `facts` are the machine, the commit and the time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    values = {"format": FORMAT, **facts, "reports": {name: _brief(report) for name, report in reports.items()}}
    write_atomically(file, (json.dumps(without_nan(values), indent=2, ensure_ascii=False) + "\n").encode())


def read_stored(file: Path) -> dict[str, StoredReport]:
    """The stored baselines by name; none where there is no file. Raises UserError for a file that is something else."""
    if not file.exists():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(values["format"])
        return {name: report_from(report) for name, report in values["reports"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: no stored baselines, or damaged ones; remove it, and they are measured anew") from None


def _brief(report: StoredReport) -> dict[str, Any]:
    values = asdict(report)
    del values["outdated"]
    for part in values["parts"]:
        del part["examples"]
        for figure in part["figures"].values():
            del figure["prompts"]
    return values

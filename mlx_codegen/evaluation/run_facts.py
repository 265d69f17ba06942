"""What a run cost and what it reached, in a line: to lay runs of several sizes beside each other."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from mlx_codegen.checkpoint import load_checkpoint
from mlx_codegen.config import PHASES, ModelConfig, build_run_config, load_run_config, read_yaml
from mlx_codegen.costs import model_costs
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.figures import Figure
from mlx_codegen.evaluation.report_files import find_report, read_report
from mlx_codegen.tokenizer import Tokenizer
from mlx_codegen.training.history import read_history
from mlx_codegen.training.run_folder import RunFolder


@dataclass(frozen=True)
class RunFacts:
    """One run, or one size that nobody trained yet; None is what is not known."""

    name: str
    parameters: int
    tokens: int | None = None
    """Trained on, in all phases."""
    loss: float | None = None
    """The lowest validation loss of the last phase that was measured, in nats per token."""
    bits_per_byte: float | None = None
    """At the same step."""
    tokens_per_second: float | None = None
    """The median over all steps."""
    figures: dict[str, Figure] = field(default_factory=dict)
    """Figures of its report that the project has an aim for."""


def run_facts(name: str) -> RunFacts:
    """Facts of a run's folder, of a run under runs/, or, where there is none, of a configuration in configs/.

    Raises UserError for a name that is none of them.
    """
    for path in (Path(name), Path("runs") / name):
        if (path / "config.yaml").is_file():
            return _of_run(RunFolder(path))
    if Path(name).is_dir():
        raise UserError(f"{name} is no run: it has no config.yaml; give a folder under runs/, or the name of a size")
    return RunFacts(Path(name).stem, _parameters(load_run_config(name).model))


def kept_checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run by phase and step, equal ones once. Raises UserError where there is none.

    A phase that ended at its best step keeps the same weights as `best` and as `last`.
    """
    kept: dict[tuple[int, int], Path] = {}
    for number, phase in enumerate(PHASES):
        for file in sorted((run / phase).glob("[!.]*.safetensors")):
            kept.setdefault((number, load_checkpoint(file).progress.step), file)
    if not kept:
        raise UserError(f"{run} holds no checkpoints; train it first: mlx-codegen train configs/nano.yaml")
    return [kept[place] for place in sorted(kept)]


def _of_run(run: RunFolder) -> RunFacts:
    config = build_run_config(read_yaml(run.config_file), origin=str(run.config_file)).model
    if run.tokenizer_file.exists():  # a small corpus may carry fewer pieces than were asked for
        config = config.model_copy(update={"vocab_size": Tokenizer.load(run.tokenizer_file).vocab_size})
    phases = read_history(run.metrics_file).phases
    steps = [step for phase in phases.values() for step in phase.steps]
    speeds = [step.tokens_per_second for step in steps if step.tokens_per_second > 0]
    best = next((found for phase in reversed(PHASES) if phase in phases and (found := phases[phase].best())), None)
    return RunFacts(
        name=run.path.resolve().name,
        parameters=_parameters(config),
        tokens=sum(phase.steps[-1].tokens_seen for phase in phases.values() if phase.steps) or None,
        loss=best.loss if best else None,
        bits_per_byte=best.bits_per_byte if best else None,
        tokens_per_second=statistics.median(speeds) if speeds else None,
        figures=_aimed_at(run.path),
    )


def _aimed_at(run: Path) -> dict[str, Figure]:
    try:
        file = find_report(run)
    except UserError:  # no checkpoint yet, so nothing that could have been measured
        return {}
    parts = read_report(file).parts if file else []
    found = {name: figure for part in parts for name, figure in part.figures.items() if figure.target is not None}
    return {name: figure for name, figure in found.items() if not math.isnan(figure.value)}


def _parameters(config: ModelConfig) -> int:
    return model_costs(config, batch_size=1).parameters

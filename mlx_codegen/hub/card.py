"""README.md of an exported model: a model card of the facts that the checkpoint holds, and a place for more."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mlx_codegen.config import RunConfig

TEMPLATES = Path(__file__).parent / "templates"


def model_card(name: str, run: RunConfig, **facts: Any) -> str:
    """The card as Markdown. `facts` are the template's variables (see `templates/model_card.md`)."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters.update(count=lambda n: f"{n:,}", megabytes=lambda n: f"{n / 1e6:.1f} MB", duration=_duration)
    sources = {}
    for phase in run.phase_names():
        settings = run.phase(phase)
        sources[phase] = [source.description for source in settings.sources] if settings is not None else []
    return environment.get_template("model_card.md").render(name=name, run=run, sources=sources, **facts)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"

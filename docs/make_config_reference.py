"""Write docs/CONFIG.md from the fields of mlx_codegen/config.py, so that the two cannot drift apart.

python docs/make_config_reference.py
"""

from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mlx_codegen import config

SECTIONS = {
    "": config.RunConfig,
    "model": config.ModelConfig,
    "tokenizer": config.TokenizerConfig,
    "phases": config.PhasesConfig,
    "phases.language, phases.code": config.PhaseConfig,
    "phases.….sources[…]": config.SourceConfig,
}
INTRODUCTION = """# Configuration

Every key of a file in `configs/`, made from `mlx_codegen/config.py` by `python docs/make_config_reference.py`.
Unknown keys are refused. Any key can be overridden on the command line:
`mlx-codegen train tiny --set phases.code.learning_rate=5e-5 --set phases.code.sources.0.weight=2`.
"""


def reference() -> str:
    """The whole page as Markdown."""
    return "\n".join([INTRODUCTION, *(_section(path, model) for path, model in SECTIONS.items())])


def _section(path: str, model: type[BaseModel]) -> str:
    title = f"`{path}`" if path else "Top level"
    description = " ".join((model.__doc__ or "").split())
    rows = [_row(name, field) for name, field in model.model_fields.items()]
    return "\n".join([f"## {title}", "", description, "", "| key | default | meaning |", "| --- | --- | --- |", *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    return f"| `{name}` | {_default(field)} | {' '.join((field.description or '').split())} |"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "see below"
    if field.default is None:
        return "none"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


if __name__ == "__main__":
    (Path(__file__).parent / "CONFIG.md").write_text(reference(), encoding="utf-8")

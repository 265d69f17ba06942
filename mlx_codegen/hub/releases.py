"""The trained models that ship with the project, in `weights/`, and which one a command takes when none is named."""

from pathlib import Path

from mlx_codegen.errors import UserError
from mlx_codegen.hub.folder import is_model_folder

REPOSITORY = Path(__file__).parents[2]


def releases() -> list[Path]:
    """Release folders, the largest model first: those of `weights/` here, or of the repository that this code runs from."""
    for folder in (Path("weights"), REPOSITORY / "weights"):
        found = [path for path in sorted(folder.glob("*")) if is_model_folder(path)]
        if found:
            return sorted(found, key=_size, reverse=True)
    return []


def newest_run() -> Path | None:
    """The run in `runs/` whose checkpoints changed last."""
    checkpoints = sorted(Path("runs").glob("*/*/best.safetensors"), key=lambda file: file.stat().st_mtime)
    return checkpoints[-1].parent.parent if checkpoints else None


def default_model() -> Path:
    """The best release that is there, else the newest run. Raises UserError where there is neither."""
    chosen = next(iter(releases()), None) or newest_run()
    if chosen is None:
        raise UserError(
            "no model in weights/ and no trained one in runs/; train one first: mlx-codegen demo (or give --model FOLDER)"
        )
    return chosen


def _size(release: Path) -> int:
    """Bytes of weights."""
    return sum(file.stat().st_size for file in release.glob("*.safetensors"))

"""Train a small English-and-bash GPT on your own machine with MLX, and generate scripts with it.

>>> import mlx_codegen
>>> model = mlx_codegen.load("runs/tiny")
>>> print(model.generate("Create a backup script"))
"""

from typing import TYPE_CHECKING, Any

from mlx_codegen.backend import prepare_process
from mlx_codegen.version import __version__

if TYPE_CHECKING:
    from mlx_codegen.generation.engine import Engine, load

__all__ = ["Engine", "__version__", "load"]

# Must happen before mlx.core is imported anywhere: see backend.py.
prepare_process()


def __getattr__(name: str) -> Any:
    """Import the heavy parts when first asked for, so that `mlx-codegen --help` stays instant."""
    if name in ("Engine", "load"):
        from mlx_codegen.generation import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'mlx_codegen' has no attribute '{name}'")

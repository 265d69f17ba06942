"""`mlx-codegen export`: a trained model as a Hugging Face folder."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mlx_codegen.errors import UserError


class Dtype(str, Enum):
    """Choices of --dtype."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


def export(
    model: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, checkpoint, or exported folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder to write.")],
    dtype: Annotated[Dtype, typer.Option(help="Type of the weights.")] = Dtype.float16,
    quantize: Annotated[int | None, typer.Option(metavar="4|8", help="Bits of the matrices; says what it costs.")] = None,
) -> None:
    """Write a model as a Hugging Face folder, which mlx-lm, transformers and mlx-codegen open.

    Example: mlx-codegen export runs/tiny weights/tiny
    """
    if quantize not in (None, 4, 8):
        raise UserError(f"--quantize {quantize}: 4 or 8 bits")
    from mlx_codegen.generation.engine import find_checkpoint
    from mlx_codegen.hub.export import export_model

    exported = export_model(find_checkpoint(model), folder, dtype.value, quantize)
    kind = f"{quantize} bits" if quantize is not None else dtype.value
    files = "" if exported.weight_files == 1 else f" in {exported.weight_files} files"
    print(f"{folder}: {exported.parameters:,} parameters, {kind}, {exported.weight_bytes / 1e6:.1f} MB of weights{files}")
    if exported.bits_per_byte is not None:
        before, after = exported.bits_per_byte
        print(f"bits per byte on bundled text: {before:.4f} before, {after:.4f} after ({after / before - 1:+.2%})")
    print(f"write what only you know under More in {folder / 'README.md'}")

"""`mlx-codegen tokenizer train|show|report`."""

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mlx_codegen.errors import UserError

app = typer.Typer(help="Train a tokenizer, look at its pieces, measure it.", rich_markup_mode=None)

TokenizerOption = Annotated[
    Path, typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.model, or a run folder with one.")
]


class Type(str, Enum):
    """Choices of --type."""

    bpe = "bpe"
    char = "char"


@app.command()
def train(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write, e.g. tokenizer.model.")],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="A file, a folder, hub:OWNER/NAME. Repeatable. Default: the bundled data."),
    ] = None,
    vocab_size: Annotated[int, typer.Option(max=65536, help="Pieces to learn; token files hold no more than 65,536.")] = 8000,
    type: Annotated[Type, typer.Option(help="bpe, or one piece a character.")] = Type.bpe,
) -> None:
    """Train a tokenizer on English and code.

    Example: mlx-codegen tokenizer train tokenizer.model --data stories.jsonl --data my_scripts/
    """
    from mlx_codegen.cli.runs import source_from_text
    from mlx_codegen.config import PhaseConfig, SourceConfig, TokenizerConfig
    from mlx_codegen.data.prepare import training_texts
    from mlx_codegen.tokenizer import train_tokenizer
    from mlx_codegen.training.metrics_log import write_atomically

    if output.is_dir():
        output = output / "tokenizer.model"
    if data:
        sources = [SourceConfig(**source_from_text(text, "bash")) for text in data]
    else:
        sources = [SourceConfig(name=kind, bundled=kind) for kind in ("english", "bash")]
    # One phase a source: the budget is shared evenly and equal file names do not clash.
    phases = [PhaseConfig(sources=(source,), steps=1, learning_rate=1e-3) for source in sources]
    settings = TokenizerConfig(type=type.value)
    tokenizer = train_tokenizer(training_texts(phases, settings.training_bytes, seed=0), settings, vocab_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, tokenizer.model_bytes)
    if tokenizer.vocab_size < vocab_size and type is Type.bpe:
        print(f"the corpus carries {tokenizer.vocab_size} of the {vocab_size} pieces asked for", file=sys.stderr)
    print(f"{output}: {tokenizer.vocab_size} pieces, hash {tokenizer.hash}")


@app.command()
def show(
    text: Annotated[str | None, typer.Argument(help="Text to cut into pieces. Default: list the vocabulary.")] = None,
    tokenizer: TokenizerOption = Path("runs/demo"),
) -> None:
    """Show how a text is cut into pieces, or list all pieces with their ids."""
    from mlx_codegen.tokenizer import Tokenizer

    loaded = Tokenizer.load(tokenizer_file(tokenizer))
    ids = loaded.encode(text) if text is not None else range(loaded.vocab_size)
    for index in ids:
        print(f"{index}\t{loaded.piece(index)!r}")


@app.command()
def report(
    data: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="Text to measure on. Default: the bundled data. Repeatable.")
    ] = None,
    tokenizer: TokenizerOption = Path("runs/demo"),
    max_documents: Annotated[int, typer.Option(min=1, help="Documents of each source to read.")] = 20_000,
) -> None:
    """Measure a tokenizer: characters a token for each source, unused pieces, round-trip failures."""
    from rich.console import Console
    from rich.table import Table

    from mlx_codegen.cli.runs import source_from_text
    from mlx_codegen.config import SourceConfig
    from mlx_codegen.data.sources import read_documents
    from mlx_codegen.tokenizer import Tokenizer
    from mlx_codegen.tokenizer_report import GPT2_CHARACTERS_PER_TOKEN, measure

    loaded = Tokenizer.load(tokenizer_file(tokenizer))
    if data:
        sources = [SourceConfig(**source_from_text(text, "bash"), max_documents=max_documents) for text in data]
    else:
        sources = [SourceConfig(name=kind, bundled=kind, max_documents=max_documents) for kind in ("english", "bash")]
    table = Table("source", "docs", "chars", "tokens", "chars/token", "× GPT-2", "failures")
    used: set[int] = set()
    failures = 0
    for source in sources:
        result = measure(loaded, read_documents(source))
        used |= result.used
        failures += result.failures
        ratio = result.characters / max(1, result.tokens)
        table.add_row(
            source.name,
            f"{result.documents:,}",
            f"{result.characters:,}",
            f"{result.tokens:,}",
            f"{ratio:.2f}",
            f"{ratio / GPT2_CHARACTERS_PER_TOKEN:.2f}",
            f"{result.failures:,}",
        )
    console = Console()
    console.print(table)
    unused = loaded.vocab_size - len(used)
    console.print(f"{unused:,} of {loaded.vocab_size:,} pieces unused here · hash {loaded.hash}", highlight=False)
    console.print(
        f"GPT-2's 50,257 pieces: about {GPT2_CHARACTERS_PER_TOKEN} characters a token of English", style="dim", highlight=False
    )
    if failures:
        raise typer.Exit(1)


def tokenizer_file(path: Path) -> Path:
    """A tokenizer file from itself, its folder, or a run folder."""
    for candidate in (path, path / "tokenizer.model", path / "tokenizer" / "tokenizer.model"):
        if candidate.is_file():
            return candidate
    raise UserError(f"no tokenizer at {path}; train one: mlx-codegen tokenizer train tokenizer.model")

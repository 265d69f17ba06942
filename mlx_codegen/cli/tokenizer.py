"""`mlx-codegen tokenizer train|show|report`."""

import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_codegen.errors import UserError

if TYPE_CHECKING:
    from mlx_codegen.tokenizer import Tokenizer
    from mlx_codegen.tokenizer_report import Measurement

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
        list[str] | None,
        typer.Option(
            metavar="SOURCE", help="Text to measure on: a file, a folder, hub:OWNER/NAME, bundled (default). Repeatable."
        ),
    ] = None,
    tokenizer: TokenizerOption = Path("runs/demo"),
    max_documents: Annotated[int, typer.Option(min=1, help="Documents of each source to read.")] = 20_000,
    pieces: Annotated[int, typer.Option(min=0, help="Show so many of the most frequent and the longest pieces.")] = 0,
) -> None:
    """Measure a tokenizer: characters and bytes a token for each source, unused pieces, round-trip failures.

    Single bytes are tokens that spell what no learned piece does. Failures are documents that came back changed; with any,
    the exit status is 1.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from mlx_codegen.tokenizer import Tokenizer
    from mlx_codegen.tokenizer_report import GPT2_CHARACTERS_PER_TOKEN, Measurement, measure

    loaded = Tokenizer.load(tokenizer_file(tokenizer))
    results = [(name, measure(loaded, documents)) for name, documents in _sources(data or ["bundled"], max_documents)]
    # A column for each source: they are few, and the figures many
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column(overflow="fold")
    for name, _ in results:
        table.add_column(name, justify="right", overflow="fold")
    rows: dict[str, Callable[[Measurement], str]] = {
        "documents": lambda result: f"{result.documents:,}",
        "characters": lambda result: f"{result.characters:,}",
        "tokens": lambda result: f"{result.tokens:,}",
        "chars/token": lambda result: f"{result.characters_per_token:.2f}",
        "× GPT-2": lambda result: f"{result.characters_per_token / GPT2_CHARACTERS_PER_TOKEN:.2f}",
        "bytes/token": lambda result: f"{result.bytes_per_token:.2f}",
        "single bytes": lambda result: f"{result.byte_share:.2%}",
        "pieces used": lambda result: f"{len(result.counts):,}",
        "failures": lambda result: f"{result.failures:,}",
    }
    for heading, shown in rows.items():
        table.add_row(heading, *(shown(result) for _, result in results))
    console = Console(highlight=False)
    console.print(table)
    for name, result in results if pieces else ():
        _print_pieces(name, result, loaded, pieces)
    unused = loaded.vocab_size - len(set[int]().union(*(result.counts for _, result in results)))
    console.print(f"{unused:,} of {loaded.vocab_size:,} pieces unused here · hash {loaded.hash}")
    console.print(f"GPT-2's 50,257 pieces: about {GPT2_CHARACTERS_PER_TOKEN} characters a token of English", style="dim")
    if any(result.failures for _, result in results):
        raise typer.Exit(1)


def _sources(data: list[str], max_documents: int) -> Iterator[tuple[str, Iterator[str]]]:
    """Name and documents of each source; the bundled bash in two, as scripts and commands are cut differently."""
    from mlx_codegen.cli.runs import source_from_text
    from mlx_codegen.config import SourceConfig
    from mlx_codegen.data.sources import read_documents

    for text in data:
        if text != "bundled":
            source = SourceConfig(**source_from_text(text, "bash"), max_documents=max_documents)
            yield source.name, read_documents(source)
            continue
        yield "english", read_documents(SourceConfig(name="english", bundled="english", max_documents=max_documents))
        yield from _bundled_bash(max_documents)


def _bundled_bash(max_documents: int) -> Iterator[tuple[str, Iterator[str]]]:
    """Scripts and commands in one reading: rendering the tasks takes longer than measuring them."""
    from mlx_codegen.config import SourceConfig
    from mlx_codegen.data.sources import read_documents

    kinds: dict[str, list[str]] = {"scripts": [], "commands": []}
    for document in read_documents(SourceConfig(name="bash", bundled="bash")):
        kind = kinds["scripts" if document.startswith("#!") else "commands"]
        if len(kind) < max_documents:
            kind.append(document)
        elif all(len(kind) >= max_documents for kind in kinds.values()):
            break
    yield from ((name, iter(documents)) for name, documents in kinds.items())


def _print_pieces(name: str, result: "Measurement", tokenizer: "Tokenizer", count: int) -> None:
    from rich.console import Console
    from rich.text import Text

    from mlx_codegen.tokenizer_report import longest, most_frequent

    for what, found in (("most frequent", most_frequent), ("longest", longest)):
        # Blanks made visible, and not a place to break the line
        shown = "  ".join(repr(piece)[1:-1].replace(" ", "·") for piece in found(result, tokenizer, count))
        Console(highlight=False).print(Text.assemble((f"{name}, {what}: ", "bold"), shown))


def tokenizer_file(path: Path) -> Path:
    """A tokenizer file from itself, its folder, or a run folder."""
    for candidate in (path, path / "tokenizer.model", path / "tokenizer" / "tokenizer.model"):
        if candidate.is_file():
            return candidate
    raise UserError(f"no tokenizer at {path}; train one: mlx-codegen tokenizer train tokenizer.model")

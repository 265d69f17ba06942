"""Where text comes from: the hub, local files and folders, and the data that ships with the project.

Every origin becomes an iterator of documents (plain strings), read as a stream so that memory does not grow with the
corpus. A file that is named by itself must be good; in a folder, files that are no UTF-8 text are left out and counted.
"""

import codecs
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mlx_codegen.config import SourceConfig, repository_folder
from mlx_codegen.data.stories import story_documents
from mlx_codegen.data.tasks import task_documents
from mlx_codegen.errors import UserError
from mlx_codegen.tokenizer import END_OF_TEXT

Split = Literal["train", "validation"]
Skipped = Callable[[str], None]
"""Called with one line for each file of a folder that is left out."""

SCRIPT_SUFFIXES = (".sh", ".bash")
PLAIN_SUFFIXES = (*SCRIPT_SUFFIXES, ".txt", ".md", ".py")
SUFFIXES = (*PLAIN_SUFFIXES, ".jsonl", ".json", ".parquet")
TEXT_COLUMNS = ("text", "content", "code", "script")
PROMPT_COLUMNS = ("prompt", "description", "instruction", "request")
ANSWER_COLUMNS = ("command", "script", "code", "content", "completion", "response")
# A longer plain file is a book, not a document: it is cut at the next empty line, so that train and validation
# both get some of it and one file cannot fill the memory.
LONGEST_DOCUMENT_CHARACTERS = 64 * 1024
HUB_SECONDS = 10
BUNDLED_STORIES = 12_000
BUNDLED_RENDERINGS_PER_TASK = 400


def read_documents(source: SourceConfig, seed: int = 0, skipped: Skipped = lambda line: None) -> Iterator[str]:
    """Documents of a source, in its own order, at most `max_documents` of them.

    Raises UserError for a missing, binary or non-UTF-8 file, a column that is not there, and a hub out of reach.
    """
    return (document for document, _ in read_split_documents(source, seed, skipped))


def read_split_documents(
    source: SourceConfig, seed: int = 0, skipped: Skipped = lambda line: None
) -> Iterator[tuple[str, Split | None]]:
    """Documents as `read_documents` gives them, each with the split that the source itself puts it in, or None.

    The bundled bash tasks bring a split; everything else leaves it to whoever prepares the data.
    """
    if source.bundled == "bash":
        documents: Iterator[tuple[str, Split | None]] = _bundled_tasks(seed)
    else:
        documents = ((document, None) for document in _open(source, seed, skipped))
    return islice(documents, source.max_documents)


def _bundled_tasks(seed: int) -> Iterator[tuple[str, Split | None]]:
    yield from task_documents(repository_folder("data") / "bash", BUNDLED_RENDERINGS_PER_TASK, seed)


def pair_document(prompt: str, answer: str, *, script: bool = False) -> str:
    """A request and its answer as one training document: the prompt is a comment (DESIGN.md, decision 3).

    A script (or an answer that starts with `#!`) keeps its first line first: shebang, `# prompt`, the rest.
    """
    comment = "".join(f"# {line}\n" for line in prompt.strip().splitlines())
    answer = answer.rstrip("\n") + "\n"
    if answer.startswith("#!"):
        shebang, _, rest = answer.partition("\n")
        return f"{shebang}\n{comment}{rest}"
    return f"#!/bin/bash\n{comment}{answer}" if script else f"{comment}{answer}"


def _open(source: SourceConfig, seed: int, skipped: Skipped) -> Iterator[str]:
    if source.bundled == "english":
        count = source.max_documents or BUNDLED_STORIES
        return story_documents(repository_folder("data") / "english", count, seed)
    if source.hub is not None:
        return _hub_documents(source)
    return _path_documents(Path(str(source.path)).expanduser(), source, skipped)


def source_files(path: Path) -> list[Path]:
    """The files that a path stands for: itself, or every readable kind below a folder, sorted."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no file or folder {path}; give a path that exists, or a bundled source")
    files = sorted(file for file in path.rglob("*") if file.is_file() and _readable_kind(file.relative_to(path)))
    if not files:
        raise UserError(f"the folder {path} holds no {', '.join(SUFFIXES)} files")
    return files


def _readable_kind(file: Path) -> bool:
    # Scripts often have no suffix at all (`bin/backup`). Hidden folders (.git) hold no work of a person.
    hidden = any(part.startswith(".") for part in file.parts)
    return not hidden and (file.suffix.lower() in SUFFIXES or not file.suffix)


def _path_documents(path: Path, source: SourceConfig, skipped: Skipped) -> Iterator[str]:
    for file in source_files(path):
        try:
            yield from _file_documents(file, source, named=file == path)
        except _NotUsableError as error:
            if file == path:
                raise UserError(str(error)) from None
            skipped(str(error))


def _has_shebang(file: Path) -> bool:
    """Tells a script without suffix from a LICENSE or a Makefile beside it."""
    with file.open("rb") as stream:
        return stream.read(2) == b"#!"


class _NotUsableError(Exception):
    """A file with no documents in it: binary, not UTF-8, or something else than text and scripts."""


def _file_documents(file: Path, source: SourceConfig, *, named: bool) -> Iterator[str]:
    """Documents of one file; `named` if a person gave it by name, not only its folder."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        yield from _records(_parquet_rows(file, source), source, str(file))
        return
    _refuse_what_is_no_text(file)
    if not named and not suffix and not _has_shebang(file):
        raise _NotUsableError(f"{file}: neither a suffix nor a #! line")
    if suffix == ".jsonl":
        yield from _records(_jsonl_rows(file), source, str(file))
    elif suffix == ".json":
        yield from _records(_json_rows(file), source, str(file))
    else:
        yield from _plain_documents(file)


def _plain_documents(file: Path) -> Iterator[str]:
    """Scripts are one document each; other text is cut at `<|endoftext|>` lines and, where very long, at empty lines."""
    whole = file.suffix.lower() in SCRIPT_SUFFIXES
    lines: list[str] = []
    length = 0
    for line in _text_lines(file):
        boundary = not whole and line.strip() == END_OF_TEXT
        full = (length > LONGEST_DOCUMENT_CHARACTERS and not line.strip()) or length > 4 * LONGEST_DOCUMENT_CHARACTERS
        if (boundary or full) and lines:
            yield "".join(lines)
            lines, length = [], 0
        if not boundary:
            lines.append(line)
            length += len(line)
    if lines:
        yield "".join(lines)


def _text_lines(file: Path) -> Iterator[str]:
    """Lines of a text file with their ends as they are; a line without end comes in parts of a bounded size."""
    with file.open(encoding="utf-8", newline="") as stream:
        while line := stream.readline(LONGEST_DOCUMENT_CHARACTERS):
            yield line


def _refuse_what_is_no_text(file: Path) -> None:
    """A NUL byte near the start marks a binary file, as in git and grep; the rest must be UTF-8.

    The whole file is checked before any of it is used, so that a bad one is left out whole.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                if position == 0 and b"\0" in block[:8192]:
                    raise _NotUsableError(f"{file}: a binary file, not text; remove it from the source")
                half_character, _ = decoder.getstate()
                decoder.decode(block)
                position += len(block)
            half_character, _ = decoder.getstate()
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        where = position - len(half_character) + error.start
        raise _NotUsableError(f"{file}: not UTF-8 text (byte {where}); convert it with iconv") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


def _jsonl_rows(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8-sig") as stream:  # -sig: programs of Windows begin files with a byte-order mark
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _parse_json(line, f"{file}, line {number}")


def _json_rows(file: Path) -> Iterator[Any]:
    """A JSON list, or an object with one under `scripts` (or another single list)."""
    value = _parse_json(file.read_text(encoding="utf-8-sig"), str(file))
    if isinstance(value, dict):
        lists = [entry for entry in value.values() if isinstance(entry, list)]
        value = value.get("scripts", lists[0] if len(lists) == 1 else None)
    if not isinstance(value, list):
        raise _NotUsableError(f'{file}: expected a JSON list, or an object like {{"scripts": [...]}}')
    yield from value


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None


def _parquet_rows(file: Path, source: SourceConfig) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        wanted = {source.text_column, source.prompt_column, *TEXT_COLUMNS, *PROMPT_COLUMNS, *ANSWER_COLUMNS}
        columns = [name for name in table.schema_arrow.names if name in wanted]
        for batch in table.iter_batches(batch_size=1024, columns=columns or None):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:  # a damaged page is an OSError
        raise UserError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _hub_documents(source: SourceConfig) -> Iterator[str]:
    """Stream a data set of the Hugging Face hub (or a local folder in a hub data set's layout)."""
    import datasets

    datasets.disable_progress_bars()
    try:
        _ask_hub(str(source.hub))
        rows = datasets.load_dataset(str(source.hub), source.subset, split=source.split, streaming=True)
        yield from _records(iter(rows), source, f"hub data set {source.hub}")
    except UserError:
        raise
    except Exception as error:  # datasets raises a dozen unrelated types for "not reachable" and "not there"
        reason = str(error).strip().splitlines()
        raise UserError(
            f"hub data set {source.hub} cannot be read ({type(error).__name__}: {reason[0] if reason else 'no reason given'}); "
            "offline, use a local copy (path: FILE) or the data that ships here (bundled: english or bash)"
        ) from None


def _ask_hub(name: str) -> None:
    """One short question, so that an unreachable hub is known at once: `datasets` itself asks six times, half a minute."""
    from huggingface_hub import constants, get_session

    if not Path(name).is_dir():
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)


def _records(rows: Iterator[Any], source: SourceConfig, where: str) -> Iterator[str]:
    for number, row in enumerate(rows, 1):
        document = row if isinstance(row, str) else _record_document(row, source, f"{where}, record {number}")
        if document is not None:
            yield document


def _record_document(row: Any, source: SourceConfig, where: str) -> str | None:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected text or an object, found {type(row).__name__}")
    if source.text_column is not None:
        prompt = _column(row, source.prompt_column, where) if source.prompt_column is not None else None
        answer = _column(row, source.text_column, where)
    else:
        prompt, answer = _guess_columns(row, where)
    if answer is None:
        return None
    return answer if prompt is None else pair_document(prompt, answer, script=source.script_documents)


def _guess_columns(row: dict[str, Any], where: str) -> tuple[str | None, str | None]:
    prompt_name = next((name for name in PROMPT_COLUMNS if isinstance(row.get(name), str)), None)
    answer_name = next((name for name in ANSWER_COLUMNS if isinstance(row.get(name), str)), None)
    if prompt_name is not None and answer_name is not None:
        return row[prompt_name], row[answer_name]
    text_name = next((name for name in TEXT_COLUMNS if name in row), None)
    if text_name is None:
        found = ", ".join(map(str, row)) or "nothing"
        raise UserError(f"{where}: no {', '.join(TEXT_COLUMNS)} in it (found: {found}); name the column with text_column")
    return None, _column(row, text_name, where)


def _column(row: dict[str, Any], name: str, where: str) -> str | None:
    if name not in row:
        raise UserError(f"{where}: no column '{name}'; it has: {', '.join(map(str, row))}")
    value = row[name]
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: column '{name}' holds {type(value).__name__}, not text")
    return value

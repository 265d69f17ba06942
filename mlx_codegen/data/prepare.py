"""Documents to token files: clean, drop duplicates, split, tokenise, write, remember what was done.

A prepared phase is a folder: for each source and split a `.bin` file of uint16 token ids (documents one after the
other, each closed by end-of-text), an `.idx` file of uint64 positions where documents end; for the phase, hashes of what
is trained on (`text_hashes.py`); and one `manifest.json`.
Nothing of the corpus is kept in memory: text passes through in batches and the set of seen documents is a database.
"""

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlx_codegen.config import PhaseConfig, SourceConfig, expanded, repository_folder
from mlx_codegen.data.encode import TOKEN_DTYPE, DocumentEncoder
from mlx_codegen.data.sources import Document, Split, read_split_documents, source_files
from mlx_codegen.data.tasks import WORDS_FILE
from mlx_codegen.data.text_hashes import HashWriter, sort_hashes, text_hash
from mlx_codegen.errors import UserError
from mlx_codegen.observer import Observer
from mlx_codegen.tokenizer import Tokenizer

SPLITS: tuple[Split, ...] = ("train", "validation")
# Part of the fingerprint: raise it when the same sources would give other token files.
PREPARE_VERSION = 2
# Text handed to the tokenizer at once: enough to keep its threads busy, small beside any model.
BATCH_CHARACTERS = 2_000_000
INDEX_DTYPE = np.dtype("<u8")


@dataclass
class SplitCounts:
    """Size of one token file."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    sha256: str = ""
    index_sha256: str = ""


@dataclass
class SourceCounts:
    """What became of one source."""

    train: SplitCounts = field(default_factory=SplitCounts)
    validation: SplitCounts = field(default_factory=SplitCounts)
    duplicates: int = 0
    empty: int = 0
    skipped_files: list[str] = field(default_factory=list)


def prepare_phase(
    folder: Path, phase: PhaseConfig, tokenizer: Tokenizer, seed: int, observer: Observer | None = None
) -> dict[str, Any]:
    """Make the token files of a phase in `folder`, or find them there unchanged. Returns the manifest.

    The folder appears whole or not at all. Raises UserError for unreadable sources and for a corpus without text.
    """
    observer = observer or Observer()
    manifest = read_manifest(folder) if (folder / "manifest.json").exists() else None
    try:
        fingerprint = phase_fingerprint(phase, tokenizer, seed)
    except UserError as error:
        if manifest is None or not _made_from(manifest, phase, tokenizer) or not token_files_whole(folder, manifest):
            raise
        observer.on_message(f"{error}; going on with the token files made from it before, in {folder}")
        return manifest
    if manifest is not None and manifest["fingerprint"] == fingerprint and token_files_whole(folder, manifest):
        observer.on_message(f"token files in {folder} are up to date")
        return manifest
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        counts = _write_split_sources(partial, phase, tokenizer, seed, observer)
        manifest = _manifest(phase, tokenizer, fingerprint, counts) | {"training_hashes": sort_hashes(partial)}
        manifest["checksum"] = manifest_checksum(manifest)
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _replace_folder(partial, folder)
    except sqlite3.OperationalError as error:  # the only way that a fresh database of ours fails: no space
        raise UserError(f"cannot write in {partial.parent} ({error}); free some disk space and run again") from None
    except OSError as error:
        error.filename = error.filename or str(partial)  # a write to an open file does not say which
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder. Raises UserError where it is missing or damaged."""
    file = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        manifest["fingerprint"], manifest["tokenizer_hash"], manifest["sources"]
        edited = manifest.get("checksum", manifest_checksum(manifest)) != manifest_checksum(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: missing or damaged; remove {folder} and prepare the data again") from None
    if edited:
        raise UserError(f"{file}: edited or damaged (its checksum does not match); put the old one back, or remove {folder}")
    return manifest


def manifest_checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 over all other entries; manifests of older versions carry none."""
    described = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def token_files_whole(folder: Path, manifest: dict[str, Any]) -> bool:
    """True if every token file has the size that the manifest says."""
    for source in manifest["sources"]:
        for split in SPLITS:
            counts = source["counts"][split]
            for suffix, size in ((".bin", 2 * counts["tokens"]), (".idx", 8 * counts["documents"])):
                file = folder / f"{source['name']}-{split}{suffix}"
                if not file.exists() or file.stat().st_size != size:
                    return False
    return True


def phase_fingerprint(phase: PhaseConfig, tokenizer: Tokenizer, seed: int) -> str:
    """Changes when the token files would: sources, files' sizes and times, tokenizer, split, seed."""
    parts = {
        "version": PREPARE_VERSION,
        "tokenizer": tokenizer.hash,
        "validation_fraction": phase.validation_fraction,
        "seed": seed,
        "sources": [source_fingerprint(source) for source in phase.sources],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def document_hash(document: str) -> int:
    """64 bits of the document's content: names it in the duplicate check and decides its split."""
    return text_hash(document)


def split_of(document_number: int, validation_fraction: float) -> Split:
    """The split of a document, from its hash alone: it never moves when the corpus grows."""
    return "validation" if document_number / 2**64 < validation_fraction else "train"


def clean(document: str) -> str:
    """Unix line ends, no byte-order mark, no NUL, no lone surrogates, one newline at the end; blanks and tabs stay."""
    text = document.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    if not text.isascii():
        text = text.encode("utf-8", "ignore").decode("utf-8")
    text = text.strip("\n").rstrip()
    return text + "\n" if text else ""


def training_texts(phases: Iterable[PhaseConfig], budget_bytes: int, seed: int) -> Iterator[str]:
    """Documents that train the tokenizer: an even share of the budget from each phase and source, train split only.

    From each source the documents with the smallest hashes are taken, which is a random sample that does not depend
    on their order; at most `50 x budget` of a source is read for it. A source of a few documents that all fall into the
    validation split gives those: prepare moves some of them to the train split.
    """
    phases = list(phases)
    for phase in phases:
        share = budget_bytes // len(phases) // len(phase.sources)
        for source in phase.sources:
            yield from _sample(source, phase.validation_fraction, share, seed)


def _sample(source: SourceConfig, validation_fraction: float, budget: int, seed: int) -> Iterator[str]:
    import heapq

    kept: list[tuple[int, str]] = []  # a heap with the largest hash on top
    held_out: list[str] = []
    kept_characters = read_characters = 0
    for raw in read_split_documents(source, seed):
        document, number, deciding = _cleaned(raw)
        read_characters += len(document)
        if document and (raw.split or split_of(deciding, validation_fraction)) == "validation":
            held_out = [] if kept else [*held_out, document]
        elif document:
            heapq.heappush(kept, (-number, document))
            kept_characters += len(document)
            while kept_characters > budget and len(kept) > 1:
                kept_characters -= len(heapq.heappop(kept)[1])
        if read_characters > 50 * budget:
            break
    yield from (document for _, document in sorted(kept, reverse=True))
    yield from held_out if not kept else ()


def _cleaned(raw: Document) -> tuple[str, int, int]:
    """A document's clean text, the hash of it, and the hash that decides its split."""
    document = clean(raw.text)
    number = document_hash(document)
    return document, number, number if raw.origin is None else _origin_hash(raw.origin)


@lru_cache(maxsize=1)
def _origin_hash(origin: str) -> int:
    """Remembered, because the versions of a pair follow each other."""
    return document_hash(clean(origin))


def source_fingerprint(source: SourceConfig) -> dict[str, Any]:
    """What a source's documents depend on: its settings (not its weight), and its files' names, sizes and times."""
    how = {"weight", "cache_bytes"} if source.stream else {"weight", "cache_bytes", "stream", "shard_documents"}
    described: dict[str, Any] = source.model_dump(exclude=how)
    path = expanded(str(source.path)) if source.path is not None else None
    if source.bundled is not None:
        path = repository_folder("data") / source.bundled
    if source.fresh_values:
        described["words"] = hashlib.sha256((repository_folder("data") / "bash" / WORDS_FILE).read_bytes()).hexdigest()
    if path is not None:
        stats = [(str(file), file.stat()) for file in _bundled_or_source_files(path, source)]
        described["files"] = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return described


def _bundled_or_source_files(path: Path, source: SourceConfig) -> list[Path]:
    if source.bundled is not None:
        return sorted(file for file in path.rglob("*") if file.is_file())
    return source_files(path)


def _write_split_sources(
    folder: Path, phase: PhaseConfig, tokenizer: Tokenizer, seed: int, observer: Observer
) -> list[SourceCounts]:
    """Write all sources; if chance left a split of a small corpus empty, again with one document for validation."""
    counts, smallest = _write_sources(folder, phase, tokenizer, seed, observer)
    names = ", ".join(source.name for source in phase.sources)
    train = sum(source.train.documents for source in counts)
    validation = sum(source.validation.documents for source in counts)
    if train + validation == 0:
        raise UserError(f"the corpus is empty: no text in {names}; check the path, or use a bundled source")
    if train + validation == 1:
        raise UserError(f"the corpus has one document ({names}); training needs one more to validate on")
    if train == 0 or validation == 0:
        observer.on_message(f"{names}: so few documents that one is taken for validation")
        counts, _ = _write_sources(folder, phase, tokenizer, seed, observer, only_validation=smallest)
    return counts


def _write_sources(
    folder: Path, phase: PhaseConfig, tokenizer: Tokenizer, seed: int, observer: Observer, only_validation: int | None = None
) -> tuple[list[SourceCounts], int]:
    """Write all sources' token files; returns their counts and the smallest document hash.

    With `only_validation`, the document of that hash is the validation split, and all others train.
    """

    def place(number: int, given: Split | None) -> Split:
        if only_validation is not None:
            return "validation" if number == only_validation else "train"
        return given or split_of(number, phase.validation_fraction)

    seen, hashes = _SeenDocuments(folder / "seen.sqlite"), HashWriter(folder)
    encoder = DocumentEncoder(tokenizer, num_threads=os.cpu_count() or 1)
    try:
        counts = [_write_source(folder, source, place, encoder, seen, hashes, seed, observer) for source in phase.sources]
        return counts, seen.smallest()
    finally:
        seen.close()
        hashes.close()


def _write_source(
    folder: Path,
    source: SourceConfig,
    place: Callable[[int, Split | None], Split],
    encoder: DocumentEncoder,
    seen: "_SeenDocuments",
    hashes: HashWriter,
    seed: int,
    observer: Observer,
) -> SourceCounts:
    counts = SourceCounts()
    writers = {split: TokenWriter(folder / f"{source.name}-{split}") for split in SPLITS}
    pending: dict[Split, list[str]] = {split: [] for split in SPLITS}
    pending_characters = 0

    def flush() -> None:
        for split, texts in pending.items():
            writers[split].write(encoder.encode(texts), sum(len(text.encode()) for text in texts))
            texts.clear()
        observer.on_prepare(source.name, *_progress(writers))

    try:
        for raw in read_split_documents(source, seed, counts.skipped_files.append):
            document, number, deciding = _cleaned(raw)
            split = place(deciding, raw.split)
            if not document:
                counts.empty += 1
            elif number != deciding and split == "validation":
                pass  # only the original is evaluated
            elif not seen.add(number):
                counts.duplicates += 1
            else:
                pending[split].append(document)
                pending_characters += len(document)
                if split == "train":
                    hashes.add(document, number)
            if pending_characters >= BATCH_CHARACTERS:
                flush()
                pending_characters = 0
        flush()
    finally:
        counts.train, counts.validation = (writers[split].close() for split in SPLITS)
    return counts


def _progress(writers: "dict[Split, TokenWriter]") -> tuple[int, int]:
    counts = [writer.counts for writer in writers.values()]
    return sum(count.documents for count in counts), sum(count.text_bytes for count in counts)


class TokenWriter:
    """Appends documents to one `.bin` and `.idx` pair."""

    def __init__(self, stem: Path) -> None:
        self.counts = SplitCounts()
        self._tokens: BinaryIO = stem.with_name(stem.name + ".bin").open("wb")
        self._index: BinaryIO = stem.with_name(stem.name + ".idx").open("wb")
        self._hash, self._index_hash = hashlib.sha256(), hashlib.sha256()

    def write(self, documents: list[bytes], text_bytes: int) -> None:
        """Tokens of some documents, and how many bytes of text they were."""
        ends = self.counts.tokens + np.cumsum(
            [len(document) // TOKEN_DTYPE.itemsize for document in documents], dtype=INDEX_DTYPE
        )
        data = b"".join(documents)
        self.counts.documents += len(documents)
        self.counts.tokens += len(data) // TOKEN_DTYPE.itemsize
        self.counts.text_bytes += text_bytes
        self._tokens.write(data)
        self._hash.update(data)
        index = ends.astype(INDEX_DTYPE).tobytes()
        self._index.write(index)
        self._index_hash.update(index)

    def close(self) -> SplitCounts:
        self.counts.sha256, self.counts.index_sha256 = self._hash.hexdigest(), self._index_hash.hexdigest()
        for stream in (self._tokens, self._index):
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        return self.counts


class _SeenDocuments:
    """The hashes of all documents so far, on disk: a Python set of them would grow with the corpus."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._database = sqlite3.connect(file, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("PRAGMA cache_size = -32000")  # KiB
        self._database.execute("CREATE TABLE seen (hash INTEGER PRIMARY KEY)")
        self._database.execute("BEGIN")

    def add(self, number: int) -> bool:
        """True if the document is new."""
        signed = number - 2**63  # SQLite's integers are signed
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (signed,)).rowcount == 1

    def smallest(self) -> int:
        """The smallest number so far; 0 if there is none."""
        (signed,) = self._database.execute("SELECT min(hash) FROM seen").fetchone()
        return 0 if signed is None else int(signed) + 2**63

    def close(self) -> None:
        self._database.close()
        self._file.unlink(missing_ok=True)


def _manifest(phase: PhaseConfig, tokenizer: Tokenizer, fingerprint: str, counts: list[SourceCounts]) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "uint16",
        "validation_fraction": phase.validation_fraction,
        "sources": [
            {"name": source.name, "settings": source.model_dump(exclude_none=True), "counts": asdict(count)}
            for source, count in zip(phase.sources, counts, strict=True)
        ],
    }


def _made_from(manifest: dict[str, Any], phase: PhaseConfig, tokenizer: Tokenizer) -> bool:
    """Whether token files are of these sources, as far as settings tell."""
    settings = [source.model_dump(exclude_none=True) for source in phase.sources]
    same = [source["settings"] for source in manifest["sources"]] == settings
    return same and bool(manifest["tokenizer_hash"] == tokenizer.hash)


def _replace_folder(new: Path, old: Path) -> None:
    """Rename into place. The old folder goes first: a crash in between leaves none, and preparing runs again."""
    shutil.rmtree(old, ignore_errors=True)
    new.rename(old)

"""A corpus larger than memory and disk: a hub data set read in shards, each tokenised while the one before is trained on.

A shard is the next `shard_documents` documents of the data set. The first is what `prepare` made of them: the source's
token files, validation documents among them. Each later one becomes two files and a note in `<source>.shards/`:

    00017.bin, 00017.idx    tokens and where documents end, as in any token file
    00017.json              where in the data set it begins and ends, and the checksum; written last

Documents whose hash puts them into the validation split are in no later shard, and a document that comes twice within a
shard is in it once. What is in a shard depends on nothing but where it begins, so that one deleted can be made again.
"""

import hashlib
import json
import queue
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mlx_codegen.config import SourceConfig
from mlx_codegen.data.batches import PackedStream, TokenFile, read_token_file, shuffled_windows
from mlx_codegen.data.encode import DocumentEncoder
from mlx_codegen.data.prepare import TokenWriter, clean, document_hash, split_of
from mlx_codegen.data.sources import HubError, HubStream
from mlx_codegen.errors import UserError
from mlx_codegen.tokenizer import Tokenizer

AHEAD = 2
"""Shards that are ready before they are needed."""
IN_USE = AHEAD + 2
"""With the one that is trained on, and one that waits for its place among the ready ones."""
RETRY_SECONDS = (1, 2, 4, 8, 16, 32)
"""Waiting times between the attempts at a shard."""
BATCH_CHARACTERS = 200_000
"""Text encoded at once: little, so that training on the same cores goes on evenly."""

Place = dict[str, Any]
"""Where in a data set the next document begins, as the `datasets` library puts it."""


class ShardError(UserError):
    """A shard cannot be had now. Training can go on from a checkpoint later."""


@dataclass(frozen=True)
class Shard:
    """`start` and `end`: where it begins (None: the data set's first document) and what follows (None: nothing)."""

    number: int
    file: TokenFile
    start: Place | None
    end: Place | None


@dataclass(frozen=True)
class ShardSource:
    """All that decides what is in the shards. `key` names the prepared data that they belong to."""

    source: SourceConfig
    first: TokenFile
    folder: Path
    key: str
    tokenizer: Tokenizer
    validation_fraction: float


class ShardMaker:
    """Makes shards in their order, round and round, on a thread that is AHEAD of who takes them."""

    def __init__(self, origin: ShardSource, number: int, start: Place | None) -> None:
        """Begins with shard `number`, which begins at `start`."""
        self._origin = origin
        self._ready: queue.Queue[Shard | BaseException] = queue.Queue(AHEAD)
        self._in_use: deque[int] = deque(maxlen=IN_USE)
        self._stream: HubStream | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(number, start), name=f"shards of {origin.source.name}", daemon=True
        )
        self._thread.start()

    def take(self) -> Shard:
        """The next shard. Raises ShardError where it cannot be had."""
        while True:
            try:
                ready = self._ready.get(timeout=1)
            except queue.Empty:
                if not self._thread.is_alive():  # then nobody will ever put one there
                    raise ShardError(f"reading ahead of {self._origin.source.name} has stopped; --resume goes on") from None
            else:
                if isinstance(ready, BaseException):
                    raise ready
                return ready

    def close(self) -> None:
        """Stop making shards. What is ready stays on disk."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self, number: int, start: Place | None) -> None:
        try:
            for shard in self._shards(number, start):
                self._in_use.append(shard.number)
                self._put(shard)
        except _StoppedError:
            pass
        except BaseException as error:
            try:
                while True:  # whoever asks again hears it again
                    self._put(error)
            except _StoppedError:
                pass

    def _put(self, ready: Shard | BaseException) -> None:
        while True:
            self._check_stop()
            try:
                return self._ready.put(ready, timeout=0.1)
            except queue.Full:
                pass

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _StoppedError

    def _shards(self, number: int, start: Place | None) -> Iterator[Shard]:
        while True:
            if number == 0:
                yield Shard(0, self._origin.first, None, None)  # at once: training need not wait until its end is found
                end = self._known_end(0, None) or self._trying(self._pass_first)
            else:
                shard = self._kept(number, start) or self._trying(self._make, number, start)
                end = shard.end
                yield shard
            number, start = (number + 1, end) if end is not None else (0, None)

    def _trying(self, make: Any, *arguments: Any) -> Any:
        """The result of `make`, tried again for a minute while the hub cannot be read. Raises ShardError."""
        waits = iter(RETRY_SECONDS)
        while True:
            try:
                return make(*arguments)
            except HubError as error:
                seconds = next(waits, None)
                if seconds is None:
                    tries = f"{len(RETRY_SECONDS) + 1} times in {sum(RETRY_SECONDS)} seconds"
                    raise ShardError(f"{error.short}; tried {tries}") from None
                self._stop.wait(seconds)
                self._check_stop()
            except OSError as error:
                folder = self._origin.folder
                raise ShardError(f"cannot write shards in {folder} ({error.strerror}); is there disk space left?") from None

    def _pass_first(self) -> Place | None:
        """Where the second shard begins: nobody noted it when the first was prepared."""
        stream = self._stream_at(None)
        documents = 0
        for _ in islice(stream, self._origin.source.shard_documents):
            documents += 1
            self._check_stop()
        end = self._end(stream, documents)
        self._note(0, None, end, "")
        return end

    def _make(self, number: int, start: Place | None) -> Shard:
        origin = self._origin
        self._make_room()
        self._delete(number)
        origin.folder.mkdir(parents=True, exist_ok=True)
        stream = self._stream_at(start)
        encoder = DocumentEncoder(origin.tokenizer)
        writer = TokenWriter(origin.folder / f"{number:05}")
        documents = 0
        try:
            pending: list[str] = []
            pending_characters = 0
            for document in self._training_documents(stream):
                documents += 1
                pending += [document] if document else []
                pending_characters += len(document)
                if pending_characters > BATCH_CHARACTERS:
                    _write(writer, encoder, pending)
                    pending_characters = 0
            _write(writer, encoder, pending)
        finally:
            counts = writer.close()
        end = self._end(stream, documents)
        self._note(number, start, end, counts.sha256)
        return Shard(number, self._open(number), start, end)

    def _stream_at(self, start: Place | None) -> HubStream:
        """The data set from there on; opened once an epoch and after a failure, because it asks the hub and leaks memory.

        Always from the noted place, not from where the stream happens to stand: then the places of an unbroken run and of
        a resumed one are written alike.
        """
        stream, self._stream = self._stream, None
        if stream is None or start is None:
            stream = HubStream(self._origin.source)
        if start is not None:
            stream.go_to(start)
        return stream

    def _end(self, stream: HubStream, documents: int) -> Place | None:
        """Where a stream stands after a shard of so many documents; None if the data set ended before."""
        self._stream = stream
        return stream.state() if documents == self._origin.source.shard_documents else None

    def _training_documents(self, stream: HubStream) -> Iterator[str]:
        """The documents of a shard, cleaned; an empty text for each that is not for training."""
        seen: set[int] = set()
        for raw in islice(stream, self._origin.source.shard_documents):
            self._check_stop()
            document = clean(raw)
            number = document_hash(document)
            held_out = split_of(number, self._origin.validation_fraction) == "validation"
            yield "" if held_out or number in seen else document
            seen.add(number)

    def _kept(self, number: int, start: Place | None) -> Shard | None:
        """A shard that is still on disk, whole, and begins where it should."""
        note = self._read_note(number)
        if note is None or note["start"] != start:
            return None
        try:
            shard = Shard(number, self._open(number), start, note["end"])
        except (OSError, ValueError):
            return None
        return shard if hashlib.sha256(shard.file.tokens.data).hexdigest() == note["sha256"] else None

    def _known_end(self, number: int, start: Place | None) -> Place | None:
        note = self._read_note(number)
        return note["end"] if note is not None and note["start"] == start else None

    def _open(self, number: int) -> TokenFile:
        return read_token_file(self._origin.folder / f"{number:05}", self._origin.source.name)

    def _note(self, number: int, start: Place | None, end: Place | None, sha256: str) -> None:
        note = {"key": self._origin.key, "start": start, "end": end, "sha256": sha256}
        self._origin.folder.mkdir(parents=True, exist_ok=True)
        file = self._origin.folder / f"{number:05}.json"
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(note), encoding="utf-8")
        partial.replace(file)

    def _read_note(self, number: int) -> dict[str, Any] | None:
        try:
            note: dict[str, Any] = json.loads((self._origin.folder / f"{number:05}.json").read_text(encoding="utf-8"))
            return note if note["key"] == self._origin.key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _make_room(self) -> None:
        """Delete shards that are not in use, the latest first, because the early ones come first again."""
        sizes: dict[int, int] = {}
        for file in self._origin.folder.glob("[0-9]*.*"):
            if file.suffix in (".bin", ".idx"):
                sizes[int(file.stem)] = sizes.get(int(file.stem), 0) + file.stat().st_size
        for number in sorted(sizes.keys() - set(self._in_use), reverse=True):
            if sum(sizes.values()) > self._origin.source.cache_bytes:
                self._delete(number)
                del sizes[number]

    def _delete(self, number: int) -> None:
        for suffix in (".json", ".bin", ".idx"):
            (self._origin.folder / f"{number:05}{suffix}").unlink(missing_ok=True)


class _StoppedError(Exception):
    """Nobody wants the shards any more."""


def _write(writer: TokenWriter, encoder: DocumentEncoder, documents: list[str]) -> None:
    writer.write(encoder.encode(documents), sum(len(text.encode()) for text in documents))
    documents.clear()


class ShardWindows:
    """Windows of a streamed source, shuffled within each shard. The end of the data set begins the next epoch."""

    def __init__(self, origin: ShardSource, context_length: int, seed: int) -> None:
        """Reads nothing yet. Raises UserError if the first shard holds less than one window."""
        if len(origin.first.tokens) < context_length:
            raise UserError(
                f"the first shard of {origin.source.name} has {len(origin.first.tokens)} tokens, fewer than one window of "
                f"{context_length}; raise its shard_documents, or lower model.context_length"
            )
        self._origin = origin
        self._context_length = context_length
        self._seed = seed
        self._maker: ShardMaker | None = None
        self._window = 0
        self.restore({"epoch": 0, "shard": 0, "start": None, "window": 0})

    def next_window(self) -> tuple[PackedStream, int]:
        """A stream and the position in it where the next window begins. Waits for the shard; raises ShardError."""
        if self._maker is None:
            self._maker = ShardMaker(self._origin, self._number, self._start)
            self._enter(self._maker.take())
        while self._window >= len(self._order):
            shard = self._maker.take()
            self._epoch += shard.number == 0
            self._enter(shard)
            self._window = 0
        start = int(self._order[self._window]) * self._context_length
        self._window += 1
        return self._stream, start

    def state(self) -> dict[str, Any]:
        """Where the next window begins."""
        return {"epoch": self._epoch, "shard": self._number, "start": self._start, "window": self._window}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state()` was taken."""
        self.close()
        self._epoch, self._number, self._window = state["epoch"], state["shard"], state["window"]
        self._start: Place | None = state["start"]

    def close(self) -> None:
        """Stop reading ahead."""
        if self._maker is not None:
            self._maker.close()
            self._maker = None

    def _enter(self, shard: Shard) -> None:
        self._number, self._start = shard.number, shard.start
        documents = np.arange(len(shard.file.document_ends))
        generator = np.random.Generator(np.random.Philox(key=[self._seed, (self._epoch << 32) + shard.number]))
        self._stream, self._order = shuffled_windows(
            [shard.file], np.zeros_like(documents), documents, self._context_length, generator
        )

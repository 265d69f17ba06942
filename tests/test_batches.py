"""Batches: every token of the stream, in windows that tile it, in an order that seed and epoch alone decide."""

import os
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_codegen.config import PhaseConfig, SourceConfig, TokenizerConfig
from mlx_codegen.data.batches import PackedStream, TokenFile, Tokens, TrainingBatches, open_token_files, validation_batches
from mlx_codegen.data.encode import TOKEN_DTYPE
from mlx_codegen.data.prepare import INDEX_DTYPE, prepare_phase, read_manifest
from mlx_codegen.errors import UserError
from mlx_codegen.tokenizer import Tokenizer, train_tokenizer

ROOT = Path(__file__).parents[1]
CONTEXT = 16


def token_file(name: str, lengths: list[int], first: int = 0, weight: float = 1.0) -> TokenFile:
    """Documents of given lengths whose tokens are first, first + 1, ...: a token says where in the file it stands."""
    ends = np.cumsum(lengths).astype(INDEX_DTYPE) if lengths else np.zeros(0, INDEX_DTYPE)
    return TokenFile(name, weight, np.arange(first, first + sum(lengths)).astype(TOKEN_DTYPE), ends)


def some_lengths(count: int, seed: int = 0) -> list[int]:
    """Lengths of documents, some shorter and some longer than a window."""
    return random.Random(seed).choices(range(1, 3 * CONTEXT), k=count)


def windows_of_epoch(batches: TrainingBatches, epoch: int = 0) -> list[Tokens]:
    """All windows of an epoch; `batches` (of size one) stands at its end then."""
    batches.restore({"epoch": epoch, "window": 0})
    windows: list[Tokens] = []
    while True:
        before = batches.state()
        window = batches.next()[0]
        if batches.state()["epoch"] != epoch:
            batches.restore(before)
            return windows
        windows.append(window)


def inputs(windows: list[Tokens]) -> list[int]:
    """What the model reads of windows: all but the last column."""
    return [int(token) for window in windows for token in window[:-1]]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 20), st.data())
@settings(deadline=None)
def test_stream_is_the_documents_end_to_end(lengths: list[int], at_most: int, data: st.DataObject) -> None:
    """Read in parts of any size from any place, a stream equals its documents laid end to end, and goes round at the end."""
    files = [token_file("a", lengths), token_file("b", [5, 1, 7], first=5000)]
    numbers = [(0, n) for n in range(len(lengths))] + [(1, n) for n in range(3)]
    order = data.draw(st.permutations(numbers))
    ends = [np.concatenate([[0], file.document_ends]).astype(int) for file in files]
    laid = np.concatenate([files[f].tokens[ends[f][n] : ends[f][n + 1]] for f, n in order])
    stream = PackedStream(files, np.array([f for f, _ in order]), np.array([n for _, n in order]))
    assert stream.length == len(laid)
    start = data.draw(st.integers(0, 3 * len(laid)))
    assert list(stream.read(start, at_most)) == [laid[(start + step) % len(laid)] for step in range(at_most)]


def test_windows_tile_the_stream() -> None:
    """In one epoch no token is read twice, and fewer than one window of tokens is left for the next epoch's order."""
    files = [token_file("a", some_lengths(50)), token_file("b", some_lengths(30, seed=1), first=10_000)]
    everything = [int(token) for file in files for token in file.tokens]
    batches = TrainingBatches(files, batch_size=1, context_length=CONTEXT, seed=0)
    for epoch in range(3):
        read = inputs(windows_of_epoch(batches, epoch))
        assert len(set(read)) == len(read) and set(read) <= set(everything)
        assert 0 <= len(everything) - len(read) < CONTEXT
    assert batches.tokens_per_epoch == len(everything)


def test_tokens_left_over_come_in_other_epochs() -> None:
    """What does not fill a window is other text in each epoch, because documents change places: nothing is never read."""
    lengths = [7] * 7  # 49 tokens: three windows of 16, one token left over
    batches = TrainingBatches([token_file("a", lengths)], batch_size=1, context_length=CONTEXT, seed=0)
    read: set[int] = set()
    for epoch in range(20):
        read |= set(inputs(windows_of_epoch(batches, epoch)))
    assert read == set(range(49))


def test_there_is_no_padding_and_documents_stay_whole() -> None:
    """Inside a window each token is followed by its document's next one; only after a document's end another one starts."""
    file = token_file("a", some_lengths(60))
    ends, starts = set(map(int, file.document_ends)), {0, *map(int, file.document_ends)}
    batches = TrainingBatches([file], batch_size=1, context_length=CONTEXT, seed=3)
    for window in windows_of_epoch(batches):
        for token, following in pairwise(map(int, window)):
            assert following == token + 1 if token + 1 not in ends else following in starts


def test_targets_are_the_inputs_one_later() -> None:
    """A window holds one token more than the model reads; that one begins the window which follows in the stream."""
    file = token_file("a", [10_000])  # a single document: the stream counts up
    batches = TrainingBatches([file], batch_size=4, context_length=CONTEXT, seed=0)
    batch = batches.next()
    assert batch.shape == (4, CONTEXT + 1) and batch.dtype == np.uint16
    assert (batch[:, 1:] == batch[:, :-1] + 1).all()
    assert (batch[:, 0] % CONTEXT == 0).all() and len(set(batch[:, 0])) == 4


def epoch_orders(seed: int, epochs: int) -> list[tuple[int, ...]]:
    """The first tokens of the windows of some epochs."""
    batches = TrainingBatches([token_file("a", some_lengths(50))], batch_size=1, context_length=CONTEXT, seed=seed)
    return [tuple(int(window[0]) for window in windows_of_epoch(batches, epoch)) for epoch in range(epochs)]


def test_each_epoch_and_seed_has_its_own_order() -> None:
    """Neighbours change from epoch to epoch and from seed to seed; nothing else decides."""
    orders = epoch_orders(0, 3) + epoch_orders(1, 3)
    assert len(set(orders)) == 6
    assert epoch_orders(0, 3) == orders[:3]


def test_same_seed_gives_the_same_batches_in_another_process() -> None:
    """No order depends on a process: resuming tomorrow reads what an unbroken run reads."""
    script = (
        "import hashlib, sys; sys.path.insert(0, 'tests'); from test_batches import *\n"
        "batches = TrainingBatches([token_file('a', some_lengths(50))], 3, CONTEXT, seed=7)\n"
        "print(hashlib.sha256(b''.join(batches.next().tobytes() for _ in range(40))).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1] and len(runs[0].strip()) == 64


@given(taken=st.integers(0, 40), more=st.integers(1, 40), batch_size=st.integers(1, 5))
@settings(deadline=None, max_examples=50)
def test_restored_position_goes_on_exactly(taken: int, more: int, batch_size: int) -> None:
    """Wherever it was taken, in the middle or at the border of an epoch, a state gives the batches that would have come."""
    files = [token_file("a", some_lengths(12)), token_file("b", some_lengths(5, seed=2), first=20_000, weight=1.5)]
    unbroken = TrainingBatches(files, batch_size, CONTEXT, seed=5)
    for _ in range(taken):
        unbroken.next()
    resumed = TrainingBatches(files, batch_size, CONTEXT, seed=5)
    resumed.restore(unbroken.state())
    for _ in range(more):
        assert (resumed.next() == unbroken.next()).all()
    assert resumed.state() == unbroken.state()


def test_the_examples_above_cross_the_border_of_an_epoch() -> None:
    """Guards the test of resuming: forty batches of its files reach the second epoch, and a state stands on the border."""
    files = [token_file("a", some_lengths(12)), token_file("b", some_lengths(5, seed=2), first=20_000, weight=1.5)]
    batches = TrainingBatches(files, 1, CONTEXT, seed=5)
    windows = len(windows_of_epoch(batches))
    assert windows < 40 and batches.state() == {"epoch": 0, "window": windows}


def documents_of_epoch(weight: float, epoch: int) -> Counter[int]:
    """How often each of 40 documents of one window's length is read in an epoch, beside a source of weight 1."""
    files = [token_file("a", [CONTEXT] * 40, weight=weight), token_file("b", [CONTEXT] * 10, first=10_000)]
    batches = TrainingBatches(files, batch_size=1, context_length=CONTEXT, seed=0)
    assert batches.tokens_per_epoch == round(weight * 40 * CONTEXT) + 10 * CONTEXT
    counts = Counter(int(window[0]) // CONTEXT for window in windows_of_epoch(batches, epoch))
    assert sum(counts[number] for number in counts if number >= 10_000 // CONTEXT) == 10
    return Counter({number: counts[number] for number in counts if number < 40})


def test_weight_two_shows_each_document_twice() -> None:
    """A whole weight repeats the source in each epoch."""
    assert documents_of_epoch(2.0, epoch=0) == Counter(dict.fromkeys(range(40), 2))


def test_weight_one_half_shows_another_half_each_epoch() -> None:
    """A fraction draws that share of the documents, anew each epoch, so that all are seen in time."""
    halves = [documents_of_epoch(0.5, epoch) for epoch in range(10)]
    assert all(len(half) == 20 and set(half.values()) == {1} for half in halves)
    assert len({frozenset(half) for half in halves}) == 10
    assert set().union(*halves) == set(range(40))


def test_weight_two_and_a_half_adds_up() -> None:
    """Whole and fraction together: all documents twice, half of them a third time."""
    counts = documents_of_epoch(2.5, epoch=1)
    assert sorted(Counter(counts.values()).items()) == [(2, 20), (3, 20)]


def test_too_little_text_for_a_window_is_refused() -> None:
    """Fewer tokens than one window: one line with the numbers and what to change."""
    with pytest.raises(UserError, match=r"has 15 tokens, fewer than one window of 16; add text, or lower"):
        TrainingBatches([token_file("a", [15])], batch_size=1, context_length=CONTEXT, seed=0)
    with pytest.raises(UserError, match="has 0 tokens"):
        TrainingBatches([token_file("a", [])], batch_size=1, context_length=CONTEXT, seed=0)


def test_text_of_exactly_one_window_is_enough() -> None:
    """The smallest corpus that trains: its only target without a successor is its own beginning."""
    batches = TrainingBatches([token_file("a", [CONTEXT])], batch_size=2, context_length=CONTEXT, seed=0)
    assert batches.next().tolist() == [[*range(CONTEXT), 0]] * 2


# Validation


def test_validation_is_the_same_every_time() -> None:
    """Losses of two evaluations are comparable: same files, same batches, in the order of the text."""
    files = [token_file("a", some_lengths(50)), token_file("b", some_lengths(20, seed=1), first=10_000)]
    first, second = (validation_batches(files, 4, CONTEXT, 320) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    windows = [window for batch in first for window in batch]
    assert len(windows) == 20 and all(len(batch) == 4 for batch in first)
    assert sum(int(window[0]) >= 10_000 for window in windows) == 10  # an even share of each source


def test_validation_reads_no_token_twice() -> None:
    """Asked for more than there is, validation reads each window once and no more."""
    file = token_file("a", [1000])
    windows = [window for batch in validation_batches([file], 3, CONTEXT, 10**6) for window in batch]
    read = inputs(windows)
    assert len(set(read)) == len(read) == 1000 - 1000 % CONTEXT
    assert all((window[1:] == window[:-1] + 1).all() for window in windows)


def test_validation_of_a_short_text_fills_a_window() -> None:
    """One short validation document is repeated, never padded; sources without any are passed over."""
    batches = validation_batches([token_file("a", [5]), token_file("b", [])], 4, CONTEXT, 100)
    assert [batch.tolist() for batch in batches] == [[[index % 5 for index in range(CONTEXT + 1)]]]


# From files


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A small tokenizer."""
    return train_tokenizer(["the cat sat on the mat, number 0123456789\n" * 20], TokenizerConfig(), 400)


@pytest.fixture
def prepared(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """Token files of two sources."""
    for name in "ab":
        lines = (f"The cat {name} sat on mat {number}.\n<|endoftext|>\n" for number in range(80))
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    sources = tuple(SourceConfig(name=name, path=str(tmp_path / f"{name}.txt")) for name in "ab")
    phase = PhaseConfig(sources=sources, steps=1, learning_rate=1e-3, validation_fraction=0.2)
    prepare_phase(tmp_path / "data", phase, tokenizer, seed=0)
    return tmp_path / "data"


def test_batches_from_files_hold_what_was_prepared(prepared: Path, tokenizer: Tokenizer) -> None:
    """Token files of several sources and splits arrive in the batches: the same tokens, as often as their weight says."""
    files = open_token_files(prepared, "train", {"a": 2.0, "b": 1.0}, tokenizer.hash)
    assert [(file.name, file.weight) for file in files] == [("a", 2.0), ("b", 1.0)]
    expected = Counter[int]()
    for name, weight in (("a", 2), ("b", 1)):
        for token in np.fromfile(prepared / f"{name}-train.bin", TOKEN_DTYPE):
            expected[int(token)] += weight
    batches = TrainingBatches(files, batch_size=1, context_length=CONTEXT, seed=0)
    read = Counter(inputs(windows_of_epoch(batches)))
    assert read <= expected and (expected - read).total() < CONTEXT
    assert batches.tokens_per_epoch == expected.total()


def test_validation_split_is_opened_apart_from_training(prepared: Path, tokenizer: Tokenizer) -> None:
    """The split asked for is the split that is read, whole."""
    for split in ("train", "validation"):
        files = open_token_files(prepared, split, {}, tokenizer.hash)
        manifest = read_manifest(prepared)["sources"]
        assert [len(file.tokens) for file in files] == [source["counts"][split]["tokens"] for source in manifest]
        assert [len(file.document_ends) for file in files] == [source["counts"][split]["documents"] for source in manifest]


def test_files_of_another_tokenizer_are_refused(prepared: Path, tokenizer: Tokenizer) -> None:
    """Ids of another tokenizer would train a model on noise: both are named, with what to do."""
    with pytest.raises(UserError, match=rf"belong to tokenizer {tokenizer.hash}, not 0123456789abcdef; remove that folder"):
        open_token_files(prepared, "train", {}, "0123456789abcdef")


@pytest.mark.parametrize("name", ["a-train.bin", "b-train.idx", "a-validation.bin"])
def test_cut_or_missing_files_are_refused(name: str, prepared: Path, tokenizer: Tokenizer) -> None:
    """A file that is shorter, longer or gone is found before training, not in the middle of it."""
    good = (prepared / name).read_bytes()
    for content in (good[:-1], good[:-8], good + b"\0\0", b""):
        (prepared / name).write_bytes(content)
        with pytest.raises(UserError, match="not as large as its manifest says"):
            open_token_files(prepared, "train", {}, tokenizer.hash)
    (prepared / name).unlink()
    with pytest.raises(UserError, match="not as large as its manifest says"):
        open_token_files(prepared, "train", {}, tokenizer.hash)


def test_folder_that_was_never_prepared_is_named(tmp_path: Path) -> None:
    """No manifest, no token files."""
    with pytest.raises(UserError, match=r"manifest\.json: missing or damaged"):
        open_token_files(tmp_path, "train", {}, "0123456789abcdef")

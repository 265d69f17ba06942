"""Preparation: every document once, in the split that its content decides, exactly as the manifest says, or nothing."""

import hashlib
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_codegen.cli.main import run
from mlx_codegen.config import PhaseConfig, SourceConfig, TokenizerConfig
from mlx_codegen.data.encode import TOKEN_DTYPE
from mlx_codegen.data.prepare import (
    INDEX_DTYPE,
    SPLITS,
    clean,
    document_hash,
    prepare_phase,
    read_manifest,
    split_of,
    training_texts,
)
from mlx_codegen.errors import UserError
from mlx_codegen.observer import Observer
from mlx_codegen.tokenizer import Tokenizer, train_tokenizer

ROOT = Path(__file__).parents[1]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "run", "to", "its", "red", "house"]


def story(number: int) -> str:
    """One of endlessly many different short documents."""
    rng = random.Random(number)
    return " ".join(rng.choices(WORDS, k=12)) + f" {number}.\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A small tokenizer."""
    return train_tokenizer([story(number) for number in range(200)], TokenizerConfig(), 500)


def write_documents(file: Path, texts: list[str]) -> Path:
    """A JSONL file of documents."""
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def phase(*files: Path, **settings: Any) -> PhaseConfig:
    """A phase that reads files, each as a source of its own."""
    sources = tuple(SourceConfig(name=file.stem, path=str(file)) for file in files)
    return PhaseConfig(sources=sources, steps=1, learning_rate=1e-3, **{"validation_fraction": 0.2, **settings})


def read_split(folder: Path, name: str, split: str, tokenizer: Tokenizer) -> list[str]:
    """The documents of one pair of token files, decoded; checks that each ends in end-of-text and nowhere else."""
    tokens = np.fromfile(folder / f"{name}-{split}.bin", TOKEN_DTYPE)
    ends = np.fromfile(folder / f"{name}-{split}.idx", INDEX_DTYPE)
    assert list(np.flatnonzero(tokens == tokenizer.end_of_text_id) + 1) == list(ends)
    parts = np.split(tokens, ends[:-1].astype(int)) if len(ends) else []
    return [tokenizer.decode(part[:-1].tolist()) for part in parts]


def read_all(folder: Path, tokenizer: Tokenizer) -> dict[str, set[str]]:
    """Documents by split, over all sources."""
    names = [source["name"] for source in read_manifest(folder)["sources"]]
    return {split: {text for name in names for text in read_split(folder, name, split, tokenizer)} for split in SPLITS}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file of a folder."""
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


class Messages(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.prepared: list[tuple[str, int, int]] = []

    def on_message(self, text: str) -> None:
        self.lines.append(text)

    def on_prepare(self, source: str, documents: int, text_bytes: int) -> None:
        self.prepared.append((source, documents, text_bytes))


# Cleaning and splitting


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("\ufeffa", "a\n"),
        ("a\0b", "ab\n"),
        ("a\ud800b", "ab\n"),
        ("\n\n  a\tb  \n\n\n", "  a\tb\n"),
        ("if x:\n\tdo  \n    more", "if x:\n\tdo  \n    more\n"),
        ("", ""),
        (" \n\t\r\n", ""),
    ],
)
def test_cleaning_keeps_blanks_that_mean_something(raw: str, cleaned: str) -> None:
    """Line ends, marks and half characters go; indentation stays, because bash and Python read it."""
    assert clean(raw) == cleaned == clean(cleaned)


def test_split_takes_the_share_asked_for() -> None:
    """Hashes spread evenly: of many documents about the fraction goes to validation."""
    splits = [split_of(document_hash(story(number)), 0.2) for number in range(5000)]
    assert 0.17 < splits.count("validation") / 5000 < 0.23


def test_document_hash_is_the_same_everywhere() -> None:
    """Fixed for ever: another value would move documents between splits of models that exist."""
    assert document_hash("hello\n") == int.from_bytes(hashlib.blake2b(b"hello\n", digest_size=8).digest(), "big")
    assert document_hash("hello\n") == 0x4AD30D407A645613


# Token files


def test_token_files_hold_the_cleaned_documents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What training reads decodes back to the documents, each once, in their order, empty ones left out."""
    texts = [story(number) for number in range(60)]
    raw = [*texts[:30], "", "  \n", "Köln\r\n\u2581 <|endoftext|>\r\n", *texts[30:], texts[5], texts[6].rstrip()]
    file = write_documents(tmp_path / "stories.jsonl", raw)
    prepare_phase(tmp_path / "data", phase(file), tokenizer, seed=0)
    expected = [*texts[:30], "Köln\n\u2581 <|endoftext|>\n", *texts[30:]]
    for split in SPLITS:
        chosen = [text for text in expected if split_of(document_hash(text), 0.2) == split]
        assert read_split(tmp_path / "data", "stories", split, tokenizer) == chosen
    counts = read_manifest(tmp_path / "data")["sources"][0]["counts"]
    assert counts["empty"] == 2 and counts["duplicates"] == 2


def test_manifest_counts_are_those_of_the_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Documents, tokens, bytes and checksums in the manifest equal a recount from the token files."""
    files = [write_documents(tmp_path / f"{name}.jsonl", [f"{name} {story(n)}ä\n" for n in range(40)]) for name in "ab"]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.sh").write_text("echo x\n")
    (tmp_path / "c" / "y.sh").write_bytes(b"\0")
    manifest = prepare_phase(tmp_path / "data", phase(*files, tmp_path / "c"), tokenizer, seed=0)
    assert manifest == read_manifest(tmp_path / "data")
    assert manifest["tokenizer_hash"] == tokenizer.hash and manifest["vocab_size"] == tokenizer.vocab_size
    for source in manifest["sources"]:
        for split in SPLITS:
            counts, binary = source["counts"][split], (tmp_path / "data" / f"{source['name']}-{split}.bin").read_bytes()
            texts = read_split(tmp_path / "data", source["name"], split, tokenizer)
            assert counts["documents"] == len(texts)
            assert counts["text_bytes"] == sum(len(text.encode()) for text in texts)
            assert counts["tokens"] == len(binary) // 2 and counts["sha256"] == hashlib.sha256(binary).hexdigest()
    assert [len(source["counts"]["skipped_files"]) for source in manifest["sources"]] == [0, 0, 1]
    assert not list((tmp_path / "data").glob("*.sqlite*"))


def test_duplicates_are_dropped_across_sources(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A document in two sources is learned once, also where only line ends tell the copies apart; the second one is counted."""
    first = write_documents(tmp_path / "first.jsonl", [story(number) for number in range(30)])
    second = write_documents(tmp_path / "second.jsonl", [story(number).replace("\n", "\r\n") for number in range(20, 50)])
    manifest = prepare_phase(tmp_path / "data", phase(first, second), tokenizer, seed=0)
    assert [source["counts"]["duplicates"] for source in manifest["sources"]] == [0, 10]
    everything = read_all(tmp_path / "data", tokenizer)
    assert everything["train"] | everything["validation"] == {story(number) for number in range(50)}


def test_document_keeps_its_split(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A corpus that grows, is shuffled and moves to another file never shows a validation document in training."""
    texts = [story(number) for number in range(100)]
    prepare_phase(tmp_path / "before", phase(write_documents(tmp_path / "a.jsonl", texts)), tokenizer, seed=0)
    random.Random(1).shuffle(texts)
    halves = [write_documents(tmp_path / "b.jsonl", texts[:50]), write_documents(tmp_path / "c.jsonl", texts[50:])]
    more = write_documents(tmp_path / "d.jsonl", [story(number) for number in range(100, 200)])
    prepare_phase(tmp_path / "after", phase(more, *halves), tokenizer, seed=1)
    before, after = read_all(tmp_path / "before", tokenizer), read_all(tmp_path / "after", tokenizer)
    assert before["validation"] and before["train"]
    assert before["validation"] < after["validation"] and before["train"] < after["train"]
    assert not after["validation"] & after["train"]


def test_many_batches_equal_one(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the text is cut into batches for the tokenizer's threads leaves no trace; progress only grows."""
    file = write_documents(tmp_path / "a.jsonl", [story(number) for number in range(200)])
    prepare_phase(tmp_path / "one", phase(file), tokenizer, seed=0)
    monkeypatch.setattr("mlx_codegen.data.prepare.BATCH_CHARACTERS", 500)
    messages = Messages()
    prepare_phase(tmp_path / "many", phase(file), tokenizer, seed=0, observer=messages)
    for name, (data, _) in contents(tmp_path / "one").items():
        assert (tmp_path / "many" / name).read_bytes() == data
    assert len(messages.prepared) > 10 and messages.prepared == sorted(messages.prepared)
    assert messages.prepared[-1][1] == 200


# Reuse


def test_unchanged_sources_are_not_prepared_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The second run finds everything done, says so, and touches no file; a weight is no reason to start over."""
    file = write_documents(tmp_path / "a.jsonl", [story(number) for number in range(50)])
    first = prepare_phase(tmp_path / "data", phase(file), tokenizer, seed=0)
    before, messages = contents(tmp_path / "data"), Messages()
    heavier = PhaseConfig.model_validate({**phase(file).model_dump(), "learning_rate": 0.5})
    heavier = heavier.model_copy(update={"sources": (heavier.sources[0].model_copy(update={"weight": 3.0}),)})
    assert prepare_phase(tmp_path / "data", heavier, tokenizer, seed=0, observer=messages) == first
    assert contents(tmp_path / "data") == before
    assert any("up to date" in line for line in messages.lines) and messages.prepared == []


def touched_file(file: Path) -> PhaseConfig:
    """The same file with one document more."""
    with file.open("a") as stream:
        stream.write(json.dumps({"text": story(1000)}) + "\n")
    return phase(file)


def same_size_file(file: Path) -> PhaseConfig:
    """The same file with one letter changed: only its time tells."""
    old = file.stat()
    file.write_text(file.read_text().replace("cat", "rat", 1))
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    return phase(file)


@pytest.mark.parametrize(
    "change",
    [
        touched_file,
        same_size_file,
        lambda file: phase(file, validation_fraction=0.3),
        lambda file: phase(file, file.with_name("b.jsonl")),
        lambda file: PhaseConfig(
            sources=(SourceConfig(name="a", path=str(file), max_documents=40),),
            steps=1, learning_rate=1e-3, validation_fraction=0.2,
        ),
    ],
    ids=["a document more", "one letter", "split fraction", "a source more", "fewer documents"],
)  # fmt: skip
def test_a_change_prepares_again(change: Callable[[Path], PhaseConfig], tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Stale token files are never trained on: whatever changes them makes them new, equal to a fresh preparation."""
    file = write_documents(tmp_path / "a.jsonl", [story(number) for number in range(50)])
    write_documents(tmp_path / "b.jsonl", [story(number) for number in range(60, 70)])
    first = prepare_phase(tmp_path / "data", phase(file), tokenizer, seed=0)
    before = contents(tmp_path / "data")
    changed = change(file)
    second = prepare_phase(tmp_path / "data", changed, tokenizer, seed=0)
    assert second["fingerprint"] != first["fingerprint"] and contents(tmp_path / "data") != before
    prepare_phase(tmp_path / "fresh", changed, tokenizer, seed=0)
    assert read_all(tmp_path / "data", tokenizer) == read_all(tmp_path / "fresh", tokenizer)


def test_another_tokenizer_or_seed_prepares_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Ids of one tokenizer mean nothing to another, and bundled data depends on the seed."""
    file = write_documents(tmp_path / "a.jsonl", [story(number) for number in range(50)])
    other = train_tokenizer([story(number) for number in range(200)], TokenizerConfig(), 450)
    fingerprints = set()
    for chosen, seed in ((tokenizer, 0), (other, 0), (other, 1)):
        manifest = prepare_phase(tmp_path / "data", phase(file), chosen, seed)
        assert manifest["tokenizer_hash"] == chosen.hash
        assert read_all(tmp_path / "data", chosen)["train"] <= {story(number) for number in range(50)}
        fingerprints.add(manifest["fingerprint"])
    assert len(fingerprints) == 3


def test_cut_token_files_are_made_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Files that lost their end (a full disk, an interrupted copy) are not taken for good ones."""
    file = write_documents(tmp_path / "a.jsonl", [story(number) for number in range(50)])
    prepare_phase(tmp_path / "data", phase(file), tokenizer, seed=0)
    before = {name: data for name, (data, _) in contents(tmp_path / "data").items()}
    for name in ("a-train.bin", "a-validation.idx"):
        os.truncate(tmp_path / "data" / name, 10)
        prepare_phase(tmp_path / "data", phase(file), tokenizer, seed=0)
        assert {name: data for name, (data, _) in contents(tmp_path / "data").items()} == before


def test_damaged_manifest_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A manifest that cannot be read stops the work with what to do, and deletes nothing."""
    file = write_documents(tmp_path / "a.jsonl", [story(number) for number in range(50)])
    prepare_phase(tmp_path / "data", phase(file), tokenizer, seed=0)
    for content in ('{"fingerprint": ', "[]", "{}"):
        (tmp_path / "data" / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=r"manifest\.json: missing or damaged; remove"):
            prepare_phase(tmp_path / "data", phase(file), tokenizer, seed=0)


# Whole or not at all


def test_error_in_the_middle_leaves_the_old_files_and_no_others(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A bad line far into the second source: the folder from before stays as it was, nothing half written is left."""
    good = write_documents(tmp_path / "good.jsonl", [story(number) for number in range(50)])
    prepare_phase(tmp_path / "data", phase(good), tokenizer, seed=0)
    before = contents(tmp_path / "data")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(write_documents(bad, [story(number) for number in range(100, 400)]).read_text() + "{broken\n")
    with pytest.raises(UserError, match=r"bad\.jsonl, line 301: not valid JSON"):
        prepare_phase(tmp_path / "data", phase(good, bad), tokenizer, seed=0)
    assert contents(tmp_path / "data") == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.jsonl", "data", "good.jsonl"]


def test_leftovers_of_a_killed_preparation_do_no_harm(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What a killed process left behind is cleared away, not mixed in."""
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial" / "a-train.bin").write_bytes(b"rubbish")
    (tmp_path / "data.partial" / "seen.sqlite").write_bytes(b"rubbish")
    file = write_documents(tmp_path / "a.jsonl", [story(number) for number in range(50)])
    prepare_phase(tmp_path / "data", phase(file), tokenizer, seed=0)
    everything = read_all(tmp_path / "data", tokenizer)
    assert everything["train"] | everything["validation"] == {story(number) for number in range(50)}
    assert not (tmp_path / "data.partial").exists()


@pytest.mark.parametrize(
    ("texts", "words"), [([], "the corpus is empty"), (["", " \n"], "the corpus is empty"), (["a", "a\n"], "one document")]
)
def test_corpus_without_enough_documents_is_refused(texts: list[str], words: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Nothing, blanks alone and copies of one document each say what is missing, and leave no folder."""
    file = write_documents(tmp_path / "a.jsonl", texts)
    with pytest.raises(UserError, match=words):
        prepare_phase(tmp_path / "data", phase(file), tokenizer, seed=0)
    assert not (tmp_path / "data").exists() and not (tmp_path / "data.partial").exists()


@pytest.mark.parametrize("fraction", [0.0001, 0.4999])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_tiny_corpus_gets_one_validation_document(count: int, fraction: float, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Where chance would leave a split empty, one document validates, the rest trains, and a line says so."""
    file = write_documents(tmp_path / "a.jsonl", [story(number) for number in range(count)])
    messages = Messages()
    prepare_phase(tmp_path / "data", phase(file, validation_fraction=fraction), tokenizer, seed=0, observer=messages)
    everything = read_all(tmp_path / "data", tokenizer)
    assert everything["train"] and everything["validation"] and not everything["train"] & everything["validation"]
    assert everything["train"] | everything["validation"] == {story(number) for number in range(count)}
    if fraction < 0.01:
        assert len(everything["validation"]) == 1 and any("one is taken for validation" in line for line in messages.lines)


def test_corpus_that_all_falls_into_validation_still_trains(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The other way round: chance puts everything into validation. Tokenizer and model still get text to learn."""
    texts = [text for text in map(story, range(1000)) if split_of(document_hash(text), 0.2) == "validation"][:5]
    chosen = phase(write_documents(tmp_path / "a.jsonl", texts))
    assert set(training_texts([chosen], 10_000, seed=0)) == set(texts)
    prepare_phase(tmp_path / "data", chosen, tokenizer, seed=0)
    everything = read_all(tmp_path / "data", tokenizer)
    assert len(everything["validation"]) == 1 and everything["train"] | everything["validation"] == set(texts)


# Text for the tokenizer


def test_tokenizer_learns_from_training_documents_only(tmp_path: Path) -> None:
    """Validation text stays unseen by the tokenizer too; the sample does not depend on the order of the file."""
    texts = [story(number) for number in range(300)]
    forward = list(training_texts([phase(write_documents(tmp_path / "a.jsonl", texts))], 5000, seed=0))
    backward = list(training_texts([phase(write_documents(tmp_path / "b.jsonl", texts[::-1]))], 5000, seed=0))
    assert forward == backward and set(forward) < set(texts)
    assert all(split_of(document_hash(text), 0.2) == "train" for text in forward)
    assert 4000 < sum(map(len, forward)) <= 5000


def test_sources_share_the_tokenizers_budget(tmp_path: Path) -> None:
    """A large source does not drown a small one: each gets an even share."""
    large = write_documents(tmp_path / "large.jsonl", [f"L {story(number)}" for number in range(1000)])
    small = write_documents(tmp_path / "small.jsonl", [f"S {story(number)}" for number in range(100)])
    texts = list(training_texts([phase(large, small)], 6000, seed=0))
    shares = [sum(len(text) for text in texts if text.startswith(mark)) for mark in "LS"]
    assert all(2500 < share <= 3000 for share in shares)


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 96 KiB; skipped where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False
    if sys.platform == "linux" and os.geteuid() == 0:
        command = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("cannot mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


CONFIG = """
model: {n_layers: 1, d_model: 16, n_heads: 2, vocab_size: 500, context_length: 16}
phases:
  code:
    sources: [{name: mine, path: FILE}]
    steps: 1
    learning_rate: 0.001
    validation_fraction: 0.2
"""


def prepare_command(folder: Path, file: Path, limit: Callable[[], None] | None = None) -> "subprocess.CompletedProcess[str]":
    """`mlx-codegen prepare` in a process of its own, working in `folder`."""
    config = file.with_name("run.yaml")
    config.write_text(CONFIG.replace("FILE", str(file)))
    return subprocess.run(
        [sys.executable, "-m", "mlx_codegen", "prepare", str(config)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, preexec_fn=limit,
    )  # fmt: skip


def assert_full_disk_does_no_harm(folder: Path, file: Path, limit: Callable[[], None] | None = None) -> None:
    """Prepares a corpus that fits, then one that does not; the second fails in one line and the first is intact."""
    write_documents(file, [story(number) for number in range(50)])
    first = prepare_command(folder, file, limit)
    assert first.returncode == 0, first.stderr
    before = contents(folder / "runs" / "run" / "data" / "code")
    write_documents(file, [story(number) for number in range(20_000)])
    second = prepare_command(folder, file, limit)
    assert second.returncode == 2 and second.stderr.startswith("error: ") and second.stderr.count("\n") == 1
    assert "no space left on disk while writing runs/run/data/code" in second.stderr
    assert contents(folder / "runs" / "run" / "data" / "code") == before
    assert not list(folder.rglob("*.partial")) and not list(folder.rglob("*.tmp"))


def test_full_disk_is_told_and_does_no_harm(small_disk: Path, tmp_path: Path) -> None:
    """On a disk that is really full: one line, status 2, the older token files as they were, nothing half written."""
    assert_full_disk_does_no_harm(small_disk, tmp_path / "mine.jsonl")


def test_file_size_limit_is_told_and_does_no_harm(tmp_path: Path) -> None:
    """The same where a limit on the size of files stops the writing: no special rights needed to test it."""
    (tmp_path / "work").mkdir()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    assert_full_disk_does_no_harm(tmp_path / "work", tmp_path / "mine.jsonl", limit)


# The command


def test_prepare_command_shows_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mlx-codegen prepare` makes tokenizer and token files under runs/ and shows their counts; again, it reuses them."""
    monkeypatch.chdir(tmp_path)
    file = write_documents(tmp_path / "mine.jsonl", [story(number) for number in range(80)])
    (tmp_path / "run.yaml").write_text(CONFIG.replace("FILE", str(file)))
    assert run(["prepare", "run.yaml"]) == 0
    shown = capsys.readouterr().out
    counts = read_manifest(tmp_path / "runs" / "run" / "data" / "code")["sources"][0]["counts"]
    row = next(line for line in shown.splitlines() if "code" in line and "mine" in line).split()
    tokens = [f"{counts[split]['tokens']:,}" for split in SPLITS]
    assert "80" in row and set(tokens) < set(row)
    before = contents(tmp_path / "runs" / "run" / "data" / "code")
    assert run(["prepare", "run.yaml"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert contents(tmp_path / "runs" / "run" / "data" / "code") == before

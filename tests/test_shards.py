"""A streamed corpus: any position is found again exactly, disk and memory stay bounded, and a hub that fails costs nothing."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import Recorder, phase_values, run_values, state_on_disk

from mlx_codegen.cli.main import run as command
from mlx_codegen.config import PhaseConfig, RunConfig, TokenizerConfig, build_run_config, to_yaml
from mlx_codegen.data import shards
from mlx_codegen.data.batches import Batches, Tokens, open_token_files
from mlx_codegen.data.mixed_batches import open_batches
from mlx_codegen.data.prepare import clean, document_hash, prepare_phase, split_of
from mlx_codegen.data.shards import ShardError, ShardMaker, ShardSource
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.training_texts import training_texts
from mlx_codegen.generation.engine import load
from mlx_codegen.observer import Observer
from mlx_codegen.tokenizer import Tokenizer, train_tokenizer
from mlx_codegen.training.phases import train_run
from mlx_codegen.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "run", "to", "its", "red", "house"]
CONTEXT, SHARD, DOCUMENTS = 16, 20, 130  # six shards and a half
FRACTION = 0.2


def story(number: int) -> str:
    """One of endlessly many different documents; every tenth comes twice in a row, some are empty."""
    if number % 37 == 5:
        return " \n"
    rng = random.Random(number - number % 10 // 9)
    return " ".join(rng.choices(WORDS, k=rng.randrange(3, 25))) + f" {rng.randrange(10_000)}.\n"


def write_data_set(folder: Path, kind: str = "jsonl", documents: int = DOCUMENTS) -> Path:
    """A local folder as a hub data set has them: files of 33 documents, of which no shard's border is one."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    for number, first in enumerate(range(0, documents, 33)):
        texts = [story(each) for each in range(first, min(first + 33, documents))]
        file = folder / f"train-{number:05}.{kind}"
        if kind == "jsonl":
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        else:
            pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=7)
    return folder


def settings(data_set: Path, *others: dict[str, Any], **changes: Any) -> PhaseConfig:
    """A phase that streams a data set, beside other sources."""
    source = {"name": "web", "hub": str(data_set), "stream": True, "shard_documents": SHARD, "cache_bytes": 10**9, **changes}
    values = {"sources": [source, *others], "steps": 1, "learning_rate": 1e-3, "batch_size": 3}
    return PhaseConfig.model_validate({**values, "validation_fraction": FRACTION})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A small tokenizer."""
    return train_tokenizer([story(number) for number in range(200)], TokenizerConfig(), 500)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that follow each other at once."""
    monkeypatch.setattr(shards, "RETRY_SECONDS", (0.01, 0.02, 0.04))


def prepared(folder: Path, phase: PhaseConfig, tokenizer: Tokenizer) -> Path:
    """The phase's prepared data."""
    prepare_phase(folder, phase, tokenizer, seed=0)
    return folder


def batches_of(folder: Path, phase: PhaseConfig, tokenizer: Tokenizer, **share: int) -> Batches:
    """The phase's batches, from the beginning."""
    return open_batches(folder, phase, tokenizer, CONTEXT, seed=7, **share)


def take(batches: Batches, count: int) -> list[Tokens]:
    """The next batches; reading ahead ends with them."""
    taken = [batches.next() for _ in range(count)]
    batches.close()
    return taken


def same(first: list[Tokens], second: list[Tokens]) -> bool:
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def maker(folder: Path, phase: PhaseConfig, tokenizer: Tokenizer, number: int = 0, start: Any = None) -> ShardMaker:
    """Shards of the phase's first source."""
    first = open_token_files(folder, "train", {}, tokenizer.hash)[0]
    origin = ShardSource(phase.sources[0], first, folder / "web.shards" / "0", "key", tokenizer, FRACTION)
    return ShardMaker(origin, number, start)


def decoded(shard: shards.Shard, tokenizer: Tokenizer) -> list[str]:
    ends = shard.file.document_ends.astype(int)
    parts = np.split(shard.file.tokens, ends[:-1]) if len(ends) else []
    return [tokenizer.decode(part[:-1].tolist()) for part in parts]


# What is in the shards


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_shards_are_the_data_set_in_order(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Each shard holds its documents once, cleaned, none of validation; after the last the first one comes again."""
    phase = settings(write_data_set(tmp_path / "set", kind))
    folder = prepared(tmp_path / "data", phase, tokenizer)
    making = maker(folder, phase, tokenizer)
    taken = [making.take() for _ in range(9)]
    making.close()
    assert [shard.number for shard in taken] == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    for shard in taken:
        texts = [clean(story(number)) for number in range(shard.number * SHARD, min((shard.number + 1) * SHARD, DOCUMENTS))]
        kept = [text for text in texts if text and split_of(document_hash(text), FRACTION) == "train"]
        assert decoded(shard, tokenizer) == list(dict.fromkeys(kept))
    everything = [text for shard in taken[:7] for text in decoded(shard, tokenizer)]
    held_out = open_token_files(folder, "validation", {}, tokenizer.hash)[0]
    assert len(held_out.document_ends) and not set(decoded(shards.Shard(0, held_out, None, None), tokenizer)) & set(everything)
    assert len(everything) > 70 and taken[6].end is None and taken[5].end is not None


def test_a_data_set_of_whole_shards_ends_too(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Where the end of the data set is the end of a shard, an empty one follows; and a shard alone repeats, in another order."""
    phase = settings(write_data_set(tmp_path / "set", documents=SHARD))
    folder = prepared(tmp_path / "data", phase, tokenizer)
    making = maker(folder, phase, tokenizer)
    assert [(shard.number, len(shard.file.tokens) > 0) for shard in (making.take() for _ in range(3))] == [
        (0, True),
        (1, False),
        (0, True),
    ]
    making.close()
    batches = batches_of(folder, phase, tokenizer)
    windows = len(open_token_files(folder, "train", {}, tokenizer.hash)[0].tokens) // CONTEXT
    rows = [tuple(row.tolist()) for batch in take(batches, windows) for row in batch]
    epochs = [rows[start : start + windows] for start in range(0, 3 * windows, windows)]
    assert len(set(map(tuple, epochs))) == 3, "each epoch has its own order"
    assert batches.state()["sources"]["web"]["epoch"] == 2


# Positions


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("shards_kept", [True, False])
def test_any_position_is_found_again(kind: str, shards_kept: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """In the middle of a shard and at its borders, over the end of the data set: what follows is what would have come.

    Also where the shards are gone from the disk, and the position was through a file.
    """
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"another {story(number)}"}) + "\n" for number in range(60)))
    phase = settings(write_data_set(tmp_path / "set", kind), {"name": "other", "path": str(other), "weight": 0.5})
    folder = prepared(tmp_path / "data", phase, tokenizer)
    batches, positions, expected = batches_of(folder, phase, tokenizer), [], []
    for _ in range(60):
        positions.append(json.dumps(batches.state()))
        expected.append(batches.next())
    batches.close()
    shard_numbers = [json.loads(position)["sources"]["web"]["shard"] for position in positions]
    assert set(shard_numbers) == set(range(7)) and json.loads(positions[-1])["sources"]["web"]["epoch"] >= 1
    assert [json.loads(position)["rows"] for position in positions] == list(range(0, 180, 3))
    for start in (0, 1, 7, 8, 20, 21, 22, 39, 50, 59):
        if not shards_kept:
            shutil.rmtree(folder / "web.shards", ignore_errors=True)
        resumed = batches_of(folder, phase, tokenizer)
        resumed.restore(json.loads(positions[start]))
        assert resumed.state() == json.loads(positions[start])
        count = min(12, 60 - start)
        assert same(take(resumed, count), expected[start : start + count]), start


def test_ranks_share_the_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Two processes with batches of two read the rows of one with batches of four, and any of them can go on from the other."""
    phase = settings(write_data_set(tmp_path / "set"))
    folder = prepared(tmp_path / "data", phase, tokenizer)
    shutil.copytree(folder, tmp_path / "alone")
    alone = batches_of(tmp_path / "alone", phase.model_copy(update={"batch_size": 4}), tokenizer)
    two = phase.model_copy(update={"batch_size": 2})
    ranks = [batches_of(folder, two, tokenizer, rank=rank, ranks=2) for rank in (0, 1)]
    for _ in range(25):
        assert np.array_equal(alone.next(), np.concatenate([rank.next() for rank in ranks]))
    assert alone.state() == ranks[0].state() == ranks[1].state() and alone.tokens_per_batch == ranks[0].tokens_per_batch
    for each in (alone, *ranks):
        each.close()


def test_sources_have_the_share_of_their_weight(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Whatever their size: of any run of rows, each source gives its share to within one row."""
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": "zebra " * 30 + str(number)}) + "\n" for number in range(9)))
    phase = settings(write_data_set(tmp_path / "set"), {"name": "other", "path": str(other), "weight": 0.25})
    batches = batches_of(prepared(tmp_path / "data", phase, tokenizer), phase, tokenizer)
    for count in range(1, 40):
        batches.next()
        rows = {name: part["rows"] for name, part in batches.state()["sources"].items()}
        assert sum(rows.values()) == 3 * count and abs(rows["other"] - 0.2 * 3 * count) <= 1
    batches.close()


# Disk and memory


def on_disk(folder: Path) -> set[str]:
    """Names of the shards whose tokens are on disk."""
    return {file.stem for file in (folder / "web.shards").rglob("*") if file.suffix in (".bin", ".idx")}


def test_disk_is_bounded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """However long it trains, no more shards lie on disk than are in use and being made."""
    phase = settings(write_data_set(tmp_path / "set", documents=400), cache_bytes=0)
    folder = prepared(tmp_path / "data", phase, tokenizer)
    batches, most = batches_of(folder, phase, tokenizer), 0
    while batches.state()["sources"]["web"]["epoch"] < 2:
        batches.next()
        most = max(most, len(on_disk(folder)))
    batches.close()
    assert 2 <= most <= shards.IN_USE + 1


def test_shards_within_the_cache_are_not_read_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """With room for all of them, the second epoch needs no hub."""
    phase = settings(write_data_set(tmp_path / "set"))
    folder = prepared(tmp_path / "data", phase, tokenizer)
    batches = batches_of(folder, phase, tokenizer)
    while batches.state()["sources"]["web"]["epoch"] < 1:
        batches.next()
    (tmp_path / "set").rename(tmp_path / "gone")
    while batches.state()["sources"]["web"]["epoch"] < 3:
        batches.next()
    batches.close()
    assert len(on_disk(folder)) == 6


@pytest.mark.parametrize("damage", ["cut", "changed", "note gone", "index gone", "of other data"])
def test_damaged_shards_are_made_again(damage: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A killed process or a bad disk leaves shards that are not whole: they are recognised, and made as they were."""
    phase = settings(write_data_set(tmp_path / "set"))
    folder = prepared(tmp_path / "data", phase, tokenizer)
    expected = take(batches_of(folder, phase, tokenizer), 20)
    shard = folder / "web.shards" / "0" / "00001"
    data, note = shard.with_suffix(".bin").read_bytes(), json.loads(shard.with_suffix(".json").read_text())
    if damage == "cut":
        shard.with_suffix(".bin").write_bytes(data[:-10])
    elif damage == "changed":
        shard.with_suffix(".bin").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "of other data":
        shard.with_suffix(".json").write_text(json.dumps(note | {"key": "another"}))
        shard.with_suffix(".bin").write_bytes(data[::-1])
    else:
        shard.with_suffix(".json" if damage == "note gone" else ".idx").unlink()
    assert same(take(batches_of(folder, phase, tokenizer), 20), expected)
    assert shard.with_suffix(".bin").read_bytes() == data


def test_memory_does_not_grow_with_the_corpus(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Another 18 MB of text need no more memory: the peak is that of the first few shards."""
    (tmp_path / "set").mkdir()
    page = "the cat sat on a mat and saw one dog run to its red house\n" * 350
    for number in range(24):
        texts = (f"{number} {each} {page}" for each in range(50))
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "set" / f"train-{number:05}.jsonl").write_text(lines)
    phase = settings(tmp_path / "set", shard_documents=50, cache_bytes=0)
    prepared(tmp_path / "data", phase, tokenizer)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    script = (
        "import resource, sys; sys.path.insert(0, 'tests'); from test_shards import *\n"
        "folder = Path(sys.argv[1]); phase = PhaseConfig.model_validate_json(sys.argv[2])\n"
        "batches = open_batches(folder / 'data', phase, Tokenizer.load(folder / 'tokenizer.model'), 4096, seed=0)\n"
        "def peak(shard):\n"
        "    while batches.state()['sources']['web']['shard'] < shard: batches.next()\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(peak(5), peak(23), batches.close())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), phase.model_dump_json()],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    early, late = map(int, done.stdout.split()[:2])
    unit = 1 if sys.platform == "darwin" else 1024
    assert (late - early) * unit < 6_000_000


# A hub that fails


def test_hub_that_comes_back_costs_nothing(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of reach for a while, in the middle of the data set: tried again, and the batches are the same."""
    monkeypatch.setattr(shards, "RETRY_SECONDS", (0.05,) * 200)
    data_set = write_data_set(tmp_path / "set")
    phase = settings(data_set)
    folder = prepared(tmp_path / "data", phase, tokenizer)
    expected = take(batches_of(folder, phase, tokenizer), 25)
    shutil.rmtree(folder / "web.shards")
    data_set.rename(tmp_path / "away")
    back = threading.Timer(1.0, lambda: (tmp_path / "away").rename(data_set))
    back.start()
    began = time.monotonic()
    assert same(take(batches_of(folder, phase, tokenizer), 25), expected)
    assert time.monotonic() - began > 0.5
    back.join()


def test_hub_that_stays_away_is_one_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """After the last attempt: what cannot be read, and how often it was tried; asked again, the same."""
    data_set = write_data_set(tmp_path / "set")
    phase = settings(data_set)
    batches = batches_of(prepared(tmp_path / "data", phase, tokenizer), phase, tokenizer)
    shutil.rmtree(data_set)
    for _ in range(2):
        with pytest.raises(ShardError, match=r"hub data set \S+ cannot be read \(.*\); tried 4 times in") as error:
            take_all(batches)
        assert "\n" not in str(error.value)
    batches.close()


def take_all(batches: Batches) -> None:
    while True:
        batches.next()


def test_full_disk_is_one_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """No room for the next shard: one line, where it should have gone."""
    phase = settings(write_data_set(tmp_path / "set"))
    batches = batches_of(prepared(tmp_path / "data", phase, tokenizer), phase, tokenizer)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(ShardError, match=r"cannot write shards in .*web\.shards/0 \(.*\); is there disk space left"):
            take_all(batches)
        batches.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Training


def run_config(data_set: Path, *overrides: str) -> RunConfig:
    """The tiny run's code phase, half of it streamed."""
    web = {"name": "web", "hub": str(data_set), "stream": True, "shard_documents": SHARD, "cache_bytes": 0}
    bash = {"name": "bash", "bundled": "bash", "max_documents": 150}
    code = phase_values("bash", sources=[bash, web], steps=40)
    return build_run_config({**run_values(), "phases": {"code": code}}, overrides)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the runs."""
    return write_data_set(tmp_path_factory.mktemp("sets") / "set")


@pytest.fixture(scope="module")
def unbroken(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """What every interrupted run is compared with."""
    folder = RunFolder(tmp_path_factory.mktemp("unbroken") / "run")
    recorder = Recorder()
    assert train_run(folder, run_config(data_set), ["code"], recorder) == "finished"
    assert recorder.starts[0].train_tokens is None
    return folder


def last(folder: RunFolder) -> tuple[dict[str, bytes], dict[str, Any]]:
    return state_on_disk(folder.checkpoint("code", "last"))


def test_interrupted_training_goes_on_bit_for_bit(data_set: Path, unbroken: RunFolder, tmp_path: Path) -> None:
    """Stopped in the middle of several shards: weights, optimizer and position end as if it had never stopped."""
    folder, config, recorder = RunFolder(tmp_path / "run"), run_config(data_set), Recorder()
    stops, resume = [7, 19, 33], False
    for step in stops:
        assert train_run(folder, config, ["code"], recorder, recorder.stop_at("code", step), resume=resume) == "interrupted"
        resume = True
    places = json.loads(json.dumps(last(folder)[1]["data_position"]))["sources"]["web"]
    assert places["shard"] > 1 and places["window"] > 0
    shutil.rmtree(folder.data("code") / "web.shards")
    assert train_run(folder, config, ["code"], recorder, resume=True) == "finished"
    assert last(folder) == last(unbroken)


def test_training_without_its_hub_is_saved_and_goes_on(data_set: Path, unbroken: RunFolder, tmp_path: Path) -> None:
    """The hub goes away for good: one line with the step that is saved; once it is back, --resume ends where it should have."""
    folder, config = RunFolder(tmp_path / "run"), run_config(data_set)
    away = data_set.with_name("away")

    class Robber(Recorder):
        def on_step(self, metrics: Any) -> None:
            super().on_step(metrics)
            if metrics.step == 6:
                data_set.rename(away)

    robber = Robber()
    try:
        with pytest.raises(UserError, match=r"cannot be read .* tried 4 times .*; saved at step \d+: --resume goes on") as error:
            train_run(folder, config, ["code"], robber)
    finally:
        away.rename(data_set)
    saved = last(folder)[1]["step"]
    assert saved == robber.steps[-1].step > 6 and f"saved at step {saved}:" in str(error.value)
    assert train_run(folder, config, ["code"], Observer(), resume=True) == "finished"
    assert last(folder) == last(unbroken)


def test_copies_of_streamed_text_are_not_known(unbroken: RunFolder) -> None:
    """Only the first shard's documents are noted: an evaluation must not call the others new."""
    texts = training_texts(load(unbroken.checkpoint("code", "best")))
    assert not texts and "web was streamed" in texts.note


def test_settings_of_a_run_under_way_do_not_move_its_shards(data_set: Path, unbroken: RunFolder, tmp_path: Path) -> None:
    """Shards of another size, or another share for validation, would train twice on some text and on validation's."""
    folder, recorder = RunFolder(tmp_path / "run"), Recorder()
    assert train_run(folder, run_config(data_set), ["code"], recorder, recorder.stop_at("code", 9)) == "interrupted"
    changes = ("phases.code.sources.1.shard_documents=7", "phases.code.validation_fraction=0.3")
    assert train_run(folder, run_config(data_set, *changes), ["code"], recorder, resume=True) == "finished"
    assert last(folder) == last(unbroken)


def test_no_thread_is_left_behind(unbroken: RunFolder) -> None:
    """Reading ahead ends with the phase."""
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shards of")]


def test_reading_ahead_that_has_stopped_is_one_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Whatever ended the thread: who waits for a shard is told, and does not wait for ever."""
    phase = settings(write_data_set(tmp_path / "set"))
    making = maker(prepared(tmp_path / "data", phase, tokenizer), phase, tokenizer)
    making.close()
    with pytest.raises(ShardError, match="reading ahead of web has stopped; --resume goes on"):
        for _ in range(9):
            making.take()


def test_command_says_that_it_streams(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mlx-codegen train` of a streamed source: no length of an epoch is claimed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web.yaml").write_text(to_yaml(run_config(data_set, "phases.code.steps=2")))
    assert command(["train", "web.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "streamed text, 2 steps of 128 tokens" in shown and "epochs" not in shown


# Settings


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("phases.code.sources.1.fresh_values=0.5", "streams: fresh_values and max_documents are for sources that are prepared"),
        ("phases.code.sources.1.max_documents=5", "streams: fresh_values and max_documents are for sources that are prepared"),
        ("phases.code.sources.0.stream=true", "source 'bash' can stream only from hub"),
        ("phases.code.epochs=2", "give either epochs or steps"),
    ],
)
def test_what_cannot_stream_is_refused(override: str, words: str, data_set: Path) -> None:
    """One line with the source's name."""
    with pytest.raises(UserError, match=words):
        run_config(data_set, override)


def test_epochs_of_a_stream_are_refused(data_set: Path) -> None:
    """Nobody knows how long one is."""
    with pytest.raises(UserError, match="'web' streams, so that nobody knows how long an epoch is: give steps, not epochs"):
        run_config(data_set, "phases.code.steps=null", "phases.code.epochs=1")


def test_too_small_a_shard_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Less text than a window in the first shard: what to raise."""
    phase = settings(write_data_set(tmp_path / "set"))
    folder = prepared(tmp_path / "data", phase, tokenizer)
    with pytest.raises(UserError, match=r"first shard of web has \d+ tokens, fewer than one window of 5000; raise its shard_doc"):
        open_batches(folder, phase, tokenizer, 5000, seed=0)

"""Loss, perplexity and bits per byte: every token scored once, with the context that it is due, on text that is unseen."""

import json
import math
import os
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_map
from tiny_run import TrainedRun, phase_values, tiny_tokenizer

from mlx_codegen.config import ModelConfig, PhaseConfig
from mlx_codegen.data.prepare import manifest_checksum, prepare_phase
from mlx_codegen.data.tasks import load_tasks
from mlx_codegen.evaluation import held_out, machine_scripts, perplexity
from mlx_codegen.evaluation.context import Context
from mlx_codegen.evaluation.context import Settings as EvaluationSettings
from mlx_codegen.evaluation.held_out import cut, encoded, run_of, validation_texts
from mlx_codegen.evaluation.machine_scripts import find_scripts, read_scripts
from mlx_codegen.evaluation.perplexity import measure_perplexity, text_figures
from mlx_codegen.evaluation.sliding_window import POSITIONS, Window, batches, document_losses, windows
from mlx_codegen.generation.engine import Engine, load
from mlx_codegen.model import Transformer
from mlx_codegen.training.run_folder import RunFolder

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def engine(trained_run: TrainedRun) -> Engine:
    return load(trained_run.folder.path)


def context_of(engine: Engine) -> Context:
    return Context(engine, [], EvaluationSettings(seed=0))


def naive_losses(model: Transformer, ids: list[int], before: int) -> list[float]:
    """One token at a time: the window that the rule of `sliding_window` gives it, alone in its batch, nothing padded."""
    size = model.config.context_length
    text, stride = [before, *ids], size // 2
    losses = []
    for place in range(len(ids)):  # scored from text[: place + 1], of which the newest window is read
        later = max(0, -(-(place + 1 - size) // stride))
        logits = model(mx.array([text[later * stride : place + 1]]))[0, -1].astype(mx.float32)
        losses.append((mx.logsumexp(logits) - logits[ids[place]]).item())
    return losses


@given(st.integers(1, 200), st.integers(8, 40))
@settings(max_examples=60, deadline=None)
def test_every_token_is_scored_once_with_half_a_window_before_it(length: int, context_length: int) -> None:
    """Whatever the lengths, odd ones too."""
    cut_up = list(windows(3, length, context_length))
    scored = [place for window in cut_up for place in range(window.scored_from, window.stop)]
    assert scored == list(range(length))
    for window in cut_up:
        assert window.document == 3 and 1 <= window.stop - window.start <= context_length
        assert window.start == 0 or window.scored_from - window.start >= context_length // 2


def test_batches_hold_every_window_once_and_stay_small() -> None:
    """A window alone may be larger than the limit; several together may not."""
    cut_up = [Window(number, 0, 0, size) for number, size in enumerate([1, 5, 3000, 700, 700, 9000, 2, 700] * 3)]
    parts = list(batches(cut_up))
    assert sorted((w for part in parts for w in part), key=lambda w: w.document) == cut_up
    assert all(len(part) == 1 or len(part) * max(w.stop for w in part) <= POSITIONS for part in parts)
    assert len(parts) < len(cut_up)


def test_losses_are_those_of_one_window_at_a_time(engine: Engine) -> None:
    """Batches, padding and order change nothing: documents of every length, shorter and longer than the window."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(20, 400, size).tolist() for size in (1, 2, 15, 16, 31, 32, 33, 48, 49, 100, 7)]
    told: list[tuple[int, int]] = []
    losses = document_losses(engine.model, documents, engine.tokenizer.end_of_text_id, lambda *now: told.append(now))
    assert [len(values) for values in losses] == [len(ids) for ids in documents]
    for ids, values in zip(documents, losses, strict=True):
        np.testing.assert_allclose(values, naive_losses(engine.model, ids, engine.tokenizer.end_of_text_id), atol=2e-4)
    assert told[-1] == (sum(map(len, documents)), sum(map(len, documents))) and told == sorted(told)


def test_a_model_without_knowledge_gets_the_same_bits_by_every_tokenizer(engine: Engine) -> None:
    """Equal chances for V pieces: a loss of ln V for every token, and log2(V) · tokens / bytes for every byte."""
    tokenizer = engine.tokenizer
    config = ModelConfig(n_layers=1, d_model=8, n_heads=1, vocab_size=tokenizer.vocab_size, context_length=16)
    model = Transformer(config)
    model.update(tree_map(mx.zeros_like, model.parameters()))
    texts = ["Grüße, a cat sat.\n", "#!/bin/bash\nls -la\n" * 9, "x\n"]
    documents = list(encoded(texts, tokenizer))
    figures = text_figures(documents, document_losses(model, documents, tokenizer.end_of_text_id), tokenizer)
    tokens, size = sum(map(len, documents)), sum(len(text.encode()) for text in texts)
    assert figures["loss"].value == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-5)
    assert figures["perplexity"].value == pytest.approx(tokenizer.vocab_size, rel=1e-4)
    assert figures["bits per byte"].value == pytest.approx(math.log2(tokenizer.vocab_size) * tokens / size, rel=1e-5)
    assert (figures["loss"].samples, figures["bits per byte"].samples) == (tokens, size)


def test_bits_per_byte_is_all_bits_over_all_bytes_with_documents_drawn_whole(engine: Engine) -> None:
    """Not a mean of means; the interval knows that a document's tokens belong together."""
    documents = list(encoded(["a\n", "bcd efg hij\n" * 4], engine.tokenizer))
    losses = [np.full(len(documents[0]), 8.0), np.full(len(documents[1]), 1.0)]
    figures = text_figures(documents, losses, engine.tokenizer)
    nats = sum(values.sum() for values in losses)
    assert figures["bits per byte"].value == pytest.approx(nats / math.log(2) / 50)
    assert figures["loss"].value == pytest.approx(nats / sum(map(len, documents)))
    # With two documents, either may be drawn twice
    assert (figures["loss"].low, figures["loss"].high) == pytest.approx((1.0, 8.0))
    assert len(figures["loss"].prompts) == 2 and figures["perplexity"].high == pytest.approx(math.exp(8))


def test_texts_are_cut_by_bytes_not_tokens(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every tokenizer reads the same text: documents from their beginning, and no more than enough of them."""
    monkeypatch.setattr(held_out, "DOCUMENT_BYTES", 10)
    monkeypatch.setattr(held_out, "SOURCE_BYTES", 25)
    texts = ["abc\n", "", "0123456789 and more\n", "xyz 0123456789\n", "never reached, never\n", "nor this\n"]
    kept = cut(encoded(texts, engine.tokenizer), engine.tokenizer)
    decoded = [engine.tokenizer.decode(ids) for ids in kept]
    assert decoded[0] == "abc\n" and kept[0][-1] == engine.tokenizer.end_of_text_id, "whole, so its end counts"
    assert len(decoded) in (4, 5) and all(text.startswith(piece) for text, piece in zip(texts[2:], decoded[1:], strict=False))
    assert all(len(text) <= 10 for text in decoded) and sum(map(len, decoded)) >= 25


def test_a_run_is_measured_on_its_own_validation_documents(
    engine: Engine, trained_run: TrainedRun, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both phases, source by source; none of them was trained on; this machine's scripts beside them where it has any."""
    manifest = json.loads((trained_run.folder.data("code") / "manifest.json").read_text())
    expected = manifest["sources"][0]["counts"]["validation"]
    notes: list[str] = []
    (documents,) = validation_texts(context_of(engine), "code", notes).values()
    assert notes == [] and len(documents) == expected["documents"]
    assert sum(map(len, documents)) == expected["tokens"], "all of a small source, with the ends of its documents"
    trained = {tuple(ids) for ids in _documents(trained_run.folder, "train")}
    assert not trained & {tuple(ids) for ids in documents}
    monkeypatch.setattr(perplexity, "system_folders", lambda: [machine])
    result = measure_perplexity(context_of(engine))
    for name in ("language, english", "code, bash", "this machine's scripts"):
        loss, bits = result.figures[f"{name}: loss"], result.figures[f"{name}: bits per byte"]
        assert 1 < loss.value < math.log(448) and loss.low <= loss.value <= loss.high and 0 < bits.value < 8
    assert result.figures["code, bash: loss"].samples == expected["tokens"]
    assert "this machine's scripts: 8 drawn from 10 with a bash or sh line at the top" in result.notes
    assert any("few documents" in note and "code, bash" in note for note in result.notes)


def _documents(folder: RunFolder, split: str) -> list[list[int]]:
    tokens = np.fromfile(folder.data("code") / f"bash-{split}.bin", "<u2")
    ends = np.fromfile(folder.data("code") / f"bash-{split}.idx", "<u8").astype(int)
    return [part.tolist() for part in np.split(tokens, ends[:-1])]


def test_a_checkpoint_out_of_its_run_is_measured_on_bundled_text(
    trained_copy: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """English that the usual split holds out, and held-out tasks; a note says so."""
    monkeypatch.setattr(held_out, "SOURCE_BYTES", 3000)
    shutil.copy(trained_copy.checkpoint("code", "best"), tmp_path / "alone.safetensors")
    engine = load(tmp_path / "alone.safetensors")
    assert run_of(engine) is None
    context = Context(engine, load_tasks(DATA / "bash")[::40], EvaluationSettings())
    notes: list[str] = []
    texts = validation_texts(context, "language", notes) | validation_texts(context, "code", notes)
    assert set(texts) == {"bundled English", "bundled bash"} and all(texts.values())
    assert len(notes) == 2 and all("held out by the usual split" in note for note in notes)
    trained = {tuple(ids) for ids in _documents(trained_copy, "train")}
    assert not trained & {tuple(ids) for documents in texts.values() for ids in documents}


def test_data_of_another_tokenizer_or_prepared_anew_is_told(trained_copy: RunFolder) -> None:
    """Documents that changed sides since training would flatter."""
    engine = load(trained_copy.path)
    settings = PhaseConfig.model_validate(phase_values("english", validation_fraction=0.3))
    prepare_phase(trained_copy.data("language"), settings, tiny_tokenizer(trained_copy), 3)
    notes: list[str] = []
    assert set(validation_texts(context_of(engine), "language", notes)) == {"english"}
    assert "prepared anew after training" in notes[0]
    manifest = trained_copy.data("language") / "manifest.json"
    values = json.loads(manifest.read_text().replace(engine.tokenizer.hash, "0" * 16))
    manifest.write_text(json.dumps(values | {"checksum": manifest_checksum(values)}))
    notes = []
    assert set(validation_texts(context_of(engine), "language", notes)) == {"bundled English"}
    assert "belong to tokenizer 0000" in notes[0] and "bundled English" in notes[1]


SCRIPT = """#!/bin/sh
# number {0}
for f in *.log; do
  gzip -- "$f" && echo "packed $f" >> /var/log/pack.{0}
done
exit 0
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder as a machine might have it: good scripts among everything else."""
    folder = tmp_path / "bin"
    (folder / "inner").mkdir(parents=True)
    for number in range(6):
        (folder / f"script{number}").write_text(SCRIPT.format(number))
    (folder / "inner" / "with-suffix.sh").write_text(SCRIPT.format(7).replace("/bin/sh", "/usr/bin/env -S bash"))
    (folder / "copy").write_text(SCRIPT.format(0))
    (folder / "link").symlink_to(folder / "script1")
    (folder / "dangling").symlink_to(folder / "nothing")
    (folder / "latin1").write_bytes(SCRIPT.format("\u00e9").encode("latin-1"))
    (folder / "blank").write_text("#!/bin/sh" + "\n" * 200)
    (folder / "empty").touch()
    (folder / "tiny").write_text("#!/bin/sh\n:\n")
    (folder / "huge").write_text(SCRIPT.format(1) * 1000)
    (folder / "program.py").write_text(SCRIPT.format(2))
    (folder / "perl").write_text(SCRIPT.format(3).replace("/bin/sh", "/usr/bin/perl"))
    (folder / "shfmt").write_text(SCRIPT.format(4).replace("/bin/sh", "/usr/bin/shfmt"))
    os.mkfifo(folder / "pipe")
    return folder


def test_scripts_of_the_machine_are_found_and_nothing_else(machine: Path) -> None:
    """By their first line; each file once under whatever name, the same sample for the same seed; a pipe is not opened."""
    found = find_scripts([machine, machine / "inner", machine.parent / "not-there"], seed=1)
    names = sorted(file.name for file in found)
    expected = ["blank", "copy", "latin1", *(f"script{number}" for number in range(6)), "with-suffix.sh"]
    assert [name for name in names if name not in ("link", "script1")] == [name for name in expected if name != "script1"]
    assert len(names) == len(expected), "the link or what it points to, not both"
    assert found == find_scripts([machine], seed=1) != find_scripts([machine], seed=2)


def test_scripts_that_are_no_utf8_text_or_equal_are_left_out(machine: Path) -> None:
    """What is left out for its bytes is named."""
    unreadable: list[Path] = []
    texts = list(read_scripts(sorted(find_scripts([machine], 0)), unreadable))
    assert [file.name for file in unreadable] == ["latin1"]
    assert len(texts) == len(set(texts)) == 8, "six, one in a folder below, one of blank lines, and the copy not again"
    assert all(text.startswith("#!/") for text in texts)


def test_scripts_that_were_trained_on_are_left_out_and_a_bare_machine_is_told(
    engine: Engine, trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person's own scripts lie on PATH, too, and may be the training data."""
    trained = engine.tokenizer.decode(max(_documents(trained_run.folder, "train"), key=len))
    assert trained.startswith("#!/bin/bash")
    (tmp_path / "known").write_text(trained)
    (tmp_path / "new").write_text(SCRIPT.format(1))
    monkeypatch.setattr(perplexity, "system_folders", lambda: [tmp_path])
    result = measure_perplexity(context_of(engine))
    assert "1 scripts of this machine are left out: the model was trained on them" in result.notes
    assert result.figures["this machine's scripts: bits per byte"].samples == len(SCRIPT.format(1))
    (tmp_path / "known").unlink()
    (tmp_path / "new").unlink()
    result = measure_perplexity(context_of(engine))
    assert "this machine's scripts: loss" not in result.figures
    assert any(note.startswith("this machine's scripts: 0 drawn from 0") for note in result.notes)


def test_folders_are_those_of_path_and_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty entries of PATH do not mean the working folder here."""
    monkeypatch.setenv("PATH", f"{tmp_path}::{tmp_path}")
    folders = machine_scripts.system_folders()
    assert folders[0] == tmp_path.resolve() and folders.count(tmp_path.resolve()) == 1
    assert Path.cwd() not in folders and len(folders) >= 3

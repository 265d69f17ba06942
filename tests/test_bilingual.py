"""English before and after the code phase: the measure tells English from bash, and the comparison compares the right models."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_run import TrainedRun

from mlx_codegen.config import SourceConfig
from mlx_codegen.data.sources import read_documents
from mlx_codegen.evaluation import bilingual
from mlx_codegen.evaluation.bilingual import (
    OPENINGS,
    before_and_after,
    continuation,
    english_figures,
    loss_figures,
    measure_bilingual,
)
from mlx_codegen.evaluation.context import Context, Settings
from mlx_codegen.evaluation.english import count_known, is_english, known_words, looks_like_bash
from mlx_codegen.generation.engine import Completion, Engine, load
from mlx_codegen.hub.export import export_model
from mlx_codegen.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
STORY = "They ran down to the river, where a boat was waiting. 'I didn't see you,' said the old man; Tom's dog barked."
SCRIPT = """#!/bin/bash
set -euo pipefail
for file in *.txt; do
  echo "$file"
done
"""


@pytest.mark.parametrize(
    "line",
    ["# Count the files", 'echo "$HOME"', "ls -la | wc", "done", "  fi", "cat /etc/hosts", "for x in a b; do", "rm *.o", "a && b",
     "tar --list", "x=1", "grep -c needle hay", "then", "cd ~/src", "ls > out"],
)  # fmt: skip
def test_lines_of_scripts_look_like_bash(line: str) -> None:
    """Each by a sign, an option, a path or a keyword alone on its line."""
    assert looks_like_bash(line)


@pytest.mark.parametrize(
    "line", [*STORY.split(". "), "He was done; then he slept.", "two or three--no more", "- a list", "1/2 cup"]
)
def test_lines_of_stories_do_not(line: str) -> None:
    """Semicolons, dashes and the words done and then are English, too."""
    assert not looks_like_bash(line)


def test_english_is_mostly_known_words() -> None:
    """Names do not count, made-up words count against it, contractions come apart; of a few words nothing can be said."""
    assert is_english(STORY) and not is_english(SCRIPT)
    assert count_known(["Didn't", "Zorblax", "see", "tea-house,", "isn't", "he?"]) == (4, 4)
    assert count_known(["the", "flimber", "gorped", "a", "house"]) == (3, 5)
    assert not is_english("the flimber gorped a house") and is_english("the farmer bought a house")
    assert not is_english("the farmer bought") and not is_english("")
    assert not is_english("the farmer bought a house\nrm -rf x"), "one line of bash is enough"
    assert {"once", "river", "because", "they"} <= known_words() and "" not in known_words()


def test_bundled_texts_fall_on_their_sides() -> None:
    """Scripts and commands without their requests are not taken for English; stories are, where they quote no command."""
    taken = 0
    for text in read_documents(SourceConfig(name="bash", bundled="bash", max_documents=500)):
        taken += is_english("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    assert taken <= 2
    stories = list(read_documents(SourceConfig(name="english", bundled="english", max_documents=200)))
    plain = [text for text in stories if not any(looks_like_bash(line) for line in text.splitlines())]
    assert len(plain) > 100 and all(is_english(text) for text in plain)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data here")
@pytest.mark.parametrize(("name", "least", "most"), [("tinystories", 0.95, 1), ("childrens_books", 0.9, 1), ("tldr", 0, 0.01)])
def test_real_texts_fall_on_their_sides(name: str, least: float, most: float) -> None:
    """Texts that the word list was not made from."""
    column = "command" if name == "tldr" else "text"
    source = SourceConfig(name=name, path=str(SHARED_DATA / f"{name}.jsonl"), text_column=column, max_documents=500)
    beginnings = [text[:240].rpartition(" ")[0] if name != "tldr" else text for text in read_documents(source)]
    assert least <= np.mean([is_english(text) for text in beginnings]) <= most


def completion(opening: str, answer: str, ended: bool = True) -> Completion:
    return Completion(opening, answer, 10, ended, -1.0)


def test_only_whole_words_of_the_continuation_count() -> None:
    """It may go on with the opening's last word, and the limit may cut its own last word."""
    assert continuation(completion("He ran to the", "n a house came.")) == " a house came."
    assert continuation(completion("He ran to the", " house and the squir", ended=False)) == " house and the "
    assert continuation(completion("He ran to the", "")) == "" == continuation(completion("He ran to the", "se", ended=False))


def test_models_without_english_score_near_zero() -> None:
    """Silence, an echo in bash, its opening as a comment: none of them is English; a story is."""
    answers = {
        "nothing": "",
        "done": ' "$x"\necho done\n',
        "comment": "\n# Once upon a time there was a little girl\n",
        "story": " lived in a small house with a garden. She was happy.",
    }
    shares = {}
    for name, answer in answers.items():
        figures = english_figures({opening: [completion(opening, answer)] * 2 for opening in OPENINGS})
        shares[name] = figures["continuations in English"].value
        assert figures["continuations in English"].samples == 2 * len(OPENINGS)
        assert figures["continuations with bash"].value == (name in ("done", "comment"))
    assert shares == {"nothing": 0, "done": 0, "comment": 0, "story": 1}


def test_openings_are_english_and_differ() -> None:
    """By the measure that judges what follows them."""
    assert len(set(OPENINGS)) == len(OPENINGS) == 20
    assert all(is_english(opening) and opening == opening.strip() for opening in OPENINGS)


def test_change_of_loss_is_paired() -> None:
    """Documents differ by nats, the models by a tenth: each alone has a wide interval, their difference a narrow one."""
    before = [np.full(10, float(level)) for level in range(1, 9)]
    figures = loss_figures([[number] for number in range(8)], {"before": before, "after": [values + 0.1 for values in before]})
    change, after = figures["change of loss"], figures["loss, after"]
    assert (change.value, change.low, change.high) == pytest.approx((0.1, 0.1, 0.1)) and after.high - after.low > 1
    assert set(loss_figures([[1]], {"after": before[:1]})) == {"loss, after"}


def test_a_run_is_compared_with_its_own_language_phase(trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two models are two: the loss moves, and each model's continuations are its own, the same again each time."""
    monkeypatch.setattr(bilingual, "OPENINGS", OPENINGS[:3])
    monkeypatch.setattr(bilingual, "CONTINUATION_TOKENS", 12)
    told: list[tuple[str, int, int]] = []
    settings = Settings(samples=2, seed=4)
    context = Context(load(trained_run.folder.path), [], settings, lambda *now: told.append(now))
    result = measure_bilingual(context)
    before, after = result.figures["english: loss, before"], result.figures["english: loss, after"]
    assert result.figures["english: change of loss"].value == pytest.approx(after.value - before.value)
    assert before.value != after.value and before.samples == after.samples > 100
    assert result.figures["continuations in English, after"].samples == 6
    assert [list(example) for example in result.examples] == [["opening", "before", "after"]] * 3
    assert any(example["before"] != example["after"] for example in result.examples)
    assert measure_bilingual(context).examples == result.examples
    assert ("continuing before", 6, 6) in told and ("continuing after", 6, 6) in told
    language = load(trained_run.folder.checkpoint("language", "best"))
    alone = measure_bilingual(Context(language, [], settings))
    assert alone.figures["english: loss, before"] == before and "english: loss, after" not in alone.figures
    assert [example["before"] for example in alone.examples] == [example["before"] for example in result.examples]
    assert alone.notes[0] == "the model ends with the language phase: there is nothing after it"


def compared(engine: Engine, *words: str) -> list[str]:
    """The models that are compared; the one note must hold these words."""
    notes: list[str] = []
    found = before_and_after(engine, notes)
    assert len(notes) == 1 and all(word in notes[0] for word in words), notes
    return list(found)


def test_without_the_language_checkpoint_the_figures_stand_alone(trained_copy: RunFolder, tmp_path: Path) -> None:
    """An export, a lone file, a run whose language checkpoint is damaged or gone: a note each."""
    export_model(trained_copy.checkpoint("code", "best"), tmp_path / "exported")
    assert compared(load(tmp_path / "exported"), "not in the folder of its run") == ["after"]
    engine, best = load(trained_copy.path), trained_copy.checkpoint("language", "best")
    shutil.copy(trained_copy.checkpoint("code", "best"), tmp_path / "lone.safetensors")
    assert compared(load(tmp_path / "lone.safetensors"), "not in the folder of its run") == ["after"]
    best.write_bytes(best.read_bytes()[:-100])
    assert compared(engine, "left out", "best.safetensors") == ["after"]
    best.unlink()
    assert compared(engine, "there is no language/best.safetensors") == ["after"]


def test_another_tokenizer_means_another_run(trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses by different tokens cannot be subtracted."""
    other: Any = SimpleNamespace(tokenizer=SimpleNamespace(hash="another"))
    monkeypatch.setattr(bilingual, "load", lambda path: other)
    assert compared(load(trained_run.folder.path), "another tokenizer") == ["after"]


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python scripts/<name>.py ...` as a person runs it, in a pipe."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_scripts_of_these_names_measure_and_explain(trained_copy: RunFolder, tmp_path: Path) -> None:
    """The first shows continuations side by side and leaves the run's own report alone; the second measures three kinds of
    text and those that are given; a mistake is one line."""
    (trained_copy.path / "report.json").write_text("of all parts")
    done = script("test_bilingual", str(trained_copy.path), "--samples", "1", "--show", "2")
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("opening", "before", "after", "change of loss", "Once upon a"))
    assert (trained_copy.path / "report.json").read_text() == "of all parts"
    assert (trained_copy.path / "bilingual" / "report.json").exists()
    (tmp_path / "python.py").write_text("def double(x):\n    return 2 * x\n")
    given = ["--data", str(tmp_path / "python.py"), "--max-documents", "20"]
    done = script("test_tokenizer_quality", str(trained_copy.path), *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:4] == ["english", "scripts", "commands", "python"] and "longest: " in done.stdout
    wrong = script("test_bilingual", "nowhere")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1) and wrong.stderr.startswith("error: ")

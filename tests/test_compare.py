"""Comparing models: what moved is told, what is noise is not called a move, and reports are found where they lie."""

import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_codegen.cli.main import run as command_line
from mlx_codegen.evaluation.compare import StoredReport, as_json, compare, method, short_names
from mlx_codegen.evaluation.context import Settings
from mlx_codegen.evaluation.figures import PartResult, mean_of, prompt_key
from mlx_codegen.evaluation.report import Report
from mlx_codegen.evaluation.report_files import find_report, own_folder, read_report, write_report
from mlx_codegen.training.run_folder import RunFolder

PROMPTS = [f"prompt {number}" for number in range(200)]


def answers(share: float, seed: int = 0, hard: float = 0.0, samples: int = 4) -> dict[str, list[float]]:
    """Right and wrong answers: no model answers the `hard` first share of the prompts, the rest is right in `share` of all."""
    rng = random.Random(seed)
    easy = PROMPTS[round(hard * len(PROMPTS)) :]
    return {prompt_key(prompt): [float(prompt in easy and rng.random() < share) for _ in range(samples)] for prompt in PROMPTS}


def report(values: dict[str, list[float]] | None = None, **settings: Any) -> Report:
    part = PartResult("syntax", "Scripts that parse")
    part.figures["valid bash"] = mean_of(answers(0.5) if values is None else values, target=0.85)
    part.figures["mean length"] = mean_of({key: [20.0] for key in answers(0.5)}, "tokens")
    return Report("runs/x/code/best.safetensors", Settings(**settings), [part], tokenizer="abc")


def stored(tmp_path: Path, *arguments: Any, **settings: Any) -> StoredReport:
    write_report(report(*arguments, **settings), tmp_path)
    return read_report(tmp_path / "report.json")


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    """With every prompt's values, on which the comparison rests; what could not be had stays unknown."""
    written = report(seed=7)
    written.parts[0].figures["nothing"] = mean_of([])
    write_report(written, tmp_path)
    found = read_report(tmp_path / "report.json")
    assert found.parts[0].figures["valid bash"] == written.parts[0].figures["valid bash"]
    assert len(found.parts[0].figures["valid bash"].prompts) == len(PROMPTS)
    assert math.isnan(found.parts[0].figures["nothing"].value)
    assert found.settings["seed"] == 7 and found.tokenizer == "abc"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "report.md", "report.png"]


def test_a_report_from_before_top_k_was_a_setting_compares(tmp_path: Path) -> None:
    """What it drew from is known: nothing else was possible then. Other settings are told."""
    now, wider = stored(tmp_path / "now"), stored(tmp_path / "wider", top_k=0, top_p=1.0)
    values = json.loads((tmp_path / "now" / "report.json").read_text())
    del values["settings"]["top_k"], values["settings"]["top_p"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    assert compare(["now", "old"], [now, read_report(tmp_path / "old.json")]).notes == []
    assert [note.split(":")[0] for note in compare(["now", "wider"], [now, wider]).notes] == [
        "measured with another top k",
        "measured with another top p",
    ]


def test_equal_reports_have_not_moved(tmp_path: Path) -> None:
    same = stored(tmp_path)
    comparison = compare(["a", "b"], [same, same])
    assert [row.moved for row in comparison.rows] == [False, False] and comparison.notes == []
    assert comparison.rows[0].changes[1] is not None and comparison.rows[0].changes[1].difference == 0


@pytest.mark.parametrize(("share", "moved"), [(0.5, False), (0.53, False), (0.65, True), (0.35, True)])
def test_only_differences_above_noise_moved(tmp_path: Path, share: float, moved: bool) -> None:
    """800 answers of two models: a true difference of 15 points is found, one of 3 is not claimed."""
    comparison = compare(["a", "b"], [stored(tmp_path), stored(tmp_path, answers(share, seed=1))])
    (row, _) = comparison.rows
    assert row.moved is moved
    change = row.changes[1]
    assert change is not None and change.low <= change.difference <= change.high and change.prompts == len(PROMPTS)
    assert not moved or (change.difference > 0) is (share > 0.5)


def test_chance_alone_moves_about_one_figure_in_twenty(tmp_path: Path) -> None:
    """The interval is worth its name: equal models, drawn anew 60 times, are rarely told apart."""
    moved = 0
    for seed in range(60):
        first, second = (mean_of(answers(0.4, seed=2 * seed + side, hard=0.3, samples=2)) for side in (0, 1))
        parts = [PartResult("p", "P", {"f": figure}) for figure in (first, second)]
        moved += compare(["a", "b"], [StoredReport("m", {}, [part]) for part in parts]).rows[0].moved
    assert moved <= 9, moved


def test_common_prompts_make_a_comparison_sharper(tmp_path: Path) -> None:
    """A gain on every 20th prompt, beside which the prompts' own difficulty is large: seen prompt by prompt, lost without."""
    before = {key: [float(number % 2)] for number, key in enumerate(answers(0.5))}
    after = {key: [1.0] if number % 20 == 0 else values for number, (key, values) in enumerate(before.items())}
    paired = compare(["a", "b"], [stored(tmp_path, before), stored(tmp_path, after)]).rows[0]
    other_prompts = {prompt_key(key): values for key, values in after.items()}
    independent = compare(["a", "b"], [stored(tmp_path, before), stored(tmp_path, other_prompts)]).rows[0]
    assert paired.moved and not independent.moved
    assert paired.changes[1] is not None and independent.changes[1] is not None
    assert paired.changes[1].prompts == len(PROMPTS) and independent.changes[1].prompts == 0
    assert paired.changes[1].difference == pytest.approx(independent.changes[1].difference)


def test_a_handful_of_samples_proves_nothing(tmp_path: Path) -> None:
    """Three prompts right against three wrong have an interval without width: too few, not moved."""
    few = [stored(tmp_path, {"a": [value], "b": [value], "c": [value]}) for value in (0.0, 1.0)]
    change = compare(["a", "b"], few).rows[0].changes[1]
    assert change is not None and change.verdict == "too few samples" and not change.moved


def test_other_settings_parts_and_tokenizers_are_pointed_out(tmp_path: Path) -> None:
    """Such figures answer other questions; lengths in other tokens are not subtracted at all."""
    first, second = stored(tmp_path), stored(tmp_path, temperature=0.2, jobs=7)
    second.tokenizer = "other"
    second.parts.append(PartResult("probes", "Probes", {"f": mean_of([[1.0]])}))
    second.parts[0].figures["pass@9"] = mean_of([[1.0]])
    comparison = compare(["a", "b"], [first, second])
    assert comparison.notes == [
        "measured with another temperature: a 0.8, b 0.2",
        "syntax, only b has: pass@9",
        "probes was not measured: a",
        "the tokenizers differ: what is counted in tokens is not compared; bits per byte are",
    ]
    assert {row.name: row.changes[1] is None for row in comparison.rows} == {"valid bash": False, "mean length": True}


def test_the_caption_says_how_it_was_told(tmp_path: Path) -> None:
    """Paired or not, and how many would seem to move by chance."""
    comparison = compare(["a", "b"], [stored(tmp_path), stored(tmp_path)])
    assert "prompt by prompt" in method(comparison) and "Of 2 differences" in method(comparison)
    values = json.loads(as_json(comparison))
    assert values["rows"][0]["changes"][1]["verdict"] == "within noise" and "prompts" not in values["rows"][0]["figures"][0]


def test_names_are_short_and_different() -> None:
    assert short_names([Path("runs/nano"), Path("runs/tiny/report.json")]) == ["nano", "tiny"]
    files = [Path("runs/nano/code/best.safetensors"), Path("runs/nano/code/last.safetensors")]
    assert short_names(files) == ["best", "last"]
    assert short_names([Path("runs/a/code/best.safetensors"), Path("runs/b/code/best.safetensors")]) == [
        "a/code/best",
        "b/code/best",
    ]
    assert short_names([Path("a"), Path("a")]) == ["a (1)", "a (2)"]


def test_a_checkpoint_gets_its_own_report_and_no_other(trained_copy: RunFolder) -> None:
    """Two checkpoints share a folder: what was measured on one must not be shown for the other."""
    best, last = trained_copy.checkpoint("code", "best"), trained_copy.checkpoint("code", "last")
    assert find_report(trained_copy.path) is None and find_report(last) is None
    written = report()
    written.model = str(best)
    write_report(written, best.parent)
    assert find_report(best) == best.parent / "report.json" and find_report(last) is None
    written.model = str(last)
    write_report(written, own_folder(last))
    assert find_report(last) == last.parent / "last-report" / "report.json"
    assert find_report(best) == best.parent / "report.json"
    moved = trained_copy.path.rename(trained_copy.path.with_name("moved"))
    assert find_report(moved / "code" / "best.safetensors") == moved / "code" / "report.json"


def test_a_model_trained_on_after_its_report_is_told(trained_copy: RunFolder) -> None:
    """Or yesterday's figures would be taken for today's."""
    best = trained_copy.checkpoint("code", "best")
    written = report()
    written.model = str(best)
    write_report(written, best.parent)
    assert not read_report(best.parent / "report.json").outdated
    later = best.stat().st_mtime + 100_000
    os.utime(best, (later, later))
    found = read_report(best.parent / "report.json")
    assert found.outdated and "b was trained on after it was measured" in compare(["a", "b"], [found, found]).notes[-1]


def two_reports(folder: Path) -> list[str]:
    """Folders a and b with reports that differ."""
    for name, share in (("a", 0.5), ("b", 0.7)):
        write_report(report(answers(share, seed=3)), folder / name)
    return [str(folder / "a"), str(folder / "b")]


def test_compare_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The answer is the last line; a picture on request; JSON for programs."""
    paths = two_reports(tmp_path)
    assert command_line(["compare", *paths, "--png", str(tmp_path / "x.png")]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-2].startswith("b against a: 1 of 2 figures moved: valid bash +") and lines[-1].endswith("x.png")
    assert any("▲" in line and "valid bash" in line for line in lines)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert command_line(["compare", *paths, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["names"] == ["a", "b"]


def test_narrow_terminals_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In 40 columns figures stand below each other, and no line of them is longer."""
    for name, value in {"COLUMNS": "40", "TTY_COMPATIBLE": "1", "FORCE_COLOR": "1", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    assert command_line(["compare", *two_reports(tmp_path)]) == 0
    text = capfd.readouterr().out
    values = text[: text.index("valid bash, aim 85%")]
    assert "…" not in values and max(map(len, values.splitlines())) <= 40, text
    assert "valid bash" in values and " a\n" in values and " b\n" in values and "▲" in values


def test_bad_input_is_one_line(trained_copy: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Status 2, and what to do; nothing is written."""
    paths = two_reports(tmp_path)
    (tmp_path / "bad.json").write_text('{"parts": 3}')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    good = (Path(paths[0]) / "report.json").read_text()
    (tmp_path / "aim.json").write_text(good.replace('"target": 0.85', '"target": "high"'))
    (tmp_path / "huge.json").write_text(good.replace('"value": ', '"value": 1' + "0" * 400 + ', "was": '))
    last = trained_copy.checkpoint("code", "last")
    for arguments, words in (
        ([paths[0]], "two models or more"),
        ([paths[0], str(tmp_path / "nowhere")], "is not there"),
        ([paths[0], str(tmp_path / "bad.json")], "no report of mlx-codegen evaluate"),
        *(([paths[0], str(tmp_path / f"{name}.json")], "no report of mlx") for name in ("deep", "aim", "huge")),
        ([paths[0], str(trained_copy.path)], f"mlx-codegen evaluate {trained_copy.path}, or add --evaluate"),
        ([paths[0], str(last)], f"mlx-codegen evaluate {last} --output {last.parent / 'last-report'}, or"),
        ([*paths, "--png", str(tmp_path / "x.jpg")], "ends in .png"),
        ([*paths, "--png", str(tmp_path / "no" / "x.png")], "folder that exists"),
    ):
        assert command_line(["compare", *arguments]) == 2
        error = capfd.readouterr().err
        assert words in error and len(error.splitlines()) == 1, error
    assert not (trained_copy.path / "report.json").exists()


def test_evaluate_option_measures_what_is_missing_alike(trained_copy: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    """With the settings of the report that is there: other settings would be another question."""
    best, last = trained_copy.checkpoint("code", "best"), trained_copy.checkpoint("code", "last")
    arguments = ["--only", "syntax", "--max-tokens", "3", "--samples", "1", "--seen", "0", "--unseen", "1", "--seed", "9"]
    assert command_line(["evaluate", str(best), *arguments]) == 0
    assert command_line(["compare", str(best), str(last), "--evaluate"]) == 0
    found = read_report(last.parent / "last-report" / "report.json")
    assert (found.settings["max_tokens"], found.settings["seed"]) == (3, 9) and [part.name for part in found.parts] == ["syntax"]
    assert "measured with another" not in capfd.readouterr().out
    shutil.rmtree(last.parent / "last-report")

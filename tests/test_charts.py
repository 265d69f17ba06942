"""Pictures of reports: every figure is in them, nothing is half written, and without matplotlib the rest goes on."""

import builtins
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure as Picture

from mlx_codegen.evaluation.charts import comparison_png, report_png
from mlx_codegen.evaluation.compare import StoredReport, compare
from mlx_codegen.evaluation.context import Settings
from mlx_codegen.evaluation.figures import Figure, PartResult, mean_of
from mlx_codegen.evaluation.report import Report
from mlx_codegen.evaluation.report_files import write_report

ROOT = Path(__file__).parents[1]


def report() -> Report:
    syntax = PartResult("syntax", "Scripts that parse")
    syntax.figures["valid bash"] = Figure(0.764, 0.7, 0.82, 200, target=0.85)
    syntax.figures["ends by itself"] = Figure(0.5, 0.4, 0.6, 200)
    syntax.figures["mean length"] = Figure(55.2, 50, 60, 200, "tokens")
    syntax.figures["change of length"] = Figure(-5.0, -9, -1, 200, "tokens")
    syntax.figures["nobody asked"] = mean_of([])
    text = PartResult("perplexity", "Unseen text")
    text.figures["bash: loss"] = Figure(1.7, 1.6, 1.8, 900, "nats/token")
    text.figures["bash: perplexity"] = Figure(5.5, 5.0, 6.0, 900, "")
    text.figures["bash: bits per byte"] = Figure(1.1, 1.0, 1.2, 900, "bits/byte")
    return Report("runs/x/code/best.safetensors", Settings(), [syntax, text])


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[Picture]:
    """What is drawn while a test runs."""
    drawn: list[Picture] = []
    save = Picture.savefig

    def keep(self: Picture, *arguments: Any, **keywords: Any) -> None:
        drawn.append(self)
        save(self, *arguments, **keywords)

    monkeypatch.setattr(Picture, "savefig", keep)
    return drawn


def labels(picture: Picture) -> list[str]:
    return [label.get_text() for axes in picture.axes for label in axes.get_yticklabels()]


def test_a_bar_for_every_figure_with_interval_and_aim(pictures: list[Picture]) -> None:
    """Rates on one scale from 0 to 100, other units in panels of their own; loss and perplexity repeat bits per byte."""
    png = report_png(report())
    assert png.startswith(b"\x89PNG")
    (picture,) = pictures
    assert labels(picture) == ["valid bash", "ends by itself", "mean length", "change of length", "bash: bits per byte"]
    rates = picture.axes[0]
    assert [bar.get_width() for bar in rates.patches] == [pytest.approx(76.4), pytest.approx(50)]  # type: ignore[attr-defined]
    assert rates.get_xlim() == (0, 100)
    assert picture.axes[1].get_xlim()[0] < -9, "what is below zero is in the picture"
    (aim,) = [line for line in rates.lines if list(line.get_xdata()) == [85, 85]]
    assert min(aim.get_ydata()) < 0 < max(aim.get_ydata()), "the aim stands at its own figure"
    (whiskers,) = list(rates.collections)
    ends = [[round(float(x), 1) for x in segment[:, 0]] for segment in whiskers.get_segments()]  # type: ignore[attr-defined]
    assert ends == [[70.0, 82.0], [40.0, 60.0]]
    texts = [text.get_text() for axes in picture.axes for text in axes.texts]
    assert texts == ["76.4%", "50.0%", "55.2 tokens", "-5.00 tokens", "1.10 bits/byte"]


def test_models_beside_each_other_with_what_moved(pictures: list[Picture]) -> None:
    """Each in its colour, named once; a figure that one model lacks leaves a gap and no zero."""
    parts = report().parts
    better = [PartResult("syntax", "Scripts that parse", {"valid bash": Figure(0.95, 0.93, 0.97, 200, target=0.85)})]
    models = [StoredReport("a", {}, parts), StoredReport("b", {}, better), StoredReport("c", {}, parts)]
    comparison_png(compare(["a", "b", "c"], models))
    (picture,) = pictures
    assert [text.get_text() for text in picture.legends[0].get_texts()] == ["a", "b", "c"]
    texts = [text.get_text() for text in picture.axes[0].texts]
    assert texts == ["76.4%", "50.0%", "95.0% ▲", "76.4%", "50.0%"]


def test_the_picture_grows_with_its_figures_and_stays_small(pictures: list[Picture]) -> None:
    """A report without figures is a picture, too; one with sixty is higher and not wider."""
    sizes = []
    for count in (0, 3, 60):
        part = PartResult("p", "P", {f"figure {number}": Figure(0.5, 0.4, 0.6, 10) for number in range(count)})
        sizes.append(struct.unpack(">II", report_png(Report("m", Settings(), [part]))[16:24]))
    assert sizes[0][0] == sizes[1][0] == sizes[2][0] and sizes[0][1] < sizes[1][1] < sizes[2][1]


def test_without_matplotlib_the_report_is_there_and_a_line_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older picture goes: it would show other figures."""
    assert write_report(report(), tmp_path) is None
    assert (tmp_path / "report.png").exists()
    real = builtins.__import__

    def fail(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", fail)
    missing = write_report(report(), tmp_path)
    assert missing is not None and "pip install 'mlx-codegen[charts]'" in missing and "\n" not in missing
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_reports_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while the JSON is written leaves the older one, and no scraps."""
    write_report(report(), tmp_path)
    before = (tmp_path / "report.json").read_bytes()
    sync = os.fsync
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(Report("another", Settings(), []), tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_matplotlib_is_loaded_only_to_draw() -> None:
    """It takes longer to import than a comparison takes."""
    code = "import sys\nfrom mlx_codegen.evaluation import report_files, charts\nprint('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"

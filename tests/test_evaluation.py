"""The figures of the evaluation: computed right, and near zero for models that do nothing."""

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import TrainedRun

import mlx_codegen
from mlx_codegen.cli.main import run as command_line
from mlx_codegen.data.tasks import Rendering, Task, load_tasks, render_check
from mlx_codegen.evaluation.answers import measure_answers
from mlx_codegen.evaluation.commands import add_pair_figures
from mlx_codegen.evaluation.context import Context, Settings
from mlx_codegen.evaluation.figures import Figure, PartResult, mean_of, pass_at_k
from mlx_codegen.evaluation.functional import functional_figures, run_samples
from mlx_codegen.evaluation.report import PARTS, Report, as_json, as_markdown
from mlx_codegen.evaluation.samples import Sample, draw_samples, held_out_renderings
from mlx_codegen.evaluation.sandbox import why_unavailable
from mlx_codegen.evaluation.syntax import checks_arguments, is_shell, repeated_share, syntax_figures
from mlx_codegen.evaluation.training_texts import TrainingTexts
from mlx_codegen.generation.checked import Candidate, Chosen
from mlx_codegen.generation.engine import Completion, Engine
from mlx_codegen.generation.prompts import prompt_text

FOLDER = Path(__file__).parents[1] / "data" / "bash"
TASKS = load_tasks(FOLDER)
BY_NAME = {task.name: task for task in TASKS}
needs_sandbox = pytest.mark.skipif(why_unavailable() is not None, reason=f"no sandbox: {why_unavailable()}")
UNSEEN = {task.name for task in TASKS if task.held_out}


@given(st.integers(1, 7), st.data())
@settings(max_examples=80, deadline=None)
def test_pass_at_k_is_the_chance_of_a_draw_with_a_good_one(samples: int, data: st.DataObject) -> None:
    """Against counting all draws of k from n without replacement."""
    passed, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = [set(draw) for draw in product(range(samples), repeat=k) if len(set(draw)) == k]
    expected = sum(any(number < passed for number in draw) for draw in draws) / len(draws)
    assert pass_at_k(samples, passed, k) == pytest.approx(expected)


def test_pass_at_more_than_there_are_samples_is_refused() -> None:
    """A figure from nothing would flatter."""
    with pytest.raises(ValueError, match="pass@5 needs at least 5 samples"):
        pass_at_k(4, 2, 5)


def test_interval_holds_the_mean_and_narrows_with_prompts_not_with_samples() -> None:
    """Copies of a prompt's answer are no new evidence."""
    few = mean_of([[1.0], [0.0]] * 10)
    copies = mean_of([[1.0] * 8, [0.0] * 8] * 10)
    many = mean_of([[1.0], [0.0]] * 200)
    assert few.low <= few.value == 0.5 <= few.high and (few.samples, copies.samples) == (20, 160)
    assert copies.high - copies.low == pytest.approx(few.high - few.low, abs=0.02)
    assert many.high - many.low < 0.4 * (few.high - few.low)
    assert mean_of([[1.0], [0.0]] * 10) == few, "the same figures give the same interval"
    none, every = mean_of([[0.0]] * 20), mean_of([[1.0]] * 20)
    assert none.low == 0 and none.high == pytest.approx(0.161, abs=1e-3), "0 of 20 does not mean never (Wilson)"
    assert every.high == 1 and every.low == pytest.approx(0.839, abs=1e-3)
    assert math.isnan(mean_of([]).value) and mean_of([[], []]).samples == 0


def test_repetition() -> None:
    """0 for new words throughout, near 1 for one phrase again and again."""
    assert repeated_share("a b c d e f g h") == 0.0 == repeated_share("a b") == repeated_share("")
    assert repeated_share("echo a b c " * 50) > 0.9


def test_checked_arguments() -> None:
    """Taking an argument without a word about its absence is the fault; constants need no check."""
    assert checks_arguments('rm -r "/srv/old"', [])
    assert not checks_arguments('rm -r "$1"', [])
    for good in (
        'dir="${1:?Usage: $0 DIR}"',
        "dir=${1:-.}",
        'if [ $# -lt 1 ]; then exit 2; fi; ls "$1"',
        '[ -z "$1" ] && exit 2',
    ):
        assert checks_arguments(good, []), good


def sample_of(rendering: Rendering, answer: str, *, ended: bool = True) -> Sample:
    prompt = prompt_text(rendering.prompt, command=rendering.kind == "command")
    return Sample(rendering, rendering.task in UNSEEN, Completion(prompt, answer, len(answer) + 1, ended, -1.0))


def good_answer(rendering: Rendering) -> str:
    return rendering.document.removeprefix(prompt_text(rendering.prompt, command=rendering.kind == "command"))


RENDERINGS = held_out_renderings(TASKS, 1, 2, seed=0)[::12]
NOTHING = {
    "writes nothing": lambda r: "",
    "copies its prompt": lambda r: f"# {r.prompt}\n",
    "says done": lambda r: "echo done\n",
}


def test_test_prompts_are_of_the_test_part() -> None:
    """Unseen tasks, and seen tasks with values that training does not have; the same ones each time."""
    renderings = held_out_renderings(TASKS, 1, 3, seed=0)
    assert {r.part for r in renderings} == {"test"} and renderings == held_out_renderings(TASKS, 1, 3, seed=0)
    assert len({r.prompt for r in renderings}) == len(renderings) > 0.9 * len(TASKS)
    assert not {r.task for r in renderings} & {task.name for task in TASKS if task.held_out == "validation"}
    held_out = [task.name for task in TASKS if task.held_out == "test"]
    assert all(1 <= sum(r.task == name for r in renderings) <= 3 for name in held_out)


@needs_sandbox
@pytest.mark.parametrize("model", NOTHING)
def test_models_that_do_nothing_score_near_zero(model: str) -> None:
    """A figure that rewards silence, echoes or bravado would be of no use."""
    samples = [sample_of(rendering, NOTHING[model](rendering)) for rendering in RENDERINGS]
    passed = run_samples(samples, BY_NAME, jobs=2)
    function = functional_figures(samples, passed, 1)
    assert sum(passed) <= 0.05 * len(samples), [s.rendering.task for s, p in zip(samples, passed, strict=True) if p]
    assert all(figure.value <= 0.1 for name, figure in function.figures.items() if "seen tasks" in name and figure.samples > 5)
    valid = syntax_figures(samples).figures["valid bash"].value
    assert valid == (1.0 if model == "says done" else 0.0), "`echo done` is valid bash, and no more"


def command_figures(answer: Callable[[Rendering], str]) -> dict[str, Figure]:
    """Figures of the part `commands` for a model that gives these answers to the bundled one-line tasks."""
    pairs = [r for r in held_out_renderings(TASKS, 1, 1, seed=0) if r.kind == "command"]
    result = PartResult("commands", "")
    add_pair_figures(result, "tasks", [sample_of(pair, answer(pair)) for pair in pairs], TrainingTexts())
    assert len(pairs) > 20 and all(figure.samples for figure in result.figures.values())
    return result.figures


@pytest.mark.parametrize("model", NOTHING)
def test_models_that_do_nothing_know_no_commands(model: str) -> None:
    """Neither silence nor the request's own words are a command with its values."""
    figures = command_figures(NOTHING[model])
    assert all(figure.value <= (10 if figure.unit == "BLEU" else 0.1) for figure in figures.values()), figures


def test_a_model_that_knows_writes_the_commands_of_people() -> None:
    """Every figure at its top: so each can be reached."""
    figures = command_figures(good_answer)
    assert {round(figure.value, 6) for name, figure in figures.items() if figure.unit == "%"} == {1.0}
    assert figures["BLEU, tasks"].value == pytest.approx(100)


@needs_sandbox
def test_a_model_that_knows_scores_full_marks() -> None:
    """The corpus' own scripts pass their checks, whatever the split."""
    samples = [sample_of(rendering, good_answer(rendering)) for rendering in RENDERINGS]
    passed = run_samples(samples, BY_NAME, jobs=2)
    assert all(passed)
    function = functional_figures(samples, passed, 1).figures
    assert function["pass@1, seen tasks, unseen values"].value == 1.0 == function["pass@1, unseen tasks"].value
    syntax = syntax_figures(samples).figures
    assert syntax["valid bash"].value == 1.0 == syntax["ends by itself"].value


@needs_sandbox
def test_pass_at_k_uses_all_samples_of_a_prompt() -> None:
    """One good text of two: pass@1 is a half, pass@2 is one."""
    rendering = next(r for r in RENDERINGS if r.kind == "script")
    samples = [sample_of(rendering, good_answer(rendering)), sample_of(rendering, "echo done\n")]
    figures = functional_figures(samples, run_samples(samples, BY_NAME, jobs=1), 2).figures
    kind = "unseen tasks" if rendering.task in UNSEEN else "seen tasks, unseen values"
    assert figures[f"pass@1, {kind}"].value == 0.5 and figures[f"pass@2, {kind}"].value == 1.0


def test_texts_depend_on_seed_and_prompt_alone(trained_run: TrainedRun) -> None:
    """Another batch, another order, fewer prompts: each prompt's text stays."""
    engine = mlx_codegen.load(trained_run.folder.path)
    chosen = sorted(RENDERINGS, key=lambda r: len(r.prompt))[:6]
    all_texts = draw_samples(engine, chosen, UNSEEN, 2, seed=5, max_tokens=8)
    some = draw_samples(engine, chosen[2:4], UNSEEN, 2, seed=5, max_tokens=8)
    assert [s.script for s in some] == [s.script for s in all_texts[4:8]]
    assert all_texts[0].script != all_texts[1].script
    assert [s.rendering for s in all_texts] == [r for r in chosen for _ in range(2)]
    longest = max(RENDERINGS, key=lambda r: len(r.prompt))
    (nothing,) = draw_samples(engine, [longest], UNSEEN, 1, seed=5, max_tokens=8)
    assert nothing.completion.tokens == 0, "a prompt that does not fit is a failure of the model and not of the evaluation"


def test_report_is_json_and_markdown(tmp_path: Path) -> None:
    """Figures that cannot be had are null, not NaN, which is no JSON."""
    rendering = RENDERINGS[0]
    part = functional_figures([sample_of(rendering, "x\n")], [False], 1)
    report = Report("runs/x/best.safetensors", Settings(), [part])
    values = json.loads(as_json(report))
    assert values["parts"][0]["figures"]["pass@1, unseen tasks"]["value"] in (None, 0.0)
    assert "| pass@1, seen tasks, unseen values |" in as_markdown(report) and "NaN" not in as_json(report)
    assert Figure(0.5, 0.4, 0.6, 10).unit == "%"


def test_evaluate_command(trained_run: TrainedRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A table, and the report in two forms; an unknown part is one line."""
    arguments = ["evaluate", str(trained_run.folder.path), "--max-tokens", "4", "--samples", "1", "--seen", "0", "--unseen", "1"]
    assert command_line([*arguments, "--only", "syntax", "--output", str(tmp_path)]) == 0
    assert "valid bash" in capfd.readouterr().out
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["parts"][0]["name"] == "syntax" and (tmp_path / "report.md").read_text().startswith("Model: ")
    assert command_line([*arguments, "--only", "poetry"]) == 2
    assert f"no such part; there are: {', '.join(PARTS)}" in capfd.readouterr().err


@needs_sandbox
def test_answers_are_those_of_generate(trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of eight is parsed and run; all that was written for it is counted; and a model that knows scores."""
    engine = mlx_codegen.load(trained_run.folder.path)
    context = Context(engine, TASKS, Settings(seed=1, max_tokens=10))
    context.renderings = sorted(RENDERINGS, key=lambda r: len(r.prompt))[:3]
    figures = measure_answers(context).figures
    assert figures["valid bash"].samples == 3 == figures["tokens written for an answer"].samples
    assert figures["tokens written for an answer"].value > 8 and 0 <= figures["texts that did not parse"].value <= 1

    def knows(engine: Engine, prompt: str, count: int, seed: int, **keywords: object) -> Chosen:
        rendering = next(r for r in context.renderings if r.prompt == prompt)
        completion = sample_of(rendering, good_answer(rendering)).completion
        return Chosen(Candidate(completion, seed, None), completion, count, 2, 80)

    monkeypatch.setattr("mlx_codegen.evaluation.answers.best_of", knows)
    context.renderings = [r for r in RENDERINGS if r.unseen_wording][:3] + [r for r in RENDERINGS if not r.unseen_wording][:3]
    figures = measure_answers(context).figures
    right = {name: figure.value for name, figure in figures.items() if name.startswith("right") and figure.samples}
    assert set(right.values()) == {1.0} and "right, seen tasks, unseen wordings" in right
    assert figures["texts that did not parse"].value == 0.25 and figures["tokens written for an answer"].value == 80


def test_texts_are_drawn_as_the_settings_say(trained_run: TrainedRun) -> None:
    """From one token at a time there is nothing to draw: the text at temperature 0."""
    engine = mlx_codegen.load(trained_run.folder.path)

    def texts(**settings: Any) -> list[str]:
        context = Context(engine, [], Settings(samples=1, max_tokens=12, **settings))
        context.renderings = sorted(RENDERINGS, key=lambda r: len(r.prompt))[:3]  # a tiny context
        return [sample.script for sample in context.samples]

    assert texts(top_k=1) == texts(temperature=0.0) != texts(top_k=0, top_p=1.0, temperature=3.0)


def test_setup_and_check_of_a_test_prompt_render() -> None:
    """Whatever part a rendering is of."""
    for rendering in RENDERINGS:
        task: Task = BY_NAME[rendering.task]
        assert render_check(task, rendering)[1].strip()


@pytest.mark.parametrize(
    ("code", "shell"),
    [
        ("ls -l | wc -l", True),
        ("uptime", True),
        ("name=$1\necho done", True),
        ("if [[ -f x ]]; then\n    cat x\nfi", True),
        ("docker ps", True),
        ("Once upon a time there was a little girl", False),
        ("The dog was happy and\nthe cat was sad\nlet us go home", False),
        ("cat > ci.yml << 'EOF'\nname: ci\nsteps\nmore steps\nEOF\necho done", True),
        ('psql -c "\nSELECT a\nFROM b\nORDER BY c;"', True),
        ('He said "come\nhome with me\nnow" and she\nwent home happily', False),
        ("", False),
    ],
)
def test_prose_is_no_bash_although_it_parses(code: str, shell: bool) -> None:
    assert is_shell(code) is shell

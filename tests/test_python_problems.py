"""The Python problems: solutions pass, nothing else does, and a body ends where its function does."""

from pathlib import Path

import pytest
from knowing_model import knowing_engine
from tiny_run import TrainedRun, tiny_tokenizer

import mlx_codegen
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation import python_problems, sandbox
from mlx_codegen.evaluation.context import Context, Settings
from mlx_codegen.evaluation.python_problems import (
    GRADES,
    Problem,
    function_body,
    load_problems,
    measure_python,
    passes,
    python_figures,
    run_bodies,
)
from mlx_codegen.evaluation.report import USUAL_PARTS
from mlx_codegen.evaluation.sandbox import Limits, run_python, why_no_python
from mlx_codegen.training.run_folder import RunFolder

PROBLEMS = load_problems()
needs_python = pytest.mark.skipif(why_no_python() is not None, reason=str(why_no_python()))


def test_there_are_enough_problems_of_every_grade() -> None:
    """And as many as data/README.md says."""
    assert len(PROBLEMS) >= 44
    assert all(sum(problem.grade == grade for problem in PROBLEMS) >= 10 for grade in GRADES)
    readme = (Path(__file__).parents[1] / "data" / "README.md").read_text(encoding="utf-8")
    assert f"{len(PROBLEMS)} Python problems in {len(GRADES)} grades" in readme


@needs_python
def test_every_solution_passes_and_every_empty_body_fails() -> None:
    """Else a problem could not be solved, or solved by writing nothing."""
    jobs = [(problem, body) for problem in PROBLEMS for body in (problem.solution, "")]
    passed = run_bodies(jobs, workers=4)
    assert [problem.name for (problem, body), good in zip(jobs, passed, strict=True) if good is not bool(body)] == []


@pytest.mark.parametrize("value", ["None", "0", "1", "-1", "True", "False", "[]", "{}", "''", "THE_ARGUMENT"])
def test_no_constant_passes_a_test(value: str) -> None:
    """Nor does the first argument, given back. (Run here: these bodies are ours.)"""
    solved = []
    for problem in PROBLEMS:
        argument = problem.prompt.partition("(")[2].partition(")")[0].partition(",")[0]
        try:
            exec(f"{problem.prompt}    return {value.replace('THE_ARGUMENT', argument)}\n{problem.tests}", {})
            solved.append(problem.name)
        except Exception:
            continue
    assert solved == []


@needs_python
@pytest.mark.parametrize(
    "body",
    [
        "    import os; os._exit(0)\n",
        "    raise SystemExit\n",
        "    while True: pass\n",
        "    return [0] * 10**10\n",
        '    """not closed\n',
        "    return \0\n",
        "    import subprocess; return subprocess.run(['true']).returncode + 25\n",
        "    assert False, '\ufffd'\n",
    ],
)
def test_ending_the_program_early_is_not_passing(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 0 alone says nothing; endless, greedy and broken bodies fail and stop nobody."""
    monkeypatch.setattr(python_problems, "LIMITS", Limits(seconds=1))
    assert not passes(PROBLEMS[0], body)


@needs_python
def test_python_runs_under_the_limits_and_without_installed_packages(tmp_path: Path) -> None:
    """Time, memory, files and network as for scripts; the standard library alone."""
    assert run_python("import json, math, collections\nprint(math.pi)").stdout.startswith("3.14")
    assert run_python("while True: pass", limits=Limits(seconds=1)).timed_out
    assert "MemoryError" in run_python("x = bytearray(2**31)").stderr
    assert "ModuleNotFoundError" in run_python("import numpy").stderr
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    assert "hunter2" not in run_python(f"print(open({str(secret)!r}).read())").stdout
    assert "OSError" in run_python("import socket\nsocket.create_connection(('1.1.1.1', 53), timeout=1)").stderr


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("    return 1\n\n\ndef other():\n    return 2\n", "    return 1\n"),
        ("    x = 1\n\n    return x\nprint(f(2))\n", "    x = 1\n\n    return x\n"),
        ("    if a:\n        return 1\n    return 2\n# Next\n", "    if a:\n        return 1\n    return 2\n"),
        ("\n    return 1", "\n    return 1\n"),
        ("return 1\n", ""),
        ("", ""),
        ("\n\n  \n", ""),
    ],
)
def test_a_body_ends_with_the_indentation(text: str, body: str) -> None:
    """What follows the function is another text."""
    assert function_body(text) == body


@needs_python
def test_a_model_that_knows_the_solutions_scores_full_marks(prepared_run: Path) -> None:
    """Prompt to figure, through the engine and the sandbox; what it writes after the function does no harm."""
    few = [problem for grade in GRADES for problem in PROBLEMS if problem.grade == grade][::6]
    texts = [f"{problem.prompt}{problem.solution}\n\nprint('more')\n" for problem in few]
    engine = knowing_engine(tiny_tokenizer(RunFolder(prepared_run)), texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(python_problems, "load_problems", lambda: few)
        result = measure_python(Context(engine, [], Settings(samples=2, max_tokens=600)))
    assert {figure.value for figure in result.figures.values()} == {1.0}
    assert set(result.figures) == {f"pass@{k}{of}" for k in (1, 2) for of in ("", *(f", {grade}" for grade in GRADES))}
    assert result.figures["pass@1"].samples == len(few) and len(result.figures["pass@1"].prompts) == len(few)
    assert result.notes == []


@needs_python
def test_a_model_that_knows_no_python_scores_nothing(trained_run: TrainedRun) -> None:
    """A window of 32 tokens: what does not fit counts as failed, and the note says so."""
    result = measure_python(Context(mlx_codegen.load(trained_run.folder.path), [], Settings(samples=1, max_tokens=8)))
    assert {figure.value for figure in result.figures.values()} == {0.0}
    assert result.figures["pass@1"].samples == len(PROBLEMS)
    assert "longer than the model's window" in result.notes[0]


def test_pass_at_k_is_per_problem() -> None:
    """One good body of two: pass@1 is a half, pass@2 is one."""
    easy, hard = (next(problem for problem in PROBLEMS if problem.grade == grade) for grade in ("easy", "hard"))
    figures = python_figures([easy, hard], [[True, False], [False, False]]).figures
    assert [figures[f"pass@{k}, easy"].value for k in (1, 2)] == [0.5, 1.0]
    assert [figures[f"pass@{k}"].value for k in (1, 2)] == [0.25, 0.5]
    assert figures["pass@1, medium"].samples == 0


def test_part_is_left_out_with_a_note_where_there_is_no_sandbox(trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is measured only when asked for: this project's models write bash."""
    monkeypatch.setattr(sandbox.sys, "platform", "win32")
    for cached in (sandbox.why_unavailable, sandbox.why_no_python):
        cached.cache_clear()
    try:
        result = measure_python(Context(mlx_codegen.load(trained_run.folder.path), [], Settings()))
    finally:
        monkeypatch.undo()
        for cached in (sandbox.why_unavailable, sandbox.why_no_python):
            cached.cache_clear()
    assert result.figures == {} and result.notes == ["left out: no sandbox: there is no sandbox for win32; use Linux or macOS"]
    assert "python" not in USUAL_PARTS


GOOD = {"name": "f", "grade": "easy", "prompt": "def f(x):\n", "tests": "assert f(1) == 2\n", "solution": "    return x + 1\n"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grade": "tough"}, "problems.0.grade: Input should be 'trivial'"),
        ({"name": "g"}, "the prompt of g must begin with: def g("),
        ({"tests": "f(1)\n"}, "the tests of f must call it in assert lines"),
        ({"solution": "return x\n"}, "the solution of f must be indented and end in a newline"),
        ({"solution": "    return (\n"}, "f is not valid Python"),
        ({"hint": "add"}, "problems.0.hint: Extra inputs are not permitted"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, change: dict[str, str], message: str) -> None:
    """File, key and what is wrong; a good file is read."""
    import json

    file = tmp_path / "problems.yaml"
    file.write_text(json.dumps({"problems": [GOOD]}))
    assert load_problems(file) == [Problem(**GOOD)]
    file.write_text(json.dumps({"problems": [{**GOOD, **change}]}))
    with pytest.raises(UserError) as caught:
        load_problems(file)
    assert str(caught.value).startswith(f"{file}: ") and message in str(caught.value) and "\n" not in str(caught.value)
    file.write_text(json.dumps({"problems": [GOOD, GOOD]}))
    with pytest.raises(UserError, match="two problems are called f"):
        load_problems(file)

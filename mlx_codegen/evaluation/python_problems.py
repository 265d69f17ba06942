"""For models trained on Python: does it complete functions so that their tests pass?

The method is that of HumanEval (Chen et al., 2021, arXiv 2107.03374), the problems are our own: a signature and a
docstring are given, the model writes the body, and the program with its tests is run in the sandbox.
"""

import keyword
import random
import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, model_validator

from mlx_codegen.config import repository_folder
from mlx_codegen.data.yaml_file import Strict, read_yaml
from mlx_codegen.evaluation.context import Context
from mlx_codegen.evaluation.figures import Figure, PartResult, mean_of, pass_at_k, prompt_key
from mlx_codegen.evaluation.samples import BATCH
from mlx_codegen.evaluation.sandbox import Limits, run_python, why_no_python
from mlx_codegen.generation.engine import Engine

FILE = "python_problems.yaml"
LIMITS = Limits(seconds=5)
TITLE = "Python functions that pass their tests"
Grade = Literal["trivial", "easy", "medium", "hard"]
GRADES: tuple[Grade, ...] = get_args(Grade)


class Problem(Strict):
    """A function to complete."""

    name: str
    grade: Grade
    prompt: str
    """Signature and docstring, up to the end of a line."""
    tests: str
    """Assertions, run after the function."""
    solution: str
    """A body that passes the tests."""

    @model_validator(mode="after")
    def _is_a_program(self) -> "Problem":
        if not self.name.isidentifier() or keyword.iskeyword(self.name) or not self.prompt.startswith(f"def {self.name}("):
            raise ValueError(f"the prompt of {self.name} must begin with: def {self.name}(")
        if f"{self.name}(" not in self.tests or "assert " not in self.tests:
            raise ValueError(f"the tests of {self.name} must call it in assert lines")
        if function_body(self.solution) != self.solution:
            raise ValueError(f"the solution of {self.name} must be indented and end in a newline")
        try:
            compile(self.prompt + self.solution + self.tests, self.name, "exec")
        except SyntaxError as error:
            raise ValueError(f"{self.name} is not valid Python: {error}") from None
        return self


class ProblemFile(Strict):
    """The file of problems."""

    problems: list[Problem] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> "ProblemFile":
        names = [problem.name for problem in self.problems]
        if twice := sorted(name for name in names if names.count(name) > 1):
            raise ValueError(f"two problems are called {twice[0]}")
        return self


def load_problems(path: Path | None = None) -> list[Problem]:
    """Returns the bundled problems, or those of another file; raises UserError for the first mistake in it."""
    return read_yaml(path or repository_folder("data") / "evaluation" / FILE, ProblemFile).problems


def measure_python(context: Context) -> PartResult:
    """Writes `samples` bodies for every problem and runs them; left out, with a note, where no sandbox runs Python."""
    if reason := why_no_python():
        return PartResult("python", TITLE, notes=[f"left out: {reason}"])
    problems, settings = load_problems(), context.settings
    bodies = write_bodies(context, problems)
    jobs = [(problem, body) for problem, written in zip(problems, bodies, strict=True) for body in written]
    passed = run_bodies(jobs, settings.jobs, partial(context.on_progress, "running Python"))
    grouped = [passed[start : start + settings.samples] for start in range(0, len(passed), settings.samples)]
    result = python_figures(problems, grouped)
    chosen = {good: [job for job, right in zip(jobs, passed, strict=True) if right is good][:3] for good in (True, False)}
    for good, few in chosen.items():
        what = "passed" if good else "failed"
        result.examples += [{"what": f"{what}: {problem.name}", "text": problem.prompt + body} for problem, body in few]
    if left_out := sum(not _fits(context.engine, problem) for problem in problems):
        result.notes.append(f"{left_out} prompts are longer than the model's window and count as failed")
    return result


def write_bodies(context: Context, problems: list[Problem]) -> list[list[str]]:
    """Returns `samples` bodies for each problem; a prompt that is longer than the model's window gets empty ones."""
    engine, settings = context.engine, context.settings
    fitting = sorted((problem for problem in problems if _fits(engine, problem)), key=lambda problem: len(problem.prompt))
    jobs = [(problem, number) for problem in fitting for number in range(settings.samples)]
    bodies: dict[str, list[str]] = {problem.name: [] for problem in fitting}
    for start in range(0, len(jobs), BATCH):
        part = jobs[start : start + BATCH]
        seeds = [random.Random(f"{settings.seed}/{problem.name}/{number}").getrandbits(32) for problem, number in part]
        texts = engine.complete([problem.prompt for problem, _ in part], seeds, plain=True, **context.sampling)
        for (problem, _), text in zip(part, texts, strict=True):
            bodies[problem.name].append(function_body(text.answer))
        context.on_progress("writing Python", start + len(part), len(jobs))
    return [bodies.get(problem.name, [""] * settings.samples) for problem in problems]


def _fits(engine: Engine, problem: Problem) -> bool:
    """With room for an end-of-text before it and a token after it."""
    return len(engine.tokenizer.encode(problem.prompt)) + 1 < engine.model.config.context_length


def function_body(text: str) -> str:
    """What of a text belongs to the function: all lines before the first that is neither indented nor empty."""
    body = re.split(r"^(?=[^\s])", text, maxsplit=1, flags=re.M)[0].rstrip()
    return f"{body}\n" if body else ""


def run_bodies(
    jobs: list[tuple[Problem, str]], workers: int, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[bool]:
    """Returns for each body whether the problem's tests pass with it; several sandboxes at a time, equal programs run once."""
    distinct = list(dict.fromkeys(jobs))
    results: dict[tuple[Problem, str], bool] = {}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for job, passed in zip(distinct, pool.map(lambda job: passes(*job), distinct), strict=True):
            results[job] = passed
            on_progress(len(results), len(distinct))
    return [results[job] for job in jobs]


def passes(problem: Problem, body: str) -> bool:
    """Runs a body with the problem's tests."""
    # A body that ends the program passes no test: the last line must have been reached, and its word cannot be guessed
    word = secrets.token_hex(8)
    outcome = run_python(f"{problem.prompt}{body}\n\n{problem.tests}\nprint('\\n{word}')\n", limits=LIMITS)
    return outcome.passed and outcome.stdout.endswith(f"\n{word}\n")


def python_figures(problems: list[Problem], passed: list[list[bool]]) -> PartResult:
    """pass@1 and pass@k for k samples a problem, over all and by grade."""
    result = PartResult("python", TITLE)

    def figure(k: int, grades: tuple[Grade, ...]) -> Figure:
        groups = {p.prompt: group for p, group in zip(problems, passed, strict=True) if p.grade in grades}
        return mean_of({prompt_key(prompt): [pass_at_k(len(group), sum(group), k)] for prompt, group in groups.items()})

    for k in sorted({1, len(passed[0])}):
        result.figures[f"pass@{k}"] = figure(k, GRADES)
        for grade in GRADES:
            result.figures[f"pass@{k}, {grade}"] = figure(k, (grade,))
    return result

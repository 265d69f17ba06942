"""The bundled bash tasks: every file loads and every rendering keeps its promises."""

import ast
import os
import random
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_codegen.data import tasks as tasks_module
from mlx_codegen.data.tasks import Rendering, Task, load_tasks, render, render_check, task_documents
from mlx_codegen.data.tasks import renderings as all_renderings
from mlx_codegen.errors import UserError

FOLDER = Path(__file__).parents[1] / "data" / "bash"
TASKS = load_tasks(FOLDER)
UNSEEN = {task.name for task in TASKS if task.held_out}
SEVEN = {"system_administration", "devops", "database", "networking", "monitoring", "deployment", "everyday"}

WORDS: dict[str, Any] = {
    "leads": {"script": ["Script to"], "command": ["Command to"]},
    "types": {"noun": ["oak", "elm"], "directory": ["/srv/{noun}{1-9}"]},
}
GOOD: dict[str, Any] = {
    "prompts": ["{{ lead }} list {{ dir }}", "List a folder{% if long %} in detail{% endif %}"],
    "slots": {"dir": {"type": "directory", "default": "${1:-.}"}},
    "variants": {"long": None},
    "script": '#!/bin/bash\n\nls{% if long %} -l{% endif %} "{{ dir }}"\n',
}


def renderings(task: Task, count: int) -> list[Rendering]:
    """Several renderings of one task, always the same ones; a fifth of them in words that training does not ask."""
    rng = random.Random(task.name)
    return [render(task, rng, unseen_wording=bool(task.unseen_prompts) and number % 5 == 4) for number in range(count)]


def contains(text: str, value: str) -> bool:
    """Whether the value stands in the text by itself and not as a part of a longer word or number."""
    edge = r"\d" if value.isdigit() else r"\w"
    return re.search(rf"(?<!{edge}){re.escape(value)}(?!{edge})", text) is not None


def write_corpus(folder: Path, task: dict[str, Any], words: dict[str, Any] = WORDS) -> Path:
    """A corpus of one task, `devops/sample`."""
    (folder / "devops").mkdir()
    (folder / "slots.yaml").write_text(yaml.safe_dump(words, sort_keys=False))
    path = folder / "devops" / "sample.yaml"
    path.write_text(yaml.safe_dump(task))
    return path


def test_corpus_is_as_large_as_the_readme_says() -> None:
    """The counts that data/README.md states are those of the files."""
    scripts = [task for task in TASKS if task.file.kind == "script"]
    commands = [task for task in TASKS if task.file.kind == "command"]
    assert {task.category for task in scripts} == SEVEN
    assert {task.category for task in commands} == {"commands"}
    readme = (FOLDER.parent / "README.md").read_text()
    assert f"{len(scripts)} script tasks" in readme
    assert f"{len(commands)} one-line commands" in readme


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_has_eight_different_prompts(task: Task) -> None:
    """A request is asked for in many ways; a model must not know it by one sentence."""
    assert len(set(task.file.prompts)) == len(task.file.prompts) >= 8


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_is_asked_in_words_that_training_does_not_know(task: Task) -> None:
    """People's words are never quite ours: the test part has two wordings of each task for itself."""
    known = {prompt.casefold() for prompt in task.file.prompts}
    assert len(set(task.file.unseen_prompts)) == 2 and not known & {prompt.casefold() for prompt in task.file.unseen_prompts}


def test_unseen_wordings_are_in_the_test_part_alone(tmp_path: Path) -> None:
    """Whatever values they name, or none; and no rendering for training draws one."""
    unseen = ["{{ lead }} show what is in {{ dir }}", "What is in a folder?"]
    write_corpus(tmp_path, GOOD | {"unseen_prompts": unseen})
    (task,) = load_tasks(tmp_path)
    drawn = [render(task, random.Random(seed), unseen_wording=True) for seed in range(60)]
    assert {r.part for r in drawn} == {"test"} and all(r.unseen_wording for r in drawn)
    assert {r.prompt.startswith("What is") for r in drawn} == {True, False}
    for r in drawn:
        assert ('"${1:-.}"' in r.script) == (r.given == frozenset()) and (r.given == frozenset() or r.values["dir"] in r.script)
    trained = [r for r in all_renderings([task], 300, seed=0) if r.part != "test"]
    assert trained and not any(r.unseen_wording or "what is in" in r.prompt.lower() for r in trained)


def test_unseen_wordings_are_checked_like_the_others(tmp_path: Path) -> None:
    """A name that is neither slot nor variant, and a slot without a default that is not named, are one line."""
    for wording, message in (("List {{ folder }}", "folder is neither a slot"), ("List it", "needs a default")):
        folder = tmp_path / str(len(wording))
        folder.mkdir()
        write_corpus(folder, GOOD | {"prompts": ["List {{ dir }}"], "slots": {"dir": "directory"}, "variants": {},
                                     "script": '#!/bin/bash\n\nls "{{ dir }}"\n', "unseen_prompts": [wording]})  # fmt: skip
        with pytest.raises(UserError, match=f"unseen_prompts.0: {message}" if "folder" in wording else message):
            load_tasks(folder)


def test_every_rendering_is_valid_bash() -> None:
    """Five renderings of every task pass `bash -n`; one process reads them all, each as a function of its own."""
    for task in TASKS:
        functions = [f"f{i}() {{\n{r.document}\n}}\n" for i, r in enumerate(renderings(task, 5))]
        done = subprocess.run(["bash", "-n"], input="".join(functions), capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, f"{task.name}: {done.stderr}"


def test_values_named_in_the_prompt_appear_in_the_script() -> None:
    """What the prompt names, the script uses: this is what teaches a model to copy."""
    for task in TASKS:
        for r in renderings(task, 40):
            for name in sorted(r.given):
                if contains(r.prompt, r.values[name]):
                    assert contains(r.script, r.values[name]), f"{task.name}: {name} is not in the script: {r.prompt}"


def test_scripts_hold_no_value_that_the_prompt_does_not_name() -> None:
    """A path that nobody asked for would teach a model to make paths up."""
    for task in TASKS:
        for r in renderings(task, 40):
            fixed = task.file.script + "".join(slot.default or "" for slot in task.file.slots.values())
            for name, value in r.values.items():
                telling = len(value) > 3 and not value.isdigit() and value not in fixed
                if telling and value not in r.prompt:
                    assert not contains(r.script, value), f"{task.name}: {name}={value} is invented: {r.prompt}"


def test_documents_put_the_prompt_below_the_shebang() -> None:
    """A training document has the form that generation asks for: shebang, prompt as comment, script."""
    for task in TASKS:
        r = renderings(task, 1)[0]
        lines = r.document.splitlines()
        assert lines[0 if r.kind == "command" else 1] == f"# {r.prompt}"
        assert (lines[0] == "#!/bin/bash") == (r.kind == "script")
        assert r.document.endswith("\n") and not r.document.endswith("\n\n")
        assert "\n" not in r.prompt and "  " not in r.prompt and not re.search(r"\{\{ | \}\}|\{%", r.document)
        assert "None" not in r.document and "\n\n\n" not in r.document


def test_documents_are_distinct_interleaved_and_repeatable() -> None:
    """The same seed gives the same stream, another seed another one, and no document comes twice."""
    documents = [r.document for r in all_renderings(TASKS, 10, seed=1)]
    assert documents == [r.document for r in all_renderings(TASKS, 10, seed=1)]
    assert len(set(documents)) == len(documents) > 9 * len(TASKS)
    other = {r.document for r in all_renderings(TASKS, 10, seed=2)}
    assert len(other & set(documents)) < len(documents) / 5
    first_round = [render(task, random.Random(f"1/{task.name}")).document for task in TASKS]
    assert documents[: len(TASKS)] == first_round


def test_corpus_yields_sixty_thousand_pairs() -> None:
    """The whole corpus, rendered as `corpus build` does by default, has at least so many distinct prompts with scripts."""
    pairs: set[int] = set()
    for r in all_renderings(TASKS, 250, seed=0):
        pairs.add(hash((r.prompt, r.script)))
        if len(pairs) == 60_000:
            return
    raise AssertionError(f"only {len(pairs):,} pairs")


def test_split_keeps_tasks_and_values_apart() -> None:
    """Held-out tasks are nowhere else; no part names a set of values that another names; no prompt is in two parts."""
    parts: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    values: dict[str, set[tuple[str, ...]]] = {"train": set(), "validation": set(), "test": set()}
    prompts: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for r in all_renderings(TASKS, 60, seed=3):
        parts[r.part].add(r.task)
        prompts[r.part].add(r.prompt)
        if r.task not in UNSEEN:
            values[r.part].add(tuple(sorted({r.values[name] for name in r.given})))
    assert len(UNSEEN) >= 0.1 * len(TASKS) - 1
    assert not UNSEEN & parts["train"]
    for task in UNSEEN:
        assert (task in parts["validation"]) != (task in parts["test"])
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not values[one] & values[other]
        assert not prompts[one] & prompts[other]
    seen_in_test = parts["test"] - UNSEEN
    assert len(seen_in_test) > 0.8 * len(set(parts["train"])), "most seen tasks are also asked with unseen values"


def test_unseen_tasks_come_from_every_category() -> None:
    """A test on one category would say nothing of the others."""
    for part in ("validation", "test"):
        assert {task.category for task in TASKS if task.held_out == part} == {*SEVEN, "commands"}


def test_training_never_sees_the_test_part() -> None:
    """What the bundled source gives to a run is the train and the validation part."""
    test_documents = {r.document for r in all_renderings(TASKS, 20, seed=5) if r.part == "test"}
    given = dict(task_documents(FOLDER, 20, seed=5))
    assert len(test_documents) > 100 and not test_documents & given.keys()
    assert set(given.values()) == {"train", "validation"}


def test_split_file_is_checked(tmp_path: Path) -> None:
    """A task that is not there, and one in both parts, are told with file and key."""
    write_corpus(tmp_path, GOOD)
    split = tmp_path / "split.yaml"
    split.write_text("test: [sample]\n")
    assert load_tasks(tmp_path)[0].held_out == "test"
    split.write_text("test: [simple]\n")
    with pytest.raises(UserError, match=r"split\.yaml: test: there is no task simple$"):
        load_tasks(tmp_path)
    split.write_text("test: [sample]\nvalidation: [sample]\n")
    with pytest.raises(UserError, match=r"split\.yaml: test: sample is in validation too$"):
        load_tasks(tmp_path)


def test_renderings_do_not_depend_on_the_process() -> None:
    """Nothing goes through hash(), which differs from one Python process to the next."""
    code = (
        "import sys, hashlib, pathlib; from mlx_codegen.data.tasks import task_documents;"
        "print(hashlib.sha256(str(list(task_documents(pathlib.Path(sys.argv[1]), 3, 7))).encode()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, str(FOLDER)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(FOLDER.parents[1])},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_values_are_fresh() -> None:
    """Paths come from so many that a model cannot learn them by heart."""
    words, rng = TASKS[0].words, random.Random(0)
    for name in ("directory", "text_file", "url", "host"):
        assert len({words.fresh(name, rng) for _ in range(2000)}) > 1000, name


def test_semantic_variants_need_a_prompt_that_asks(tmp_path: Path) -> None:
    """A script does what nobody asked for only where no prompt ever could: `-l` needs `in detail`."""
    write_corpus(tmp_path, GOOD)
    (task,) = load_tasks(tmp_path)
    for r in renderings(task, 50):
        assert (" -l " in r.script) == ("in detail" in r.prompt)
        assert ("${1:-.}" in r.script) == (not r.given)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    "unused slot": (
        {"slots": {**GOOD["slots"], "size": "noun"}},
        "slots.size: neither a prompt nor the script uses it",
    ),
    "unknown slot": ({"prompts": ["List {{ folder }}", "b"]}, "prompts.0: folder is neither a slot nor a variant"),
    "broken template": ({"script": "#!/bin/bash\n{% if long %}ls {{ dir }}\n"}, "script: not a template"),
    "broken check": ({"check": "{% endif %}"}, "check: not a template"),
    "no prompt": ({"prompts": []}, "prompts: List should have at least 1 item"),
    "unknown type": ({"slots": {"dir": {"type": "planet", "default": "x"}}}, "slots.dir: no type is called planet"),
    "no default": ({"slots": {"dir": "directory"}}, "slots.dir: needs a default, because prompts.1 does not name it"),
    "unused variant": ({"variants": {"long": None, "log": None}}, "variants.log: it has no values, or neither"),
    "no shebang": ({"script": "ls {{ dir }} {{ long }}\n"}, "script: must open with #!/bin/bash"),
    "wrong kind": ({"kind": "poem"}, "kind: Input should be 'script' or 'command'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_line_with_file_and_key(case: str, tmp_path: Path) -> None:
    """A mistake in a task file is found when it is loaded, and said where it is."""
    change, message = BAD[case]
    path = write_corpus(tmp_path, {**GOOD, **change})
    with pytest.raises(UserError) as caught:
        load_tasks(tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["{{ 1 // 0 }}", "{{ dir.name.first }}", "{% include 'other' %}"])
@pytest.mark.parametrize("key", ["script", "check"])
def test_template_that_fails_when_it_is_filled_in_names_its_task(key: str, fault: str, tmp_path: Path) -> None:
    """Such a template can be read, so that only rendering finds the mistake."""
    write_corpus(tmp_path, {**GOOD, key: GOOD.get(key, "") + f"{fault}\n"})
    (task,) = load_tasks(tmp_path)
    with pytest.raises(UserError, match=r"^devops/sample\.yaml: a template cannot be filled in \([^\n]+$"):
        render_check(task, render(task, random.Random(0)))


def test_duplicate_task_name_is_refused(tmp_path: Path) -> None:
    """A task's name seeds its renderings, so it names one task only."""
    write_corpus(tmp_path, GOOD)
    (tmp_path / "networking").mkdir()
    (tmp_path / "networking" / "sample.yaml").write_text(yaml.safe_dump(GOOD))
    with pytest.raises(UserError, match=r"networking/sample\.yaml: name: another task is called sample, in devops$"):
        load_tasks(tmp_path)


def test_bad_words_and_bad_yaml_are_one_line(tmp_path: Path) -> None:
    """The words file and broken YAML are reported like any other mistake."""
    path = write_corpus(tmp_path, GOOD, {**WORDS, "types": {"directory": ["/srv/{moon}"]}})
    with pytest.raises(UserError, match=r"slots\.yaml: types: .*type directory refers to moon, which is no type above"):
        load_tasks(tmp_path)
    (tmp_path / "slots.yaml").write_text(yaml.safe_dump({**WORDS, "types": {"directory": ["/srv/{9-1}"]}}))
    with pytest.raises(UserError, match="type directory has a range that ends before it begins: 9-1"):
        load_tasks(tmp_path)
    (tmp_path / "slots.yaml").write_text(yaml.safe_dump(WORDS, sort_keys=False))
    path.write_text("script: |\n  a\nprompts: [a]\nscript: b\n")
    with pytest.raises(UserError, match=r"sample\.yaml: not YAML: the key script comes twice [^\n]*line 4"):
        load_tasks(tmp_path)
    path.write_text("prompts: [a]\nscript: 2001-99-99\n")
    with pytest.raises(UserError, match=r"sample\.yaml: not YAML: month must be"):
        load_tasks(tmp_path)
    path.write_text("prompts: [a\nscript: b")
    with pytest.raises(UserError, match=r"sample\.yaml: not YAML: [^\n]+$"):
        load_tasks(tmp_path)
    with pytest.raises(UserError, match=r"slots\.yaml: cannot be read"):
        load_tasks(tmp_path / "nowhere")


def test_tasks_need_no_mlx() -> None:
    """Rendering is text work: the module imports jinja2, yaml, pydantic and the standard library only."""
    tree = ast.parse(Path(tasks_module.__file__).read_text())
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours_or_foreign = {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert ours_or_foreign == {"jinja2", "pydantic", "mlx_codegen"}


def test_task_documents_is_lazy() -> None:
    """A preview of three documents does not render the whole corpus."""
    assert len(list(islice(task_documents(FOLDER, 10**9, seed=0), 3))) == 3

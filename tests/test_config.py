"""Settings: what ships is valid and keeps its promises, and every mistake in a config gets one line that helps."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_codegen.cli.main import run
from mlx_codegen.config import ModelConfig, RunConfig, build_run_config, find_config, load_run_config, to_yaml
from mlx_codegen.costs import Costs, model_costs
from mlx_codegen.errors import UserError

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))

# Every setting differs from its default, so that one lost on the way to YAML and back cannot hide.
NOTHING_AT_DEFAULT: dict[str, Any] = {
    "model": {
        "family": "llama",
        "n_layers": 3,
        "d_model": 48,
        "n_heads": 2,
        "d_ff": 96,
        "vocab_size": 4000,
        "context_length": 64,
        "dropout": 0.1,
        "bias": True,
        "rope_theta": 5e4,
    },
    "tokenizer": {"type": "char", "training_bytes": 5000},
    "phases": {
        "language": {
            "sources": [
                {
                    "name": "hub-data",
                    "hub": "owner/name",
                    "split": "test",
                    "subset": "part",
                    "text_column": "answer",
                    "prompt_column": "question",
                    "script_documents": True,
                    "weight": 0.25,
                    "max_documents": 7,
                    "fresh_values": 0.5,
                    "versions": 3,
                },
                {"name": "local", "path": "Geschichten/für alle.txt"},
                {"name": "endless", "hub": "owner/name", "stream": True, "shard_documents": 9, "cache_bytes": 8},
            ],
            "validation_fraction": 0.3,
            "steps": 9,
            "batch_size": 3,
            "gradient_accumulation": 2,
            "learning_rate": 5e-5,
            "min_learning_rate_ratio": 0.2,
            "schedule": "linear",
            "decay_share": 0.3,
            "optimizer": "muon",
            "muon_momentum": 0.9,
            "warmup_steps": 3,
            "weight_decay": 0.02,
            "beta1": 0.8,
            "beta2": 0.9,
            "epsilon": 1e-9,
            "max_gradient_norm": 2.0,
            "validate_every": 4,
            "validation_tokens": 128,
            "checkpoint_every": 5,
            "early_stopping": 6,
        }
    },
    "seed": 5,
    "precision": "float32",
    "gradient_checkpointing": True,
}


def minimal() -> dict[str, Any]:
    """The shortest valid settings; tests spoil one thing each."""
    return {
        "model": {"n_layers": 1, "d_model": 16, "n_heads": 2},
        "phases": {"code": {"sources": [{"name": "bash", "bundled": "bash"}], "steps": 1, "learning_rate": 0.001}},
    }


def spoiled(key: str, value: Any) -> dict[str, Any]:
    """The minimal settings with one dotted key set to a value."""
    values = minimal()
    target: Any = values
    *path, last = key.split(".")
    for part in path:
        target = target[int(part) if isinstance(target, list) else part]
    target[last] = value
    return values


def complaint(values: dict[str, Any], overrides: tuple[str, ...] = ()) -> str:
    """The one line that wrong settings get."""
    with pytest.raises(UserError) as caught:
        build_run_config(values, overrides, origin="my.yaml")
    line = str(caught.value)
    assert "\n" not in line
    return line


def costs(name: str) -> Costs:
    """Costs of a shipped config; its parameters are counted without being allocated."""
    return model_costs(load_run_config(name).model, batch_size=1)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_config_loads_and_survives_yaml(file: Path) -> None:
    """A config that ships is valid, and the resolved config saved with a run reads back as the same settings."""
    config = load_run_config(file)
    assert RunConfig.model_validate(yaml.safe_load(to_yaml(config))) == config


def test_saved_settings_lose_nothing() -> None:
    """Settings that all differ from their defaults come back equal from YAML, and none of them was left at a default."""
    config = build_run_config(NOTHING_AT_DEFAULT)
    assert build_run_config(yaml.safe_load(to_yaml(config))) == config
    assert config.phases.language is not None
    settings = [[config], [config.model], [config.tokenizer], [config.phases.language], config.phases.language.sources]
    for parts in settings:
        fields = type(parts[0]).model_fields
        at_default = [name for name, field in fields.items() if all(getattr(part, name) == field.default for part in parts)]
        assert set(at_default) <= {"bundled", "epochs"}  # these exclude others that are given


def test_promised_configs_are_there() -> None:
    """DESIGN.md's table names eight configs; people type these names."""
    promised = {"nano", "tiny", "small", "medium", "mini", "mini-large", "bash-char", "stories"}
    promised |= {"nano-fast", "tiny-fast", "small-fast"}
    assert promised <= {file.stem for file in SHIPPED}


@pytest.mark.parametrize(
    ("name", "family", "millions"),
    [
        ("tiny", "gpt2", 13.9),
        ("stories", "gpt2", 13.9),
        ("small", "gpt2", 48.7),
        ("medium", "gpt2", 163.0),
        ("mini", "gpt_neox", 27.1),
        ("mini-large", "gpt_neox", 45.9),
        ("nano", "gpt2", 1.1),
        ("bash-char", "gpt2", 10.9),
    ],
)
def test_parameter_counts_are_as_promised(name: str, family: str, millions: float) -> None:
    """The sizes that DESIGN.md and the README name are the sizes that the configs build, to the digit that they give."""
    assert load_run_config(name).model.family == family
    assert costs(name).parameters / 1e6 == pytest.approx(millions, abs=0.07)


def test_tiny_keeps_10_8_million_parameters_outside_the_vocabulary() -> None:
    """The part of tiny that does not depend on the tokenizer is promised too."""
    assert round(costs("tiny").parameters_outside_vocabulary / 1e6, 1) == 10.8


def test_stories_has_the_shape_of_tiny_and_no_code_phase() -> None:
    """`stories` is `tiny` for the language phase alone; `bash-char` has only the code phase."""
    stories = load_run_config("stories")
    assert stories.model == load_run_config("tiny").model
    assert stories.phase_names() == ["language"]
    assert load_run_config("bash-char").phase_names() == ["code"]


def test_code_phase_learns_slower_by_default() -> None:
    """3e-4, then 1e-4: what the code phase starts from must not be washed out."""
    phases = load_run_config("tiny").phases
    assert phases.language is not None and phases.code is not None
    assert (phases.language.learning_rate, phases.code.learning_rate) == (3e-4, 1e-4)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("modle", "model"),
        ("model.n_layer", "n_layers"),
        ("tokenizer", None),
        ("phases.codes", "code"),
        ("phases.code.learning_rat", "learning_rate"),
        ("phases.code.sources.0.weigth", "weight"),
    ],
)
def test_unknown_key_is_named_with_its_nearest_neighbour(key: str, nearest: str | None) -> None:
    """A typing error anywhere names the file, the whole key and the key that was probably meant."""
    values = spoiled("tokenizer", {"typ": "bpe"}) if nearest is None else spoiled(key, 1)
    key, nearest = ("tokenizer.typ", "type") if nearest is None else (key, nearest)
    line = complaint(values)
    assert line.startswith("my.yaml: ") and f"unknown key {key};" in line and f"did you mean {nearest}?" in line


def test_unknown_key_like_no_other_lists_what_is_allowed() -> None:
    """Where no name is near, all that are allowed in that place are listed."""
    line = complaint(spoiled("model.zzz", 1))
    assert "unknown key model.zzz" in line and all(name in line for name in ModelConfig.model_fields)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("model.n_layers", 0, "greater than or equal to 1"),
        ("model.n_layers", "many", "integer"),
        ("model.n_layers", 2.5, "integer"),
        ("model.n_layers", None, "integer"),
        ("model.family", "bert", "'gpt2', 'gpt_neox' or 'llama'"),
        ("model.n_layers", 10**8, "less than or equal to 1000"),
        ("model.d_model", 10**9, "less than or equal to 65536"),
        ("model.context_length", 10**9, "less than or equal to 1048576"),
        ("model.dropout", 1.0, "less than 1"),
        ("model.vocab_size", 65537, "less than or equal to 65536"),
        ("model.context_length", 4, "greater than or equal to 8"),
        ("phases.code.batch_size", 10**9, "less than or equal to 65536"),
        ("phases.code.gradient_accumulation", 10**9, "less than or equal to 65536"),
        ("phases.code.learning_rate", -1, "greater than 0"),
        ("phases.code.learning_rate", "fast", "number"),
        ("phases.code.learning_rate", float("nan"), "finite"),
        ("phases.code.sources", [], "at least 1"),
        ("phases.code.sources", "bash", "tuple"),
        ("phases.code.sources.0.weight", 0, "greater than 0"),
        ("phases.code.sources.0.weight", float("inf"), "finite"),
        ("phases.code.sources.0.name", "a/b", "pattern"),
        ("phases.code.sources.0.bundled", "french", "'english' or 'bash'"),
        ("phases.code.validation_fraction", 0.5, "less than 0.5"),
        ("phases.code.early_stopping", True, "true and false are not allowed"),
        ("phases.code.schedule", "square", "'cosine', 'linear', 'constant' or 'wsd'"),
        ("seed", -1, "greater than or equal to 0"),
        ("precision", "float8", "'bfloat16'"),
        ("gradient_checkpointing", "perhaps", "boolean"),
    ],
)
def test_wrong_value_names_file_key_and_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    """A value of the wrong type or out of range is never taken and never silently changed."""
    line = complaint(spoiled(key, value))
    assert line.startswith(f"my.yaml: {key}: ") and allowed in line


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("phases.code.epochs", 2, "phases.code: give either epochs or steps"),
        ("phases.code.steps", None, "phases.code: give either epochs or steps"),
        ("model.n_heads", 3, "model: d_model 16 is not a multiple of n_heads 3"),
        ("phases.code", None, "phases: needs a language phase, a code phase, or both"),
        ("phases.code.sources.0.bundled", None, "exactly one of hub, path, bundled; it has 0"),
        ("phases.code.sources.0.path", "x.txt", "exactly one of hub, path, bundled; it has 2"),
        ("phases.code.sources.0.prompt_column", "ask", "prompt_column but no text_column"),
        ("phases.code.sources", [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}], "two sources are called 'a'"),
    ],
)
def test_contradictions_are_refused(key: str, value: Any, words: str) -> None:
    """Settings that are each valid but cannot both be meant are refused with the reason."""
    assert words in complaint(spoiled(key, value))


def test_rotary_families_need_an_even_head_width() -> None:
    """Rotary positions turn pairs of numbers; an odd head would fail deep inside the model."""
    values = minimal()
    values["model"] = {"family": "llama", "n_layers": 1, "d_model": 15, "n_heads": 3}
    assert "even head width" in complaint(values)


def test_all_problems_come_at_once() -> None:
    """Three mistakes are told in one go, not one per attempt; missing keys are named too."""
    values = minimal()
    values["model"] = {"n_layers": 0, "n_heads": 2, "colour": "red"}
    line = complaint(values)
    assert "model.n_layers" in line and "key model.d_model is missing" in line and "model.colour" in line


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("phases.code.learning_rate=5e-5", "phases.code.learning_rate", 5e-5),  # YAML 1.1 itself reads 5e-5 as text
        ("phases.code.steps=1e3", "phases.code.steps", 1000),
        ("phases.code.sources.0.weight=2.5", "phases.code.sources.0.weight", 2.5),
        ("phases.code.sources.0.name=other", "phases.code.sources.0.name", "other"),
        ("tokenizer.type=char", "tokenizer.type", "char"),
        ("model.family = llama", "model.family", "llama"),
        ("gradient_checkpointing=true", "gradient_checkpointing", True),
    ],
)
def test_override_sets_any_setting(override: str, key: str, expected: Any) -> None:
    """`--set` reaches every level: numbers as people write them, indexes of lists, sections that the file leaves out."""
    found: Any = build_run_config(minimal(), [override])
    for part in key.split("."):
        found = found[int(part)] if isinstance(found, tuple) else getattr(found, part)
    assert found == expected and type(found) is type(expected)


def test_override_with_null_takes_a_setting_away() -> None:
    """`null` removes a phase; the later override of two wins."""
    config = load_run_config("tiny", ["phases.language=null", "seed=1", "seed=2"])
    assert config.phase_names() == ["code"] and config.seed == 2


def test_override_replaces_a_list_entry() -> None:
    """A whole source can be replaced by an inline mapping."""
    config = build_run_config(minimal(), ["phases.code.sources.0={name: mine, path: x.txt}"])
    assert config.phases.code is not None and config.phases.code.sources[0].path == "x.txt"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("phases.code.learning_rate", "write it as key.path=value"),
        ("=3", "write it as key.path=value"),
        ("phases..code=3", "write it as key.path=value"),
        ("seed=[1", "not valid YAML"),
        ("seed=2001-99-99", "not valid YAML"),
        ("phases.code.learning_rat=1", "did you mean learning_rate?"),
        ("phases.code.steps.more=1", "'steps' is a single value"),
        ("phases.code.sources.3.weight=1", "'3' should be an index from 0 to 0"),
        ("phases.code.sources.first.weight=1", "'first' should be an index"),
        ("phases.code.sources.²=1", "'²' should be an index"),
        ("phases.code.sources.0=bash", "phases.code.sources.0: "),
        ("phases.code.steps=", "epochs or steps"),
        ("phases.code.sources.0.weight=inf", "finite"),
        ("model.vocab_size=65537", "less than or equal to 65536"),
    ],
)
def test_bad_override_is_named(override: str, words: str) -> None:
    """A wrong `--set` says what is wrong with it: syntax, key, index or value."""
    assert words in complaint(minimal(), (override,))


def test_override_into_a_list_of_plain_values_is_refused() -> None:
    """A source written as a bare word has no keys inside to override."""
    values = spoiled("phases.code.sources", ["bash"])
    assert "'0' is a single value" in complaint(values, ("phases.code.sources.0.weight=2",))


@settings(deadline=None)  # a busy machine is no fault
@given(st.text(max_size=30))
def test_no_override_ends_in_a_traceback(override: str) -> None:
    """Whatever stands after `--set`, the answer is settings or a UserError."""
    try:
        build_run_config(minimal(), [override])
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model:\n  n_layers: 2\n bad indent: [\n", "line 3: not valid YAML"),
        (b"model: {a: 1\nphases: 2\n", "not valid YAML"),
        (b"", "holds no settings"),
        (b"- a\n- b\n", "holds no settings"),
        (b"model: \xff\xfe\n", "cannot read"),
        (b"model: \x00\n", "not valid YAML"),
        (b"1: 2\n", "1"),
        (b"seed: 2001-99-99\n", "a value that cannot be read (month must be in 1..12)"),
        (b"seed: " + b"9" * 5000, "a value that cannot be read"),
        (b"seed: !!int many\n", "a value that cannot be read"),
        (b"model: " + b"[" * 100_000, "nested too deeply"),
        (b"model:\n" + b"- " * 100_000, "nested too deeply"),
        (b"\n".join(b" " * level + b"a:" for level in range(1000)), "nested too deeply"),
        (b"seed: 1\nprecision: auto\nseed: 2\n", "line 3: not valid YAML (the key seed comes twice)"),
    ],
)
def test_unreadable_file_gets_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    """Broken YAML names file and line; other content than a mapping says what a config is."""
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_run_config(file)
    assert str(file) in str(caught.value) and words in str(caught.value)


def test_missing_config_suggests_the_nearest(tmp_path: Path) -> None:
    """A misspelt name gets the shipped one nearest to it; a name like none gets the list."""
    with pytest.raises(UserError, match=r"no config file tinny; did you mean tiny\?"):
        find_config("tinny")
    with pytest.raises(UserError, match=r"did you mean small\?"):
        find_config(tmp_path / "smal.yaml")
    with pytest.raises(UserError, match=r"shipped configs: .*nano.*tiny"):
        find_config("qqqqqq")


def test_config_is_found_by_bare_name_and_by_path() -> None:
    """`tiny` and `configs/tiny.yaml` are one file, from any directory."""
    assert find_config("tiny") == find_config(ROOT / "configs" / "tiny.yaml") == ROOT / "configs" / "tiny.yaml"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "tinny"], "did you mean tiny?"),
        (["train", "nano", "--set", "phases.code.learning_rat=1"], "did you mean learning_rate?"),
        (["train", "nano", "--set", "model.vocab_size=70000"], "model.vocab_size"),
        (["prepare", "nano", "--set", "phases.code.epochs=1"], "give either epochs or steps"),
        (["prepare", "nano", "--set", "nonsense"], "key.path=value"),
    ],
)
def test_commands_refuse_bad_settings_with_one_line_and_status_2(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line turns a mistake into one `error:` line and status 2, and has written nothing."""
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and words in printed.err
    assert printed.out == "" and list(tmp_path.iterdir()) == []


def test_the_program_itself_refuses_with_status_2(tmp_path: Path) -> None:
    """The same through a real process: nothing of Python is seen on the way out."""
    command = [sys.executable, "-m", "mlx_codegen", "train", "nano", "--set", "model.n_layer=2"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "unknown key model.n_layer; did you mean n_layers?" in done.stderr and "Traceback" not in done.stderr

"""The house stands as DESIGN.md draws it: imports point one way, the library is silent, help is instant, no dead option."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import tiny_config

from mlx_codegen import config as config_module
from mlx_codegen.config import ModelConfig, Settings
from mlx_codegen.generation.engine import SamplingConfig
from mlx_codegen.model import Transformer
from mlx_codegen.observer import Observer
from mlx_codegen.training.phases import train_run
from mlx_codegen.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlx_codegen"
FILES = sorted(PACKAGE.rglob("*.py"))

# Who may import whom: DESIGN.md's table, read as "this room, only these". Everything may import errors.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "observer": set(),
    "activations": {"exponential"},
    "exponential": set(),
    "cpu_attention": {"exponential"},
    "cpu_loss": {"exponential"},
    "backend": set(),
    "chips": set(),
    "config": set(),
    "machine": {"backend"},
    "tokenizer": {"config"},
    "tokenizer_report": {"tokenizer"},
    "model": {"config", "activations", "exponential", "cpu_attention"},
    "costs": {"config", "model"},
    "scaling": set(),
    "data": {"config", "tokenizer", "observer", "data"},
    "training": {
        "config", "backend", "exponential", "cpu_loss", "model", "tokenizer", "observer", "checkpoint", "data", "hub", "training",
        "costs", "version",
    },
    # Beside the rooms that write checkpoints (training) and read them (generation, hub).
    "checkpoint": {"config", "model", "tokenizer"},
    "generation": {"config", "backend", "model", "tokenizer", "checkpoint", "hub", "generation"},
    "hub": {"config", "version", "model", "tokenizer", "checkpoint", "data", "hub"},
    "evaluation": {
        "config", "backend", "model", "tokenizer", "observer", "checkpoint", "data", "training", "generation", "evaluation",
        "hub", "costs",
    },
    "serve": {"config", "generation", "hub", "serve"},
    "inspect": {"config", "model", "tokenizer", "generation", "inspect"},
    # The package itself: `mlx_codegen.load`, and the fast BLAS before anything else.
    "__init__": {"backend", "version", "generation"},
    "__main__": {"cli"},
}  # fmt: skip


def module_name(file: Path) -> str:
    """`training.step` for mlx_codegen/training/step.py; a package's own file is the package."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts if len(parts) == 1 or parts[-1] != "__init__" else parts[:-1])


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, at the top or inside functions; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("file", [file for file in FILES if not file.is_relative_to(PACKAGE / "cli")], ids=module_name)
def test_imports_point_one_way(file: Path) -> None:
    """Nothing on the left imports anything on its right, and nothing imports the command line."""
    name = module_name(file)
    room = name.partition(".")[0]
    assert room in ALLOWED, f"{file.name} is a new room: give it a line in this table and in DESIGN.md"
    ours = {module.removeprefix("mlx_codegen.") for module in imports(file) if module.startswith("mlx_codegen.")}
    wrong = {module for module in ours if not within(module, ALLOWED[room] | {"errors"})}
    assert not wrong, f"{name} may not import {wrong}"


def test_the_library_neither_prints_nor_parses_arguments() -> None:
    """Only cli/ knows terminals: everything else reports through observers and errors."""
    for file in FILES:
        if file.is_relative_to(PACKAGE / "cli"):
            continue
        roots = {module.partition(".")[0] for module in imports(file)}
        assert not roots & {"rich", "typer", "click", "argparse", "logging"}, file
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id in ("print", "input")), f"{file}: line {node.lineno}"  # type: ignore[attr-defined]


def test_no_pickle_anywhere() -> None:
    """Files of ours are safetensors, JSON, YAML and plain arrays: opening one never runs code."""
    for file in FILES:
        assert not {"pickle", "dill", "cloudpickle", "joblib", "torch", "shelve"} & {m.partition(".")[0] for m in imports(file)}
        assert "allow_pickle" not in file.read_text(encoding="utf-8")


HEAVY = ("mlx", "transformers", "datasets", "mlx_lm", "sentencepiece", "numpy", "pyarrow", "safetensors")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["generate", "--help"], ["--version"]], ids=" ".join)
def test_help_is_instant(arguments: list[str]) -> None:
    """Help and version import nothing heavy, and one wrong import at the top of a file is enough to lose that."""
    code = (
        "import sys\nfrom mlx_codegen.cli.main import run\n"
        f"status = run({arguments!r})\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_generation_does_not_import_transformers(tmp_path: Path) -> None:
    """A command that should answer at once must not wait for libraries that it does not use."""
    code = (
        "import sys, mlx_codegen\nfrom mlx_codegen.generation import engine\n"
        "print([name for name in ('transformers', 'datasets', 'mlx_lm', 'torch', 'rich') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def settings_classes() -> list[type[Settings]]:
    classes = [value for value in vars(config_module).values() if isinstance(value, type) and issubclass(value, Settings)]
    return [*[each for each in classes if each is not Settings], SamplingConfig]


def test_every_config_field_is_read_somewhere() -> None:
    """A setting that nobody reads is a promise that nobody keeps: each field's name is an attribute read in the package."""
    read = {
        node.attr
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    for settings in settings_classes():
        unread = set(settings.model_fields) - read
        assert not unread, f"{settings.__name__}: {unread}"


def test_training_reads_every_field_of_model_tokenizer_phase_and_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same watched while it happens: a fresh run asks for each of these settings itself."""
    settings = ("phases.code.steps=null", "phases.code.epochs=0.01", "phases.code.schedule=wsd", "phases.code.optimizer=muon")
    config = tiny_config("phases.language=null", "seed=4", *settings)
    read: set[tuple[str, str]] = set()
    original = Settings.__getattribute__

    def watch(self: Settings, name: str) -> object:
        read.add((type(self).__name__, name))
        return original(self, name)

    monkeypatch.setattr(Settings, "__getattribute__", watch)
    run.tokenizer_inputs_file.unlink()  # so that the tokenizer is made anew
    train_run(run, config, ["code"], Observer())
    Transformer(ModelConfig(family="llama", n_layers=1, d_model=8, n_heads=1))  # rotary positions have a setting of their own
    for name in ("ModelConfig", "TokenizerConfig", "PhaseConfig", "PhasesConfig", "RunConfig"):
        fields = set(getattr(config_module, name).model_fields)
        missing = fields - {field for owner, field in read if owner == name}
        assert not missing, f"{name}: {missing}"


def test_no_file_is_called_utils() -> None:
    """STYLE.md: one idea per file, named after it."""
    assert not [file for file in FILES if file.stem in ("utils", "util", "helpers", "common", "misc")]

"""Documents that are made from the code say what the code says."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_config_reference_is_up_to_date() -> None:
    """A field added or changed without `python docs/make_config_reference.py` is noticed."""
    spec = importlib.util.spec_from_file_location("make_config_reference", ROOT / "docs" / "make_config_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "CONFIG.md").read_text(encoding="utf-8") == module.reference()


def test_readme_names_only_commands_and_files_that_exist() -> None:
    """Every `mlx-codegen COMMAND`, `make TARGET` and repository path in the README is there."""
    from mlx_codegen.cli.main import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    commands = {name.replace("_", "-") for name in commands}
    commands |= {str(group.name) for group in app.registered_groups}
    assert set(re.findall(r"mlx-codegen ([a-z][a-z-]*)", readme)) <= commands
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", readme)) <= targets
    for path in re.findall(r"\]\(([a-zA-Z0-9_./-]+)\)", readme):
        assert (ROOT / path).exists(), path

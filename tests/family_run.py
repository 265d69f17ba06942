"""Small trained models of all three families, made once each (a plugin of conftest.py)."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tiny_run import Recorder, tiny_config

from mlx_codegen.training.phases import RunFolder, train_run

FAMILIES = ("gpt2", "gpt_neox", "llama")
# Wide enough to be quantised; a window with room for a prompt and an answer.
SHAPE = ("model.d_model=64", "model.context_length=128", "model.dropout=0", "phases.language=null")
TRAINING = ("phases.code.steps=20", "phases.code.batch_size=2")


@pytest.fixture(scope="session")
def trained_family(prepared_run: Path) -> Callable[[str], Path]:
    """The best checkpoint of a family. To be read, not changed."""

    @cache
    def train(family: str) -> Path:
        folder = RunFolder(prepared_run.with_name(family))
        shutil.copytree(prepared_run, folder.path)
        config = tiny_config(f"model.family={family}", f"model.bias={str(family != 'gpt2').lower()}", *SHAPE, *TRAINING)
        assert train_run(folder, config, ["code"], Recorder()) == "finished"
        return folder.checkpoint("code", "best")

    return train

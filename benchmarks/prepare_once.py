"""One measurement of prepare in a process of its own: `prepare.py` starts it.

Prints nothing; writes JSON to the file that it is given: `steps` (bytes of text and seconds of each pass) and the memory.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from children import resident_bytes

from mlx_codegen.config import PhaseConfig, SourceConfig
from mlx_codegen.data.prepare import prepare_phase
from mlx_codegen.tokenizer import Tokenizer

BUNDLED_DOCUMENTS_PER_SECOND = 2000


def source(what: str, folder: Path, seconds: float) -> SourceConfig:
    """The text of a measurement: a file, or as many bundled scripts as fit the time."""
    if what == "bundled":
        return SourceConfig(name="bash", bundled="bash", max_documents=max(100, int(seconds * BUNDLED_DOCUMENTS_PER_SECOND)))
    return SourceConfig(name="text", path=str(folder / f"{what}.jsonl"))


def measure(what: str, folder: Path, seconds: float) -> list[tuple[int, float]]:
    """Passes until the time is over, at least one, each into a new folder."""
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    phase = PhaseConfig(sources=(source(what, folder, seconds),), steps=1, learning_rate=1e-3)
    passes: list[tuple[int, float]] = []
    while not passes or sum(duration for _, duration in passes) < seconds:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            start = time.perf_counter()
            manifest = prepare_phase(Path(name) / "data", phase, tokenizer, seed=0)
            passes.append((text_bytes(manifest), time.perf_counter() - start))
    return passes


def text_bytes(manifest: dict[str, Any]) -> int:
    """Bytes of text in all token files."""
    counts = [source["counts"][split] for source in manifest["sources"] for split in ("train", "validation")]
    return sum(int(each["text_bytes"]) for each in counts)


def main() -> None:
    """Measure one origin of text; see prepare.py."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("what", choices=("text", "quarter", "bundled"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    result = {"steps": measure(options.what, options.folder, options.seconds), "resident_bytes": resident_bytes()}
    options.output.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Are the token files still what was prepared? A position in other files means nothing, and changed ones teach nonsense.

At every start: files of up to 512 MB together are hashed whole (a second at most). Of larger ones only size and time of
change are looked at, once they have been hashed whole where they lie: hashing 50 GB at every start would take minutes.
What that cannot see is a disk that flips bits of large files without a word.
While training, before each checkpoint: sizes and times, so that nothing learnt from changed files is saved.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlx_codegen.errors import UserError

ALWAYS_HASHED_BYTES = 512 * 10**6
CHECKED_FILE = "checked.json"
Stamps = dict[str, list[int]]


def check_token_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises UserError naming a token file whose content is not what the manifest says."""
    stamps = token_stamps(folder, manifest)
    if sum(size for size, _ in stamps.values()) > ALWAYS_HASHED_BYTES and _checked_before(folder) == stamps:
        return
    for name, expected in _hashes(manifest):
        if expected and _sha256(folder / name) != expected:
            raise UserError(
                f"{folder / name} changed since it was prepared; put the old file back, or remove {folder} and start "
                "another run with --name"
            )
    if sum(size for size, _ in stamps.values()) > ALWAYS_HASHED_BYTES:
        (folder / CHECKED_FILE).write_text(json.dumps(stamps), encoding="utf-8")


def unchanged_check(folder: Path, manifest: dict[str, Any]) -> Callable[[], None]:
    """A function that raises UserError once a token file is not the one of this moment any more."""
    before = token_stamps(folder, manifest)

    def check() -> None:
        now = token_stamps(folder, manifest)
        for name, stamp in before.items():
            if now[name] != stamp:
                raise UserError(
                    f"{folder / name} changed while it was trained on; the checkpoints are from before; "
                    "put the old file back and use --resume"
                )

    return check


def token_stamps(folder: Path, manifest: dict[str, Any]) -> Stamps:
    """Size in bytes and time of change in nanoseconds of each token file; zeros for one that is gone."""
    stamps: Stamps = {}
    for name, _ in _hashes(manifest):
        try:
            status = (folder / name).stat()
            stamps[name] = [status.st_size, status.st_mtime_ns]
        except OSError:
            stamps[name] = [0, 0]
    return stamps


def _hashes(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each token file's name and SHA-256, empty where the manifest (of an older version) has none."""
    for source in manifest["sources"]:
        for split, counts in sorted(source["counts"].items()):
            if split in ("train", "validation"):
                yield f"{source['name']}-{split}.bin", counts["sha256"]
                yield f"{source['name']}-{split}.idx", counts.get("index_sha256", "")


def _checked_before(folder: Path) -> Stamps | None:
    try:
        stamps: Stamps = json.loads((folder / CHECKED_FILE).read_text(encoding="utf-8"))
        return stamps
    except (OSError, ValueError):
        return None


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        raise UserError(f"{file} is gone; put it back, or start another run with --name") from None
    return digest.hexdigest()

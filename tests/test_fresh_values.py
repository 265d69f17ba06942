"""Values that a request and its command share are replaced on both sides alike, and nothing else is."""

import json
import random
import subprocess
from pathlib import Path

import pytest
from tiny_run import phase_settings, tiny_tokenizer

from mlx_codegen.config import SourceConfig
from mlx_codegen.data.fresh_values import other_manner, shared_values, with_fresh_values
from mlx_codegen.data.prepare import prepare_phase
from mlx_codegen.data.sources import read_documents, read_split_documents
from mlx_codegen.data.tasks import load_words
from mlx_codegen.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
WORDS = load_words(ROOT / "data" / "bash")
NL2BASH = ROOT.parent / "shared" / "data" / "nl2bash.jsonl"
needs_nl2bash = pytest.mark.skipif(not NL2BASH.exists(), reason="the shared data is not here")

SHARED = {
    ("Find *.log files in /var/log/nginx", "find /var/log/nginx -name '*.log'"): {"/var/log/nginx", "log"},
    ("Search src/app for main.py", "find src/app -name main.py"): {"src/app", "main.py"},
    ('Count lines with "timeout" in app.log', "grep -c timeout app.log"): {"timeout", "app.log"},
    ("Ping 10.0.0.7", "ping -c 3 10.0.0.7"): {"10.0.0.7"},
    ("Fetch https://example.org/a.html", "curl -O https://example.org/a.html"): {"https://example.org/a.html"},
    ("Mail the report to ann@example.org", "mail -s report ann@example.org < r.txt"): {"ann@example.org"},
    ("Files owned by user mary", "find . -user mary"): {"mary"},
}


@pytest.mark.parametrize("pair", SHARED, ids=lambda pair: pair[0])
def test_values_are_found(pair: tuple[str, str]) -> None:
    """Paths, file names, extensions, addresses, quoted and named words."""
    assert {value.text for value in shared_values(*pair, WORDS)} == SHARED[pair]


@pytest.mark.parametrize("pair", SHARED, ids=lambda pair: pair[0])
def test_values_are_replaced_on_both_sides(pair: tuple[str, str]) -> None:
    """The fresh value of the prompt is that of the command, and the old one is gone from both."""
    prompt, command = with_fresh_values(*pair, WORDS, random.Random(1))
    for old in SHARED[pair]:
        assert f" {old} " not in f" {prompt} " and f" {old} " not in f" {command} "
    fresh = {value.text for value in shared_values(prompt, command, WORDS)}
    assert len(fresh) == len(SHARED[pair]) and not fresh & SHARED[pair]


UNTOUCHED = [
    ("Discard all output", "make > /dev/null 2>&1"),
    ("Send errors to /dev/null", "make 2> /dev/null"),
    ("Show the password file", "cat /etc/passwd"),
    ("List files", "ls -la"),
    ("Find files with the find command", "find . -type f"),
    ('Run "grep" on the log', "grep x app.log"),
    ("Files older than 5 days", "find . -mtime +4"),
    ("Files larger than 5 MB", "find . -size +5242880c"),
    ("Start at /", "find / -name core"),
    ("Files that are newer", "find . -newer that"),
]


@pytest.mark.parametrize("pair", UNTOUCHED, ids=lambda pair: pair[0])
def test_what_carries_meaning_stays(pair: tuple[str, str]) -> None:
    """Devices, utilities, options, derived numbers and what only words speak of."""
    assert all(with_fresh_values(*pair, WORDS, random.Random(seed)) == pair for seed in range(20))


def test_numbers_keep_size_order_and_form() -> None:
    """Between 3 and 12 days stays a range; a mode stays a mode; a version and an address are no numbers."""
    for seed in range(30):
        rng = random.Random(seed)
        prompt, command = with_fresh_values("Changed between 3 and 12 days ago", "find . -mtime +3 -mtime -12", WORDS, rng)
        low, high = (int(word) for word in prompt.split() if word.isdigit())
        assert 1 < low < 10 <= high < 100 and command == f"find . -mtime +{low} -mtime -{high}"
        prompt, command = with_fresh_values("Set mode 644 on all", "chmod 644 *", WORDS, rng)
        assert not set(command.split()[1]) - set("01234567") and command.split()[1] in prompt
        pair = ("Use python3.11 and release 2.4.1", "python3.11 run.py 2.4.1")
        assert with_fresh_values(*pair, WORDS, rng) == pair


def test_paths_keep_their_kind() -> None:
    """Absolute stays absolute, a file keeps its extension, a folder written with a slash keeps it."""
    for seed in range(30):
        rng = random.Random(seed)
        prompt, command = with_fresh_values(
            "Copy /etc/app/my.conf into backup/old/", "cp /etc/app/my.conf backup/old/", WORDS, rng
        )
        source, target = command.split()[1:]
        assert source.startswith("/") and source.endswith(".conf") and source != "/etc/app/my.conf"
        assert not target.startswith("/") and target.endswith("/") and target != "backup/old/"
        assert prompt == f"Copy {source} into {target}"


def test_same_seed_same_pair() -> None:
    """A run can be repeated."""
    pair = next(iter(SHARED))
    first, again, other = (with_fresh_values(*pair, WORDS, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_manner_varies_and_the_words_stay() -> None:
    """Capital and stop change, nothing else; a name in capitals is no capital at the start."""
    forms = {other_manner("List all files", random.Random(seed)) for seed in range(60)}
    assert forms == {"List all files", "list all files", "List all files.", "list all files."}
    assert all(other_manner("SSH into a host?", random.Random(seed)) == "SSH into a host?" for seed in range(60))


@needs_nl2bash
def test_replaced_commands_still_parse() -> None:
    """Three hundred real commands with fresh values pass `bash -n`, and most pairs with values are changed."""
    pairs = [json.loads(line) for line in NL2BASH.read_text(encoding="utf-8").splitlines()[::41]]
    rng = random.Random(0)
    changed = 0
    for pair in pairs:
        prompt, command = with_fresh_values(pair["prompt"], pair["command"], WORDS, rng)
        changed += (prompt, command) != (pair["prompt"], pair["command"])
        done = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (pair["command"], command)
    assert 0.4 * len(pairs) < changed < 0.8 * len(pairs)


def source_of(folder: Path, **settings: object) -> SourceConfig:
    pairs = [{"prompt": f"Print line 1{n} of /srv/a{n}/b.txt", "command": f"sed -n 1{n}p /srv/a{n}/b.txt"} for n in range(60)]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return SourceConfig.model_validate({"name": "pairs", "path": str(file), **settings})


def test_source_writes_versions(tmp_path: Path) -> None:
    """Each pair as it is and three times with other values; the same seed gives the same; a share stays as it is."""
    plain = list(read_documents(source_of(tmp_path)))
    source = source_of(tmp_path, fresh_values=1.0, versions=3)
    documents = list(read_documents(source, seed=1))
    assert documents[::4] == plain and len(set(documents)) == 4 * len(plain)
    assert documents == list(read_documents(source, seed=1)) != list(read_documents(source, seed=2))
    half = list(read_documents(source_of(tmp_path, fresh_values=0.5, versions=3)))
    kept = sum("/srv/a" in document for document in half) - len(plain)
    assert 50 < kept < 130, "of 180 versions about half keep the pair's values"


def test_versions_go_where_their_pair_goes(tmp_path: Path, run: RunFolder) -> None:
    """No version of a validation pair is trained on, and validation holds the pairs as they are."""
    source = source_of(tmp_path, fresh_values=1.0, versions=3)
    origins = {document.origin for document in read_split_documents(source)}
    assert origins == set(read_documents(source_of(tmp_path)))
    phase = phase_settings(sources=(source,), validation_fraction=0.2)
    counts = prepare_phase(tmp_path / "out", phase, tiny_tokenizer(run), seed=0)["sources"][0]["counts"]
    validation, train = counts["validation"]["documents"], counts["train"]["documents"]
    assert 3 < validation < 30 and train == 4 * (60 - validation)

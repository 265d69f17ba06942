"""The probes measure what a model has read out of the context: whoever knows passes all, whoever does not is at chance."""

import math
from pathlib import Path

import mlx.core as mx
import pytest
from knowing_model import knowing_engine
from tiny_run import TrainedRun, tiny_tokenizer

import mlx_codegen
from mlx_codegen.cli.main import run as command_line
from mlx_codegen.config import ModelConfig
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.probes import Probe, ask, load_probes, probe_figures, shows_it
from mlx_codegen.generation.engine import Engine
from mlx_codegen.model import Transformer
from mlx_codegen.tokenizer import Tokenizer
from mlx_codegen.training.run_folder import RunFolder

PROBES = load_probes()
KINDS = list(dict.fromkeys(probe.kind for probe in PROBES))


@pytest.fixture(scope="module")
def tokenizer(prepared_run: Path) -> Tokenizer:
    return tiny_tokenizer(RunFolder(prepared_run))


def of_kind(kind: str) -> list[Probe]:
    return [probe for probe in PROBES if probe.kind == kind]


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_is_passed_without_reading_the_context(kind: str) -> None:
    """Neither the shortest nor the longest continuation is right more often than not; they are of similar length."""
    probes = of_kind(kind)
    assert len(probes) >= 12 and len({probe.context for probe in probes}) == len(probes)
    for sign in (1, -1):
        right = [sign * len(probe.right) < min(sign * len(wrong) for wrong in probe.wrong) for probe in probes]
        assert sum(right) <= 0.5 * len(probes)
    for probe in probes:
        lengths = [len(text.strip()) for text in (probe.right, *probe.wrong)]
        assert max(lengths) <= 1.5 * min(lengths) + 4, probe


@pytest.mark.parametrize("kind", ["brackets", "quotes", "keywords", "block ends"])
def test_no_order_of_preference_passes_a_kind(kind: str) -> None:
    """A model that likes `fi` better than `done`, wherever it is, does not know when a block is over."""
    probes = of_kind(kind)
    balance: dict[str, float] = {}
    for probe in probes:
        balance[probe.right] = balance.get(probe.right, 0) + 1
        for wrong in probe.wrong:
            balance[wrong] = balance.get(wrong, 0) - 1 / len(probe.wrong)
    passed = [balance[probe.right] > max(balance[wrong] for wrong in probe.wrong) for probe in probes]
    assert sum(passed) <= 0.4 * len(probes)


def test_a_model_that_knows_the_answers_scores_full_marks(tokenizer: Tokenizer) -> None:
    """Both ways of asking, whatever tokens the boundary of context and continuation cuts."""
    engine = knowing_engine(tokenizer, [probe.texts[0] for probe in PROBES])
    figures = probe_figures(PROBES, ask(engine, PROBES)).figures
    assert {name: figure.value for name, figure in figures.items()} == dict.fromkeys(figures, 1.0)
    assert figures["likelihood, all kinds"].samples == len(PROBES) and len(figures) == 2 * (len(KINDS) + 1)


def test_a_model_that_knows_the_wrong_answers_scores_nothing(tokenizer: Tokenizer) -> None:
    """The same knowledge of the first wrong continuation of each."""
    engine = knowing_engine(tokenizer, [probe.texts[1] for probe in PROBES])
    figures = probe_figures(PROBES, ask(engine, PROBES)).figures
    assert figures["likelihood, all kinds"].value == 0.0 and figures["writing, all kinds"].value <= 0.05


def test_models_that_know_nothing_are_at_chance(tokenizer: Tokenizer) -> None:
    """Random weights, and no preference at all."""
    mx.random.seed(0)
    shape = ModelConfig(n_layers=1, d_model=16, n_heads=2, vocab_size=tokenizer.vocab_size, context_length=256)
    for engine in (Engine(Transformer(shape), tokenizer), knowing_engine(tokenizer, [])):
        result = probe_figures(PROBES, ask(engine, PROBES))
        assert result.figures["likelihood, all kinds"].value < 0.45, "chance is 31 %"
        assert result.figures["writing, all kinds"].value < 0.05
    assert result.notes == ["whoever guesses is right in 31% of the likelihoods"]


def test_likelihoods_are_those_of_the_whole_text_token_by_token(trained_run: TrainedRun) -> None:
    """Against one text at a time through the plain model, from the first token that differs.

    A context that ends within a word is no cut between tokens; batches and padding change nothing.
    """
    engine = mlx_codegen.load(trained_run.folder.path)
    probes = [
        Probe("", "begins", "if tru", "e; then\n", ("e; do\n",), ""),
        Probe("", "begins", "for file in a b c; d", "o echo\n", ("one\n", "own\n", "\n"), ""),
        Probe("", "begins", "ech", "o 'a'\n", ('o "a"\n',), ""),
    ]
    encode = engine.tokenizer.encode
    assert any(encode(p.texts[0]) != encode(p.context) + encode(p.right) for p in probes), "else this shows nothing"
    for probe, answer in zip(probes, ask(engine, probes), strict=True):
        rows = [encode(text) for text in probe.texts]
        shared = next(place for place, ids in enumerate(zip(*rows, strict=False)) if len(set(ids)) > 1)
        assert answer.likelihoods == pytest.approx([_log_probability(engine, ids, shared) for ids in rows], abs=1e-3)


def _log_probability(engine: Engine, ids: list[int], start: int) -> float:
    logits = engine.model(mx.array([[engine.tokenizer.end_of_text_id, *ids]]))[0]
    logprobs = (logits - mx.logsumexp(logits, axis=-1, keepdims=True)).tolist()
    return math.fsum(logprobs[place][ids[place]] for place in range(start, len(ids)))


def test_a_probe_longer_than_the_window_is_not_passed(trained_run: TrainedRun) -> None:
    """Half of an `if` block is no question about `if` blocks."""
    engine = mlx_codegen.load(trained_run.folder.path)
    short = Probe("tiny", "begins", "a b", " c\n", (" d\n",), " c")
    long = Probe("tiny", "begins", "a b " * 40, "c\n", ("d\n",), "c")
    answers = ask(engine, [long, short])
    assert (answers[0].likelihoods, answers[0].written, answers[0].preferred) == ([], "", False)
    assert len(answers[1].likelihoods) == 2 and answers[1].written
    assert "1 of 2 probes are longer than the model's window and count as failed" in probe_figures([long, short], answers).notes


@pytest.mark.parametrize(
    ("kind", "right", "shows", "good", "bad"),
    [
        ("keywords", " do\n", "do", [" do\n    echo", "do"], [" done", " then\ndo", ""]),
        ("brackets", " ]; then\n", "]", [" ]; then", ' -a -d "$x" ]'], [" ]]; then", "\n]", " then"]),
        ("sequences", " 1\n", " 1", [" 1", " 1; do"], [" 10", " 21", "\n 1"]),
        (
            "block ends",
            "    fi\n",
            "    fi",
            ["    fi\n", "    echo a\n        done\n    fi\nfi"],
            ["fi\n    fi", "    done\n    fi"],
        ),
        ("indentation", "    rm x\n", "    rm x", ["    echo a\n", "    :"], ["rm x", "\trm x", "        rm x", "    \n", "\n"]),
    ],
)
def test_free_writing_must_show_the_right_thing_in_its_place(
    kind: str, right: str, shows: str, good: list[str], bad: list[str]
) -> None:
    """Whole words and signs, in the line where they belong, before anything that closes the wrong block."""
    probe = Probe(kind, of_kind(kind)[0].place, "x", right, ("    done\n",), shows)
    assert [shows_it(probe, text) for text in (*good, *bad)] == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kinds: {}", "kinds: Dictionary should have at least 1 item"),
        ("kinds: {a: {place: middle, probes: []}}", "kinds.a.place: Input should be 'begins'"),
        ("kinds: {a: {place: begins, probes: [{context: x, right: ab, wrong: [a]}]}}", "'a' is the beginning of 'ab'"),
        ("kinds: {a: {place: begins, probes: [{context: x, right: a, wrong: [b], shows: c}]}}", "does not show 'c'"),
        ("kinds: {a: {place: begins, probes: [{context: x, right: a, wrong: []}]}}", "kinds.a.probes.0.wrong: "),
        ("kinds: {a: {place: begins, probes: [{context: x, rigth: a, wrong: [b]}]}}", "kinds.a.probes.0.right: Field required"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    """File, key and what is wrong."""
    file = tmp_path / "probes.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_probes(file)
    assert str(caught.value).startswith(f"{file}: ") and message in str(caught.value) and "\n" not in str(caught.value)


def test_readme_counts_the_probes() -> None:
    """What data/README.md says is what the file holds."""
    readme = (Path(__file__).parents[1] / "data" / "README.md").read_text(encoding="utf-8")
    assert f"{len(PROBES)} probes of {len(KINDS)} kinds" in readme


def test_evaluate_command_asks_the_probes(trained_run: TrainedRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A table with both ways of asking; a window of 32 tokens holds few probes, and the note says so."""
    arguments = ["evaluate", str(trained_run.folder.path), "--only", "probes", "--output", str(tmp_path)]
    assert command_line(arguments) == 0
    shown = capfd.readouterr().out
    assert "likelihood, quotes" in shown and "writing, quotes" in shown and "longer than the model's window" in shown
    assert (tmp_path / "report.json").exists()


def test_a_report_that_cannot_be_written_is_found_out_before_measuring(
    trained_run: TrainedRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not after hours of it: no table is shown."""
    (tmp_path / "taken").write_text("mine")
    arguments = ["evaluate", str(trained_run.folder.path), "--only", "probes", "--output", str(tmp_path / "taken")]
    assert command_line(arguments) == 2
    captured = capfd.readouterr()
    assert "taken: File exists" in captured.err and captured.out == ""

"""What a model is compared with: the 3-gram model counts right, and both baselines are measured as models are."""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import TrainedRun, tiny_config

import mlx_codegen
from mlx_codegen.config import ModelConfig
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation import ngram
from mlx_codegen.evaluation.baselines import measure_baseline, read_stored, store, three_gram, untrained
from mlx_codegen.evaluation.compare import StoredReport, compare
from mlx_codegen.evaluation.context import Context, Settings
from mlx_codegen.evaluation.ngram import NgramModel
from mlx_codegen.evaluation.report import Report, evaluate
from mlx_codegen.evaluation.report_files import stored, write_report
from mlx_codegen.evaluation.run_facts import kept_checkpoints, run_facts
from mlx_codegen.evaluation.sliding_window import document_losses
from mlx_codegen.generation.engine import Engine
from mlx_codegen.training.run_folder import RunFolder

END = 0
CONFIG = ModelConfig(vocab_size=5, context_length=16, d_model=8, n_heads=1, n_layers=1)


def model_of(*documents: list[int]) -> NgramModel:
    stream = np.array([token for document in documents for token in [*document, END]], np.uint16)
    return NgramModel(CONFIG, [stream], END)


def slow_chances(documents: list[list[int]], V: int) -> dict[tuple[int, int], list[float]]:
    """Interpolated Kneser-Ney as it stands in the books, with dictionaries."""
    seen: Counter[tuple[int, ...]] = Counter()
    for document in documents:
        text = [END, END, *document, END]
        seen.update(zip(text, text[1:], text[2:], strict=False))
    orders: list[Counter[tuple[int, ...]]] = [seen]
    for _ in range(2):
        orders.append(Counter(gram[1:] for gram in orders[-1]))

    def chance(context: tuple[int, ...], token: int, order: int) -> float:
        if order == 3:
            return 1 / V
        counts = orders[order]
        once, twice = (sum(number == times for number in counts.values()) for times in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        followers = {gram[-1]: number for gram, number in counts.items() if gram[:-1] == context}
        lower = chance(context[1:], token, order + 1)
        if not followers:
            return lower
        total = sum(followers.values())
        kept = max(followers.get(token, 0) - discount, 0.0) if token in followers else 0.0
        return kept / total + discount * len(followers) / total * lower

    return {(u, v): [chance((u, v), token, 0) for token in range(V)] for u in range(V) for v in range(V)}


def test_chances_equal_a_count_by_hand() -> None:
    """a b c, a b c, a b d: after `a b` come c twice and d once.

    3-grams: (0 0 a) 3, (0 a b) 3, (a b c) 2, (a b d) 1, (b c 0) 2, (b d 0) 1: two were seen once, two twice, so the
    discount is 2 / (2 + 2·2) = 1/3. Below, every pair followed one different token, so all six pairs were seen once,
    none twice: discount 1/2. Below that, a, b, c and d each followed one token and the end followed two (c and d):
    discount 4 / (4 + 2·1) = 2/3 of 6 kinds in all.
    """
    a, b, c, d = 1, 2, 3, 4
    model = model_of([a, b, c], [a, b, c], [a, b, d])
    left_over = 2 / 3 * 5 / 6
    single_c = (1 - 2 / 3) / 6 + left_over / 5
    pair_c = (1 - 1 / 2) / 2 + (1 / 2 * 2 / 2) * single_c
    triple_c = (2 - 1 / 3) / 3 + (1 / 3 * 2 / 3) * pair_c
    chances = model.probabilities(np.array([[a, b]]))[0]
    assert chances[c] == pytest.approx(triple_c)
    assert chances[c] > chances[d] > chances[a] > 0


@given(st.lists(st.lists(st.integers(1, 4), max_size=8), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_chances_equal_the_formula_and_sum_to_one(documents: list[list[int]]) -> None:
    """For every context, seen or not, against a second program that is slow and plain."""
    pairs = np.array([[u, v] for u in range(5) for v in range(5)])
    chances = model_of(*documents).probabilities(pairs)
    assert chances.sum(axis=1) == pytest.approx(np.ones(25), abs=1e-5)
    expected = slow_chances(documents, 5)
    for (u, v), row in zip(pairs.tolist(), chances, strict=True):
        if v != END or u == END:  # before an end-of-text stands nothing that matters
            assert row == pytest.approx(expected[u, v], abs=1e-5)


def test_counting_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus larger than memory is counted piece by piece; 3-grams across two pieces count, too."""
    stream = np.random.default_rng(0).integers(0, 5, 500).astype(np.uint16)
    whole = ngram.count([stream], 5, END)
    monkeypatch.setattr(ngram, "TOKENS_AT_ONCE", 7)
    parts = ngram.count([stream], 5, END)
    assert (whole[0] == parts[0]).all() and (whole[1] == parts[1]).all() and whole[1].sum() == 500


def test_cache_gives_what_the_whole_text_gives() -> None:
    """Token by token with the token before remembered, as in writing; rows padded on the left, too."""
    model = model_of([1, 2, 3, 1, 2, 4], [2, 2, 1], [3, 1, 2])
    tokens = mx.array([[0, 1, 2, 3, 1, 2, 4]])
    cache = [ngram.KVCache(16)]
    steps = [model(tokens[:, :3], cache), *(model(tokens[:, place : place + 1], cache) for place in range(3, 7))]
    assert mx.allclose(mx.concatenate(steps, axis=1), model(tokens))
    padded = mx.array([[0, 0, 1, 2], [0, 1, 2, 3]])
    hidden = model.hidden_states(padded, [ngram.KVCache(16)], mx.array([1, 0]))
    assert mx.allclose(model.logits(hidden)[0, -1], model(mx.array([[0, 1, 2]]))[0, -1])


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        NgramModel(CONFIG, [np.zeros(0, np.uint16)], END)


def validation_loss(engine: Engine, run: RunFolder) -> float:
    tokens = np.fromfile(run.data("code") / "bash-validation.bin", "<u2")
    ends = np.flatnonzero(tokens == engine.tokenizer.end_of_text_id) + 1
    documents = [part.tolist() for part in np.split(tokens, ends)[:-1]]
    return float(np.concatenate(document_losses(engine.model, documents, engine.tokenizer.end_of_text_id)).mean())


def test_counting_beats_random_weights_on_unseen_text(trained_run: TrainedRun) -> None:
    """And random weights know as much as a fair die: the logarithm of the vocabulary."""
    file = trained_run.folder.checkpoint("code", "best")
    random_weights, counted = untrained(file)[0], three_gram(file)[0]
    random_loss = validation_loss(random_weights, trained_run.folder)
    assert random_loss == pytest.approx(np.log(random_weights.tokenizer.vocab_size), abs=0.2)
    assert validation_loss(counted, trained_run.folder) < 0.8 * random_loss


def test_a_3_gram_model_writes_as_any_model_does(trained_run: TrainedRun) -> None:
    """Side by side as alone, longer than its window, and from the chances that it is measured by."""
    engine, words = three_gram(trained_run.folder.checkpoint("code", "best"))
    assert words.startswith("3-gram: ") and "tokens" in words
    together = engine.complete(["Say hi", "List all files"], [1, 2], max_tokens=80)
    alone = engine.complete(["List all files"], [2], max_tokens=80)
    assert together[1] == alone[0] and together[0].answer
    counts: defaultdict[bool, int] = defaultdict(int)
    for seed in range(20):
        (text,) = engine.complete(["Say hi"], [seed], temperature=1.0, top_k=0, top_p=1.0, max_tokens=60)
        counts[text.ended] += 1
    assert counts[True] > 0, "it learned where documents end"


def measure(engine: Engine, settings: Settings) -> Report:
    return evaluate(Context(engine, [], settings))


def test_baselines_are_measured_on_what_the_run_holds_out(trained_run: TrainedRun) -> None:
    """The same texts as the run's own; what cannot be asked of a baseline is in the report with its reason."""
    file = trained_run.folder.checkpoint("code", "best")
    asked = Settings(parts=("probes", "bilingual"))
    own = measure(mlx_codegen.load(file), replace(asked, parts=("probes",)))
    counted = measure_baseline("3-gram", file, asked, measure)
    assert counted.model.startswith("3-gram: ") and counted.settings == asked
    probes, bilingual = counted.parts
    assert probes.figures.keys() == own.parts[0].figures.keys()
    assert not bilingual.figures and bilingual.notes[0].startswith("left out: ")
    rows = compare(["own", "3-gram"], [stored(own), stored(counted)]).rows
    assert all(change is not None for row in rows for change in row.changes[1:])


def test_stored_baselines_are_read_again_without_single_prompts(trained_run: TrainedRun, tmp_path: Path) -> None:
    """Small enough for a repository; a foreign file is one line and no traceback."""
    file = tmp_path / "results" / "baseline_v0.json"
    assert read_stored(file) == {}
    report = stored(
        measure_baseline("untrained", trained_run.folder.checkpoint("code", "best"), Settings(parts=("probes",)), measure)
    )
    store(file, {"untrained": report}, {"machine": {"chip": "x"}, "commit": None})
    found = read_stored(file)["untrained"]
    assert found.settings == report.settings and found.model == report.model
    assert [part.name for part in found.parts] == ["probes"]
    figures = found.parts[0].figures
    assert not any(figure.prompts for figure in figures.values())
    assert {name: figure.value for name, figure in figures.items()} == {n: f.value for n, f in report.parts[0].figures.items()}
    assert json.loads(file.read_text())["machine"] == {"chip": "x"}
    file.write_text('{"format": "another"}')
    with pytest.raises(UserError, match="remove it"):
        read_stored(file)


def test_without_token_files_there_is_nothing_to_count(trained_copy: RunFolder, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    trained_copy.checkpoint("code", "best").rename(alone)
    with pytest.raises(UserError, match="give a run folder"):
        three_gram(alone)


def test_facts_of_a_run_and_of_a_size(trained_run: TrainedRun) -> None:
    """What was trained is what the log says; what nobody trained has its parameters only."""
    facts = run_facts(str(trained_run.folder.path))
    steps = trained_run.recorder.steps
    assert facts.tokens == max(s.tokens_seen for s in steps if s.phase == "language") + steps[-1].tokens_seen
    assert facts.loss == min(each.loss for each in trained_run.recorder.evaluations if each.phase == "code")
    assert facts.parameters == trained_run.recorder.starts[0].parameters
    assert run_facts("nano").tokens is None and run_facts("nano").parameters > 1_000_000
    with pytest.raises(UserError, match="tinny"):
        run_facts("tinny")


def test_kept_checkpoints_come_once_and_in_order(trained_run: TrainedRun, trained_copy: RunFolder) -> None:
    """`best` and `last` of one step are one model."""
    kept = kept_checkpoints(trained_run.folder.path)
    names = [f"{file.parent.name}/{file.stem}" for file in kept]
    assert names[0].startswith("language/") and names[-1].startswith("code/") and len(set(names)) == len(names)
    trained_copy.checkpoint("code", "last").write_bytes(trained_copy.checkpoint("code", "best").read_bytes())
    assert "last.safetensors" not in [file.name for file in kept_checkpoints(trained_copy.path) if file.parent.name == "code"]
    with pytest.raises(UserError, match="holds no checkpoints"):
        kept_checkpoints(trained_copy.data("code"))


SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPTS / f"{name}.py"), *arguments], capture_output=True, text=True)


def test_baseline_script_measures_what_is_missing_and_compares(trained_copy: RunFolder, tmp_path: Path) -> None:
    """What is stored is not measured again; a code-only run becomes the third entry, with the tokens that it was trained on."""
    best = trained_copy.checkpoint("code", "best")
    write_report(measure(mlx_codegen.load(best), Settings(parts=("probes",))), trained_copy.path)
    file = tmp_path / "baseline.json"
    store(file, {"untrained": StoredReport("measured yesterday", {}, [])}, {})
    done = script("compare_baseline", str(trained_copy.path), "--file", str(file), "--code-only", str(trained_copy.path))
    assert done.returncode == 0, done.stderr
    assert "untrained against tiny: no figure in common" in done.stdout
    assert "code-only against tiny: nothing moved" in done.stdout and "3-gram against tiny" in done.stdout
    values = json.loads(file.read_text())
    assert list(values["reports"]) == ["untrained", "3-gram", "code-only"] and values["machine"]["chip"]
    assert values["reports"]["untrained"]["model"] == "measured yesterday"
    assert "code phase, " in values["reports"]["code-only"]["model"]


def test_untrained_weights_are_those_that_training_began_from(trained_run: TrainedRun) -> None:
    """The seed is the run's, so the baseline is the run's own beginning."""
    engine, words = untrained(trained_run.folder.checkpoint("code", "best"))
    mx.random.seed(tiny_config().seed)
    again = mlx_codegen.model.Transformer(engine.model.config)
    assert mx.array_equal(again.token_embedding.weight, engine.model.token_embedding.weight)
    assert words.startswith("untrained: ")

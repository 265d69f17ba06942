"""From a prompt to text: samplers equal their reference, the engine obeys its settings, output fits where it goes."""

import math
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.sample_utils
import numpy as np
import pytest
from mlx.utils import tree_map
from tiny_run import TrainedRun, tiny_tokenizer

import mlx_codegen
from mlx_codegen.cli.answer import visible_controls
from mlx_codegen.cli.main import run as command_line
from mlx_codegen.config import ModelConfig
from mlx_codegen.errors import UserError
from mlx_codegen.generation.engine import Engine, SamplingConfig, find_checkpoint
from mlx_codegen.generation.prompts import prompt_text, unescape_newlines
from mlx_codegen.generation.samplers import apply_top_k, apply_top_p, sample
from mlx_codegen.model import Transformer
from mlx_codegen.tokenizer import Tokenizer
from mlx_codegen.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
REQUEST = "Create a backup script"


@pytest.fixture(scope="module")
def engine(trained_run: TrainedRun) -> Engine:
    """The trained model: real text, real length."""
    return mlx_codegen.load(trained_run.folder.path)


@pytest.fixture(scope="module")
def tokenizer(trained_run: TrainedRun) -> Tokenizer:
    return tiny_tokenizer(trained_run.folder)


def engine_with_logits(tokenizer: Tokenizer, scores: dict[int, float]) -> Engine:
    """A model that gives these logits after any text, and -30 to every other token.

    The last norm multiplies by nothing and adds a unit vector; tied embeddings then hold the logits in one column.
    """
    model = Transformer(
        ModelConfig(n_layers=1, d_model=8, n_heads=1, vocab_size=tokenizer.vocab_size, context_length=32, bias=True)
    )
    unit = mx.zeros(8)
    unit[0] = 1.0
    model.final_norm.weight, model.final_norm.bias = mx.zeros(8), unit
    column = mx.full((tokenizer.vocab_size,), -30.0)
    for index, score in scores.items():
        column[index] = score
    model.token_embedding.weight[:, 0] = column
    return Engine(model, tokenizer)


def ids_of(engine: Engine, **sampling: object) -> list[int]:
    return list(engine.token_ids([engine.tokenizer.end_of_text_id], SamplingConfig.model_validate(sampling)))


# --- samplers ---


def random_logprobs(ties: bool) -> mx.array:
    logits = mx.random.normal((6, 50), key=mx.random.key(4)) * 2
    if ties:
        logits = mx.round(logits)  # many equal values, at every threshold
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 10, 49])
def test_top_k_equals_mlx_lm(top_k: int, ties: bool) -> None:
    """Exactly k tokens are left, also where several are equally likely."""
    logprobs = random_logprobs(ties)
    kept = apply_top_k(logprobs, top_k)
    assert mx.array_equal(kept, mlx_lm.sample_utils.apply_top_k(logprobs, top_k)).item()
    assert mx.isfinite(kept).sum(axis=-1).tolist() == [top_k] * 6


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_top_p_equals_mlx_lm(top_p: float, ties: bool) -> None:
    """Same tokens, same values, in every row."""
    logprobs = random_logprobs(ties)
    assert mx.array_equal(apply_top_p(logprobs, top_p), mlx_lm.sample_utils.apply_top_p(logprobs, top_p)).item()


def test_rows_draw_with_their_own_keys() -> None:
    """A row's draw depends on its key and its own probabilities alone, wherever it stands in a batch."""
    logprobs = random_logprobs(ties=False)
    keys = mx.random.split(mx.random.key(8), logprobs.shape[0])
    together = sample(logprobs, keys, 0.7, 7, 0.8).tolist()
    alone = [sample(logprobs[row : row + 1], keys[row : row + 1], 0.7, 7, 0.8).item() for row in range(len(together))]
    assert together == alone
    assert together != sample(logprobs, mx.random.split(mx.random.key(9), len(together)), 0.7, 7, 0.8).tolist()


def test_filters_by_hand() -> None:
    """Probabilities 0.5, 0.3, 0.15, 0.05."""
    logprobs = mx.log(mx.array([0.3, 0.05, 0.5, 0.15]))

    def kept(filtered: mx.array) -> list[bool]:
        return [value > -np.inf for value in filtered.tolist()]

    assert kept(apply_top_k(logprobs, 2)) == [True, False, True, False]
    assert kept(apply_top_p(logprobs, 0.4)) == [False, False, True, False]
    assert kept(apply_top_p(logprobs, 0.6)) == [True, False, True, False]
    assert kept(apply_top_p(logprobs, 0.9)) == [True, False, True, True]
    assert kept(apply_top_k(logprobs, 0)) == kept(apply_top_k(logprobs, 9)) == kept(apply_top_p(logprobs, 1.0)) == [True] * 4


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "expected"),
    [
        (1.0, 0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (0.5, 0, 1.0, [0.6849, 0.2466, 0.0616, 0.0068]),  # squares, normalised
        (1.0, 2, 1.0, [0.625, 0.375, 0, 0]),
        (1.0, 0, 0.85, [0.5263, 0.3158, 0.1579, 0]),
        (2.0, 3, 0.85, [0.4309, 0.3338, 0.2360, 0]),  # filters first, then the square roots
    ],
)
def test_sampled_shares_equal_probabilities_by_hand(temperature: float, top_k: int, top_p: float, expected: list[float]) -> None:
    """20,000 draws are within 0.015 of the shares (more than four standard deviations)."""
    logits = mx.broadcast_to(mx.log(mx.array([0.5, 0.3, 0.15, 0.05])) + 3.0, (20_000, 4))
    keys = mx.random.split(mx.random.key(0), 20_000)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    drawn = np.array(sample(logprobs, keys, temperature, top_k, top_p))
    assert np.bincount(drawn, minlength=4) / 20_000 == pytest.approx(expected, abs=0.015)


def test_temperature_zero_takes_the_likeliest() -> None:
    """Whatever the key and the filters."""
    logprobs = random_logprobs(ties=False)
    best = mx.argmax(logprobs, axis=-1).tolist()
    assert all(sample(logprobs, mx.random.split(mx.random.key(seed), 6), 0.0, 3, 0.5).tolist() == best for seed in range(5))


# --- the engine ---


def test_same_seed_same_text_other_seed_other_text(engine: Engine) -> None:
    """0 is a seed too; no seed is a new one each time; the caller's random state is left alone."""
    state = mx.array(mx.random.state[0])
    texts = [engine.generate(REQUEST, seed=seed, max_tokens=40) for seed in (0, 0, 1, 2)]
    assert texts[0] == texts[1]
    assert len({*texts}) == 3
    assert engine.generate(REQUEST, max_tokens=40) != engine.generate(REQUEST, max_tokens=40)
    assert mx.array_equal(mx.random.state[0], state).item()


def test_greedy_does_not_depend_on_the_seed(engine: Engine) -> None:
    """Temperature 0."""
    assert len({engine.generate(REQUEST, temperature=0, seed=seed, max_tokens=20) for seed in range(3)}) == 1


def test_control_tokens_are_never_emitted(tokenizer: Tokenizer) -> None:
    """Even a model that wants nothing else: they stand for no text."""
    control = {index: 50.0 for index in range(tokenizer.vocab_size) if tokenizer.is_control(index)}
    del control[tokenizer.end_of_text_id]
    letter = tokenizer.encode("a")[0]
    engine = engine_with_logits(tokenizer, {**control, letter: 0.0})
    for temperature in (0.0, 1.0):
        assert ids_of(engine, temperature=temperature, max_tokens=50, seed=1) == [letter] * 50


def test_generation_stops_at_end_of_text(tokenizer: Tokenizer) -> None:
    """At once, but never before the first token, and the end itself is no text."""
    letter = tokenizer.encode("a")[0]
    engine = engine_with_logits(tokenizer, {tokenizer.end_of_text_id: 9.0, letter: 0.0})
    assert ids_of(engine, temperature=0.0) == [letter]
    assert engine.generate(REQUEST, temperature=0.0) == f"#!/bin/bash\n# {REQUEST}\na"


def test_max_tokens_is_respected(tokenizer: Tokenizer) -> None:
    """To the token, below and beyond the context window."""
    letter = tokenizer.encode("a")[0]
    engine = engine_with_logits(tokenizer, {letter: 0.0})
    assert [len(ids_of(engine, max_tokens=count, seed=0)) for count in (1, 2, 31, 32, 33, 100)] == [1, 2, 31, 32, 33, 100]


def test_shares_of_generated_tokens_are_the_models_probabilities(tokenizer: Tokenizer) -> None:
    """Through the whole engine, keys included: two tokens at 3 to 1."""
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    engine = engine_with_logits(tokenizer, {a: float(np.log(3.0)), b: 0.0})
    ids = ids_of(engine, temperature=1.0, top_k=0, top_p=1.0, max_tokens=1500, seed=0)
    assert {*ids} == {a, b}
    assert ids.count(a) / 1500 == pytest.approx(0.75, abs=0.05)
    assert any(first == second == b for first, second in zip(ids, ids[1:], strict=False)), "keys must not repeat"


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_decoding_equals_reading_the_whole_text_each_time(tokenizer: Tokenizer, family: str) -> None:
    """Cache, positions and the window that moves on: the same tokens as a plain forward over what is in the window."""
    mx.random.seed(2)
    config = ModelConfig(
        family=family,  # type: ignore[arg-type]
        n_layers=2, d_model=32, n_heads=2, vocab_size=tokenizer.vocab_size, context_length=16,
    )  # fmt: skip
    model = Transformer(config)
    model.update(tree_map(lambda p: p + 0.3 * mx.random.normal(p.shape), model.parameters()))
    engine = Engine(model, tokenizer)
    control = mx.array([tokenizer.is_control(index) for index in range(tokenizer.vocab_size)])
    prompt = [tokenizer.end_of_text_id, *tokenizer.encode("find all")]
    window, history = list(prompt), list(prompt)
    expected: list[int] = []
    while len(expected) < 60:
        logits = mx.where(control, -mx.inf, model(mx.array([window]))[0, -1])
        expected.append(int(mx.argmax(logits).item()))
        history.append(expected[-1])
        window = [*window, expected[-1]] if len(window) < 16 else history[-8:]
    got = list(engine.token_ids(prompt, SamplingConfig(temperature=0, max_tokens=60)))
    assert got == expected[: len(got)]
    assert len(got) > 30, "the window must have moved; if this model prefers end-of-text now, take another seed"


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_batch_gives_what_its_rows_give_alone(tokenizer: Tokenizer, family: str) -> None:
    """Prompts of different lengths and several seeds, each text several windows long or ended early: token for token."""
    mx.random.seed(3)
    config = ModelConfig(
        family=family,  # type: ignore[arg-type]
        n_layers=2, d_model=32, n_heads=2, vocab_size=tokenizer.vocab_size, context_length=24,
    )  # fmt: skip
    model = Transformer(config)
    model.update(tree_map(lambda p: p + 0.3 * mx.random.normal(p.shape), model.parameters()))
    model.token_embedding.weight[tokenizer.end_of_text_id] *= 1.7  # some rows end early, some late
    engine = Engine(model, tokenizer)
    prompts = ["a", "a", "find", "find all of it", "a", "find all of it", "b"]
    seeds = [0, 1, 2, 3, 4, 5, 6]
    together = engine.complete(prompts, seeds, max_tokens=90, temperature=1.2, top_k=0, top_p=1.0, plain=True)
    for prompt, seed, completion in zip(prompts, seeds, together, strict=True):
        text = engine.generate(prompt, seed=seed, max_tokens=90, temperature=1.2, top_k=0, top_p=1.0, plain=True)
        assert completion.text == text and completion.prompt == prompt
        assert engine.complete([prompt], [seed], max_tokens=90, temperature=1.2, top_k=0, top_p=1.0, plain=True)[0].text == text
    lengths = [completion.tokens for completion in together]
    assert max(lengths) > 60 and min(lengths) < 90, f"take another seed: {lengths}"
    assert [completion.ended for completion in together] == [length < 90 for length in lengths]


def test_compiled_drawing_draws_the_same(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where compiling pays (GPUs), the same seeds give the same texts as without."""
    plain = [c.text for c in engine.complete([REQUEST] * 3, [1, 2, 3], max_tokens=12)]
    monkeypatch.setattr("mlx_codegen.backend.compiling_pays", lambda: True)
    assert [c.text for c in engine.complete([REQUEST] * 3, [1, 2, 3], max_tokens=12)] == plain


def test_completion_knows_how_sure_the_model_was(tokenizer: Tokenizer) -> None:
    """The mean of the log-probabilities that the model itself gave to its tokens, filters and temperature aside."""
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    engine = engine_with_logits(tokenizer, {a: math.log(3), b: 0.0, tokenizer.end_of_text_id: -40.0})
    (completion,) = engine.complete(["x"], [0], temperature=0, max_tokens=5, plain=True)
    assert completion.answer == "aaaaa" and not completion.ended
    assert completion.mean_logprob == pytest.approx(math.log(0.75), abs=1e-4)


def test_text_longer_than_the_context_window(engine: Engine) -> None:
    """Four windows of text come out, streamed piece by piece, and the pieces are the text."""
    pieces = list(engine.stream(REQUEST, max_tokens=128, temperature=1.5, top_k=0, top_p=1.0, seed=4))
    assert pieces[0] == f"#!/bin/bash\n# {REQUEST}\n"
    assert all(pieces)
    assert "".join(pieces) == engine.generate(REQUEST, max_tokens=128, temperature=1.5, top_k=0, top_p=1.0, seed=4)


def test_a_character_of_several_tokens_comes_whole(tokenizer: Tokenizer) -> None:
    """A stream cut at any token must not show half characters."""
    byte_ids = tokenizer.encode("\N{PILE OF POO}")
    assert len(byte_ids) == 4
    assert [piece for piece in tokenizer.decode_stream(byte_ids) if piece] == ["\N{PILE OF POO}"]


# --- prompts ---


def test_a_prompt_is_a_comment() -> None:
    """DESIGN.md, decision 3: one document form, however it is asked for."""
    script = "#!/bin/bash\n# Create a backup script\n"
    assert prompt_text(REQUEST) == prompt_text(f"  {REQUEST}\n") == script
    assert prompt_text("#!/bin/bash\n# Create a backup script") == prompt_text(script) == script
    assert prompt_text(REQUEST, command=True) == "# Create a backup script\n"
    assert prompt_text("two\n\nlines") == "#!/bin/bash\n# two\n# lines\n"
    assert prompt_text("#!/bin/bash\n# x\nfor i") == "#!/bin/bash\n# x\nfor i", "begun code stays open"
    assert prompt_text("Once upon", plain=True) == "Once upon"


def test_newlines_typed_on_a_command_line() -> None:
    """Backslash n is a newline; a doubled backslash stays one, for scripts that print."""
    assert unescape_newlines(r"#!/bin/bash\n# x") == "#!/bin/bash\n# x"
    assert unescape_newlines(r"printf 'a\\n'") == r"printf 'a\n'"
    assert unescape_newlines("real\nnewline") == "real\nnewline"


def generate(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command_line(["generate", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_request_and_written_prompt_are_one_thing(trained_run: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    r"""`generate "X"` equals `generate --prompt "#!/bin/bash\n# X"` byte for byte, on the command line and in Python."""
    common = ["--model", str(trained_run.folder.path), "--seed", "5", "--max-tokens", "30", "--best-of", "1"]
    request = generate(capsys, REQUEST, *common)
    assert generate(capsys, "--prompt", rf"#!/bin/bash\n# {REQUEST}", *common) == request
    assert request.startswith(f"#!/bin/bash\n# {REQUEST}\n")
    text = mlx_codegen.load(trained_run.folder.path).generate(REQUEST, seed=5, max_tokens=30)
    assert request.removesuffix("\n") == text.removesuffix("\n")


def test_options_of_the_command_line_arrive(trained_run: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """Each option changes the text as the Python keyword of the same name does."""
    checkpoint = str(trained_run.folder.checkpoint("code", "best"))
    common = ["--checkpoint", checkpoint, "--seed", "5", "--max-tokens", "30", "--best-of", "1"]
    engine = mlx_codegen.load(trained_run.folder.path)
    meanings: dict[tuple[str, ...], dict[str, Any]] = {
        ("--temperature", "1.7"): {"temperature": 1.7},
        ("--top-k", "2"): {"top_k": 2},
        ("--top-p", "0.2"): {"top_p": 0.2},
        ("--max-tokens", "3"): {"max_tokens": 3},
        ("--seed", "6"): {"seed": 6},
        ("--command",): {"command": True},
        ("--plain",): {"plain": True},
    }
    for option, keywords in meanings.items():
        expected = engine.generate(REQUEST, **{"seed": 5, "max_tokens": 30, **keywords})
        assert generate(capsys, REQUEST, *common, *option).removesuffix("\n") == expected.removesuffix("\n"), option
        assert expected != engine.generate(REQUEST, seed=5, max_tokens=30), option


# --- where output goes ---


def test_piped_output_is_text_and_nothing_else(trained_run: TrainedRun) -> None:
    """A real pipe: no colours, no facts, one newline at the end, so that `> script.sh` gives a script."""
    arguments = ["generate", REQUEST, "--model", str(trained_run.folder.path), "--seed", "5", "--max-tokens", "20", "--best-of=1"]
    done = subprocess.run(
        [sys.executable, "-m", "mlx_codegen", *arguments],
        cwd=ROOT,
        env={**os.environ, "FORCE_COLOR": "1"},
        capture_output=True,
        check=True,
    )
    assert b"\x1b" not in done.stdout
    assert b"tokens/s" not in done.stdout
    assert done.stdout.endswith(b"\n")
    assert not done.stdout.endswith(b"\n\n\n")
    assert done.stderr == b""


def on_a_terminal(code: str) -> str:
    """What a program writes when its stdout is a real terminal."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=follower, cwd=ROOT, env=environment)
    os.close(follower)
    output = b""
    try:
        while block := os.read(leader, 65536):
            output += block
    except OSError:  # Linux says it this way when the other end is closed
        pass
    os.close(leader)
    assert process.wait() == 0
    return output.decode()


def test_generated_text_cannot_steer_the_terminal() -> None:
    """Control characters in model output are shown, not obeyed; our own colours still work."""
    code = (
        "from mlx_codegen.cli.answer import show_live\n"
        r"show_live(iter(['#!/bin/bash\n', 'echo \x1b]0;title\x07 \x1b[2J\r\x9b2J\b', '\n', 'exit']), 'model · seed 1')"
    )
    shown = on_a_terminal(code)
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "\x9b" not in shown
    assert "\b" not in shown
    assert "^[" in shown
    assert "\x1b[" in shown, "a terminal gets colours"
    assert "3 tokens" in shown
    assert "model · seed 1" in shown


def test_every_control_character_becomes_visible() -> None:
    """C0, delete and C1; tabs and all other text stay."""
    for number in [*range(32), *range(127, 160)]:
        if chr(number) != "\t":
            assert chr(number) not in visible_controls(f"a{chr(number)}b")
    assert visible_controls("\ta é 漢 \N{PILE OF POO}~") == "\ta é 漢 \N{PILE OF POO}~"
    assert visible_controls("\x1b\x7f") == "^[^?"


# --- loading ---


def test_load_takes_a_run_folder_a_phase_folder_and_a_file(trained_run: TrainedRun) -> None:
    """All three give the same model; the run folder's choice is the newest phase's best weights."""
    best = trained_run.folder.checkpoint("code", "best")
    assert find_checkpoint(trained_run.folder.path) == find_checkpoint(best.parent) == find_checkpoint(best) == best
    texts = {mlx_codegen.load(path).generate(REQUEST, seed=1, max_tokens=10) for path in (trained_run.folder.path, str(best))}
    assert len(texts) == 1


def test_half_a_run_gives_what_it_has(trained_copy: RunFolder) -> None:
    """Before the code phase has a best checkpoint, the language model is used."""
    trained_copy.checkpoint("code", "best").unlink()
    assert find_checkpoint(trained_copy.path) == trained_copy.checkpoint("code", "last")
    trained_copy.checkpoint("code", "last").unlink()
    assert find_checkpoint(trained_copy.path) == trained_copy.checkpoint("language", "best")


def test_a_language_model_continues_plain_text(trained_run: TrainedRun) -> None:
    """It has never seen a shebang: a story goes on as a story, unless a script is asked for."""
    engine = mlx_codegen.load(trained_run.folder.checkpoint("language", "best"))
    story = engine.generate("Once upon a time", seed=1, max_tokens=10)
    assert story.startswith("Once upon a time")
    assert len(story) > len("Once upon a time")
    assert engine.generate("Once", seed=1, max_tokens=5, plain=False).startswith("#!/bin/bash\n# Once\n")


def test_python_callers_get_the_same_clear_errors(engine: Engine) -> None:
    """At the call, not at the first piece of a stream."""
    with pytest.raises(UserError, match="temperature"):
        engine.stream(REQUEST, temperature=-1)
    with pytest.raises(UserError, match=r"unknown key temprature.*temperature"):
        engine.stream(REQUEST, temprature=1)
    with pytest.raises(UserError, match="the model reads at most"):
        engine.stream("word " * 100)

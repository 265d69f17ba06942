"""`mlx-codegen inspect`: what is shown is the model's own, and it is safe and readable on every terminal and in a page."""

import base64
import json
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from rich.cells import cell_len
from tiny_run import TrainedRun, tiny_tokenizer

from mlx_codegen.cli.inspect_display import show_map
from mlx_codegen.cli.main import run as command_line
from mlx_codegen.config import ModelConfig
from mlx_codegen.errors import UserError
from mlx_codegen.generation.engine import Engine, SamplingConfig, load
from mlx_codegen.inspect.attention import HeadMap, attention_layers, find_token, head_maps, pooled
from mlx_codegen.inspect.candidates import next_tokens
from mlx_codegen.inspect.page import attention_page, next_page, tokens_page, trace_page
from mlx_codegen.inspect.pieces import pieces, visible
from mlx_codegen.inspect.trace import trace
from mlx_codegen.model import NORM_EPSILON, Block, Transformer

ROOT = Path(__file__).parents[1]
REQUEST = "Copy a file"
LONG_REQUEST = "Copy a file to another folder"
NASTY = '<script>alert("1")</script> \x1b[31m\u202e\t\n\x9b é \u2028&amp;'
FAMILIES = ("gpt2", "gpt_neox", "llama")
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5]


@pytest.fixture(scope="module")
def engine(trained_run: TrainedRun) -> Engine:
    return load(trained_run.folder.path)


@pytest.fixture
def model(trained_run: TrainedRun) -> list[str]:
    return ["--model", str(trained_run.folder.path)]


def sharp_model(family: str) -> Transformer:
    """Random, with queries and keys so large that attention is far from even: errors in them show."""
    mx.random.seed(0)
    model = Transformer(ModelConfig(family=family, n_layers=3, d_model=24, n_heads=3, vocab_size=448, context_length=16))
    for block in model.blocks:
        block.attention.qkv_proj.weight = block.attention.qkv_proj.weight * 20
    model.eval()
    return model


def block_inputs(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> list[mx.array]:
    """What each block is given in the model's own forward pass."""
    inputs: list[mx.array] = []
    original = Block.__call__

    def record(self: Block, x: mx.array, *rest: object) -> mx.array:
        inputs.append(x)
        return original(self, x, *rest)

    monkeypatch.setattr(Block, "__call__", record)
    model.hidden_states(mx.array([IDS]))
    monkeypatch.setattr(Block, "__call__", original)
    return inputs


def rotated(x: np.ndarray, theta: float) -> np.ndarray:
    """Rotary positions of `(H, T, D)`, in plain numpy (Su et al., 2021): feature i turns with feature i + D/2."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], -1
    )


def plain_attention(model: Transformer, number: int, x: np.ndarray) -> np.ndarray:
    """softmax(Q Kᵀ / √D) `(H, T, T)` of one block for its input `(T, C)`: textbook, in float64."""
    config, block = model.config, model.blocks[number]
    if config.family == "llama":
        normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + NORM_EPSILON)
    else:
        normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + NORM_EPSILON)
    normed = normed * np.array(block.attention_norm.weight, np.float64)
    weight = np.array(block.attention.qkv_proj.weight, np.float64)
    C = config.d_model
    queries, keys = (
        (normed @ weight[start : start + C].T).reshape(len(x), config.n_heads, config.head_dim).transpose(1, 0, 2)
        for start in (0, C)
    )
    if config.family != "gpt2":
        queries, keys = rotated(queries, config.rope_theta), rotated(keys, config.rope_theta)
    scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(config.head_dim)
    scores[:, np.triu(np.ones((len(x), len(x)), bool), 1)] = -np.inf
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_softmax_of_queries_times_keys(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights shown are those of the textbook formula, for the inputs that the model's own blocks get."""
    model = sharp_model(family)
    inputs = block_inputs(model, monkeypatch)
    layers = list(attention_layers(model, IDS))
    assert len(layers) == len(inputs) == 3
    for number, (layer, x) in enumerate(zip(layers, inputs, strict=True)):
        expected = plain_attention(model, number, np.array(x[0], np.float64))
        assert expected.max(axis=-1)[:, 3:].mean() > 0.4, "attention is nearly even: the comparison would prove little"
        np.testing.assert_allclose(np.array(layer.weights), expected, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_times_values_are_the_attention_output(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put through the output projection, the weights give what the block's fused attention gives."""
    model = sharp_model(family)
    inputs = block_inputs(model, monkeypatch)
    for block, x, layer in zip(model.blocks, inputs, attention_layers(model, IDS), strict=True):
        gathered = (layer.weights @ layer.values).transpose(1, 0, 2).reshape(1, len(IDS), -1)
        expected = block.attention(block.attention_norm(x))
        np.testing.assert_allclose(np.array(block.attention.out_proj(gathered)), np.array(expected), atol=1e-5)


def test_maps_are_chosen_by_numbers_from_one() -> None:
    """Layer 2, head 3 is the second layer's third head; no number, all of them."""
    model = sharp_model("gpt2")
    layers = list(attention_layers(model, IDS))
    every = head_maps(model, IDS)
    assert [(each.layer, each.head) for each in every] == [(layer, head) for layer in (1, 2, 3) for head in (1, 2, 3)]
    assert [(each.layer, each.head) for each in head_maps(model, IDS, head=2)] == [(1, 2), (2, 2), (3, 2)]
    (one,) = head_maps(model, IDS, 2, 3)
    assert mx.array_equal(one.weights, layers[1].weights[2])
    for wrong in ({"layer": 0}, {"layer": 4}, {"head": 0}, {"head": -1}, {"head": 4}):
        with pytest.raises(UserError, match=r"the model has (layer|head)s 1 to 3"):
            head_maps(model, IDS, **wrong)


def test_small_maps_keep_the_largest_weight() -> None:
    """Pooling loses no strong link, and leaves small maps as they are."""
    weights = np.tril(np.random.default_rng(0).random((7, 7))).astype(np.float32)
    small = pooled(mx.array(weights), 3)
    bounds = [(0, 2), (2, 4), (4, 7)]
    assert small == [[weights[top:bottom, left:right].max() for left, right in bounds] for top, bottom in bounds]
    assert pooled(mx.array(weights), 16) == weights.tolist()


def test_a_token_is_found_by_number_or_text(engine: Engine) -> None:
    """Numbers count from 1; of several equal texts the last is meant; blanks around it do not matter."""
    ids = engine.tokenizer.encode("x = y\nx = z")
    names = [engine.tokenizer.piece(index) for index in ids]
    assert find_token(engine.tokenizer, ids, "1") == 0 and find_token(engine.tokenizer, ids, str(len(ids))) == len(ids) - 1
    last = max(place for place, name in enumerate(names) if name.strip() == "x")
    assert last > 0 and find_token(engine.tokenizer, ids, "x") == last
    for wrong in ("0", str(len(ids) + 1), "zebra", "", " "):
        with pytest.raises(UserError, match="--token"):
            find_token(engine.tokenizer, ids, wrong)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, 5, 0.6), (0.7, 9, 0.2), (1.5, 0, 1.0), (0.0, 50, 0.9), (1.0, 3, 1.0)]
)
def test_the_table_of_next_tokens_follows_the_filters(engine: Engine, temperature: float, top_k: int, top_p: float) -> None:
    """Each column, worked out by hand from the model's logits: what remains, scaled up to one."""
    _, ids = engine.encode_prompt(REQUEST)
    settings = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    table = next_tokens(engine, ids, settings, count=12)
    logits = np.array(engine.model(mx.array([ids]))[0, -1], np.float64)
    tokenizer = engine.tokenizer
    logits[[index for index in range(tokenizer.vocab_size) if tokenizer.is_control(index)]] = -np.inf
    order = np.argsort(-logits)
    model = np.exp(logits - logits.max())
    model /= model.sum()
    nucleus = order[: int((np.cumsum(model[order]) < top_p).sum()) + 1] if top_p < 1 else order[np.isfinite(logits[order])]
    best = nucleus[: top_k or None]
    heat = np.exp((logits - logits.max()) / temperature) if temperature else (np.arange(len(logits)) == order[0]).astype(float)
    expected = [model, *(np.where(np.isin(np.arange(len(model)), kept), model, 0) for kept in (nucleus, best))]
    expected.append(np.where(np.isin(np.arange(len(model)), best), heat, 0))
    expected = [column / column.sum() for column in expected]
    assert [candidate.piece.id for candidate in table.candidates] == order[:12].tolist()
    for number, column in enumerate(expected):
        shown = [candidate.probabilities[number] for candidate in table.candidates]
        np.testing.assert_allclose(shown, column[order[:12]], atol=1e-5)
        assert table.stages[number].remaining == (column > 0).sum()
        assert sum(shown) + table.others[number] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"temperature": 2.0, "top_k": 0, "top_p": 1.0}], ids=str)
@pytest.mark.parametrize("seed", [0, 7])
def test_a_trace_is_what_generate_writes(engine: Engine, seed: int, settings: dict[str, float]) -> None:
    """Token for token, also where the text outgrows the window; and each token is one that could be drawn."""
    chosen = SamplingConfig(max_tokens=45, **settings)
    text, ids = engine.encode_prompt(REQUEST)
    steps = list(trace(engine, ids, seed, chosen, count=4))
    taken = [step.taken.id for step in steps]
    assert text + engine.tokenizer.decode(taken) == engine.generate(REQUEST, seed=seed, max_tokens=45, **settings)
    assert len(ids) + len(steps) > engine.model.config.context_length or taken[-1] == engine.tokenizer.end_of_text_id
    for step in steps:
        odds = [probability for _, probability in step.candidates]
        assert odds == sorted(odds, reverse=True) and len(odds) == min(4, step.remaining) and 0 < step.probability <= odds[0]
        assert (step.rank == 1) == (step.probability == odds[0])
        if step.rank <= len(odds):
            assert any(piece.id == step.taken.id for piece, _ in step.candidates) or odds.count(step.probability) > 1
    if settings == {"temperature": 0.0}:
        assert all(step.rank == step.remaining == 1 and step.probability == 1 for step in steps)
    elif settings:
        assert any(step.rank > 4 for step in steps)


def test_the_first_step_of_a_trace_is_the_table_of_next_tokens(engine: Engine) -> None:
    """Two views of one thing agree."""
    _, ids = engine.encode_prompt(REQUEST)
    table = next_tokens(engine, ids, SamplingConfig(), count=5)
    step = next(trace(engine, ids, 1, SamplingConfig(), count=5))
    assert step.remaining == table.stages[-1].remaining
    drawn = [candidate.probabilities[-1] for candidate in table.candidates][: len(step.candidates)]
    np.testing.assert_allclose([probability for _, probability in step.candidates], drawn, atol=1e-5)


def test_pieces_show_everything_and_obey_nothing(trained_run: TrainedRun) -> None:
    """Bytes add up; no piece holds a blank, a control character or one that turns the text around."""
    tokenizer = tiny_tokenizer(trained_run.folder)
    for text in (NASTY, "a\tb\n", "名 😀 \u2581", "".join(map(chr, range(256)))):
        cut = pieces(tokenizer, tokenizer.encode(text))
        assert sum(piece.bytes for piece in cut) == len(text.encode())
        shown = "".join(piece.text for piece in cut)
        assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Zs")]
        assert sum(piece.ends_line for piece in cut) == text.count("\n")
    kinds = {piece.kind for piece in pieces(tokenizer, [tokenizer.end_of_text_id, *tokenizer.encode("a😀")])}
    assert kinds == {"text", "byte", "control"}
    assert visible("a b\n\t\x1b\x7f\x9b\u202e") == "a·b↵⇥^[^?<U+009B><U+202E>"


VIEWS = {
    "tokens": ["tokens", NASTY],
    "next": ["next", REQUEST, "-k", "5"],
    "attention": ["attention", LONG_REQUEST],
    "one head": ["attention", LONG_REQUEST, "--layer", "2", "--head", "1"],
    "token": ["attention", LONG_REQUEST, "--layer", "2", "--head", "1", "--token", "2"],
    "trace": ["trace", REQUEST, "--seed", "1", "--max-tokens", "12"],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("columns", ["40", "80"])
def test_every_view_fits_the_terminal_and_is_plain_in_a_pipe(
    view: str, columns: str, model: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No escape codes, no line too wide (but the one that names the model file)."""
    monkeypatch.setenv("COLUMNS", columns)
    assert command_line(["inspect", *VIEWS[view], *model]) == 0
    output = capsys.readouterr().out
    assert not set(output) & set(map(chr, [*range(10), *range(11, 32), 127, *range(128, 160)]))
    lines = [line for line in output.splitlines() if ".safetensors" not in line]
    assert len(lines) > 3 and max(map(cell_len, lines)) <= int(columns)


@pytest.mark.parametrize("view", VIEWS)
def test_colours_only_on_a_terminal_that_wants_them(
    view: str, model: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With NO_COLOR there is bold and dim, but no colour, and the same signs carry the meaning."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "300")  # the marks between pieces take room, lines would break elsewhere
    texts = {}
    for no_color in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_color)
        assert command_line(["inspect", *VIEWS[view], *model]) == 0
        texts[no_color] = capsys.readouterr().out
    colors = r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]"
    assert not re.search(colors, texts["1"])
    if view not in ("next", "token"):  # these need none
        assert re.search(colors, texts[""])
    without = {name: re.sub(r"\x1b\[[\d;]*m", "", text) for name, text in texts.items()}
    assert without["1"].replace("│", "") == without[""].replace("│", "")


@pytest.mark.parametrize("columns", ["40", "80"])
def test_the_heat_map_shades_by_weight(
    columns: str, engine: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cell's sign stands for its weight: the map can be read back, also where it is cut into panels."""
    monkeypatch.setenv("COLUMNS", columns)
    T, cell = 12, 3
    weights = np.tril(np.random.default_rng(1).random((T, T))).astype(np.float32)
    show_map(pieces(engine.tokenizer, range(20, 20 + T)), HeadMap(2, 1, mx.array(weights)))
    read, panels, start = [""] * T, 0, 0
    for line in capsys.readouterr().out.splitlines():
        if re.fullmatch(r"[ \d]+", line):  # the numbers of the columns
            panels += 1
            start = line.index(line.strip()[0]) + len(line.split()[0]) - cell
        elif row := re.match(r" *(\d+) \S", line):
            read[int(row.group(1)) - 1] += line[start:][cell - 1 :: cell]
    assert panels == (2 if columns == "40" else 1)
    least = {"█": 0.65, "▓": 0.35, "▒": 0.15, "░": 0.05, "·": 0.0}
    for number, signs in enumerate(read):
        expected = (next(sign for sign, bound in least.items() if weight >= bound) for weight in weights[number, : number + 1])
        assert signs == "".join(expected)


class Page(HTMLParser):
    """What a browser would find: elements, their attributes, their text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def all_pages(engine: Engine, text: str) -> dict[str, str]:
    """Every page of a text, with an origin as nasty as the text may be."""
    _, ids = engine.encode_prompt(text, plain=True)
    start = pieces(engine.tokenizer, ids)
    steps = list(trace(engine, ids, 1, SamplingConfig(max_tokens=6)))
    return {
        "tokens": tokens_page(start, "<script>origin"),
        "next": next_page(start, next_tokens(engine, ids, SamplingConfig()), "<script>origin"),
        "attention": attention_page(start, head_maps(engine.model, ids), "<script>origin"),
        "trace": trace_page(start, steps, 1, "<script>settings", "<script>origin"),
    }


@pytest.mark.parametrize("name", ["tokens", "next", "attention", "trace"])
def test_a_page_is_self_contained_and_its_text_is_only_text(engine: Engine, name: str) -> None:
    """Nothing is fetched; `<script>` in a text or a path is shown, not run; no control characters."""
    html = all_pages(engine, "<script>alert('x')</script>")[name]
    page = Page(html)
    assert page.tags.count("script") == (1 if name in ("attention", "trace") else 0)
    assert not page.attributes & {"src", "href", "onclick", "onload", "onerror"} and "link" not in page.tags
    assert not re.search(r"https?:|//[a-z-]+\.[a-z]|@import|url\(|<script>(alert|origin)", html)
    assert "default-src 'none'" in html and 'name="viewport"' in html and "prefers-color-scheme: dark" in html
    assert "<script>origin" in page.text
    if name != "attention":  # there the pieces are data
        assert "".join(page.text.split()).count("<script>") >= 1 and "&lt;" in html
    assert not [c for c in html if unicodedata.category(c) == "Cc" and c != "\n"]


def test_a_page_holds_the_weights(engine: Engine) -> None:
    """What the browser unpacks are the model's weights, to four digits."""
    _, ids = engine.encode_prompt(REQUEST)
    maps = head_maps(engine.model, ids)
    html = attention_page(pieces(engine.tokenizer, ids), maps, "here")
    found = re.search(r"const data = (.*);\n", html)
    assert found is not None
    data = json.loads(found.group(1))
    assert len(data["maps"]) == len(maps) == 4
    for packed, shown in zip(data["maps"], maps, strict=True):
        values = np.frombuffer(base64.b64decode(packed["weights"]), "<u2") / data["fullScale"]
        np.testing.assert_allclose(values, np.array(shown.weights)[np.tril_indices(len(ids))], atol=1e-4)


@pytest.mark.parametrize("view", ["tokens", "next", "attention", "trace"])
def test_html_is_written_once(view: str, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole page and nothing beside it; an existing file stays unless --force, and that is said before any work."""
    file = tmp_path / "page.html"
    arguments = ["inspect", *VIEWS[view], *model, "--html", str(file)]
    assert command_line(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and f"saved: {file}" in captured.err
    assert file.read_text().startswith("<!doctype html>") and file.read_text().endswith("</html>\n")
    file.write_text("precious")
    assert command_line(arguments) == 2 and command_line([*arguments[:-3], "nowhere", "--html", str(file)]) == 2
    assert capsys.readouterr().err.count(f"error: --html {file}: the file exists; name another one, or add --force\n") == 2
    assert file.read_text() == "precious"
    assert command_line([*arguments, "--force"]) == 0 and file.read_text() != "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["tokens", ""], "the text is empty"),
        (["next", " "], "the prompt is empty"),
        (["next", "word " * 200], "the model reads at most"),
        (["next", "x", "-k", "0"], "greater than or equal to 1|x>=1"),
        (["next", "x", "--top-p", "1.5"], "top_p"),
        (["trace", "x", "--max-tokens", "0"], "max_tokens"),
        (["trace", "x", "--temperature", "-1"], "temperature"),
        (["attention", "x", "--layer", "0"], "--layer 0: the model has layers 1 to 2"),
        (["attention", "x", "--layer", "1", "--head", "3"], "--head 3: the model has heads 1 to 2"),
        (["attention", "x", "--token", "2"], "--token needs --layer and --head"),
        (["attention", "x", "--layer", "1", "--head", "1", "--token", "zebra"], "no token of the text reads so"),
        (["attention", "x", "--layer", "1", "--head", "1", "--token", "99"], "the text has tokens 1 to"),
        (["next", "x", "--force"], "--force belongs to --html FILE"),
        (["next", "x", "--html", "missing/page.html"], "there is no folder missing"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(arguments: list[str], reason: str, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, nothing on stdout, one line that says what is wrong."""
    assert command_line(["inspect", *arguments, *model]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and re.search(reason, captured.err)


def test_help_is_instant() -> None:
    """Help imports neither MLX nor rich's tables nor Jinja2."""
    code = (
        "import sys\nfrom mlx_codegen.cli.main import run\n"
        "status = run(['inspect', 'attention', '--help'])\n"
        "heavy = [name for name in ('mlx', 'numpy', 'sentencepiece', 'jinja2', 'rich.table') if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "--layer" in done.stdout

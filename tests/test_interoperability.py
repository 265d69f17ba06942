"""Other projects' tools on the folders that we write: the same logits, the same tokens, the same greedy text.

The cheap ones run with all tests. The marked ones start the tools themselves: `make test-interoperability`.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_codegen
from mlx_codegen.config import SourceConfig
from mlx_codegen.data.sources import read_documents
from mlx_codegen.generation.engine import Engine
from mlx_codegen.hub.export import export_model

FAMILIES = ("gpt2", "gpt_neox", "llama")
REQUEST = "Create a backup script"
MAX_TOKENS = 40
# Each as `mlx_lm TOOL ...` would run it, in one process; mlx_codegen comes first for its fast matrix library.
TOOLS = (
    "import json, runpy, sys, mlx_codegen\n"
    "for command in json.loads(sys.argv[1]):\n"
    "    sys.argv = ['mlx_lm', *command]\n"
    "    runpy.run_module('mlx_lm', run_name='__main__')\n"
    "    print('=====', flush=True)\n"
)


@pytest.fixture(scope="session")
def exported(family_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's trained model as a folder, in float32. To be read, not changed."""

    @cache
    def export(family: str) -> Path:
        folder = tmp_path_factory.mktemp("exported") / family
        export_model(family_checkpoint(family), folder, "float32")
        return folder

    return export


@pytest.fixture(scope="session")
def engine(exported: Callable[[str], Path]) -> Callable[[str], Engine]:
    return cache(lambda family: mlx_codegen.load(exported(family)))


def greedy(engine: Engine) -> str:
    """What we answer, without the prompt."""
    text, _ = engine.encode_prompt(REQUEST)
    answer = engine.generate(REQUEST, temperature=0, max_tokens=MAX_TOKENS).removeprefix(text)
    assert len(set(answer)) > 5  # equal blanks would prove nothing
    return answer


def run_tools(*commands: list[str]) -> list[str]:
    """What each of these command lines printed."""
    command = [sys.executable, "-c", TOOLS, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = done.stdout.split("=====\n")
    assert outputs.pop() == ""
    return outputs


def generate_command(folder: Path, *more: str) -> list[str]:
    arguments = ["--prompt", REQUEST, "--temp", "0", "--max-tokens", str(MAX_TOKENS), "--verbose", "False"]
    return ["generate", "--model", str(folder), *arguments, *more]


# --- in this process ---


@pytest.mark.parametrize("family", FAMILIES)
def test_mlx_lm_gives_the_same_logits(family: str, exported: Callable[[str], Path], engine: Callable[[str], Engine]) -> None:
    """`mlx_lm.load` on the folder: model and tokenizer."""
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(exported(family)))
    text, ids = engine(family).encode_prompt(REQUEST)
    assert tokenizer.encode(text) == ids
    assert mx.allclose(model(mx.array([ids])), engine(family).model(mx.array([ids])), atol=1e-4).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_the_same_tokens(
    family: str, exported: Callable[[str], Path], engine: Callable[[str], Engine]
) -> None:
    """AutoTokenizer, whatever tokenizer it knows for the family: ids, text, template, special tokens."""
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(exported(family)), engine(family).tokenizer
    texts = ["a  b\t\r\n\0ﬁ\U0001f600▁ x", "<unk> <s> <0x0A>", " ", ""]
    for source in ("english", "bash"):
        texts += islice(read_documents(SourceConfig(name=source, bundled=source)), 200)  # type: ignore[arg-type]
    for text in texts:
        ids = ours.encode(text)
        assert theirs(text, add_special_tokens=False).input_ids == ids
        assert theirs(text).input_ids == [ours.end_of_text_id, *ids]
        assert theirs.decode(ids) == text
    spelled = "<|endoftext|><|pad|>"
    assert theirs(spelled, add_special_tokens=False, split_special_tokens=True).input_ids == ours.encode(spelled)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.end_of_text_id, ours.padding_id)
    messages = [{"role": "user", "content": REQUEST}]
    asked = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert asked == engine(family).encode_prompt(REQUEST)[1]


@pytest.mark.interoperability
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_the_same_logits_and_text(
    family: str, exported: Callable[[str], Path], engine: Callable[[str], Engine]
) -> None:
    """AutoModelForCausalLM on the CPU: every array found its place, the logits are ours, so is greedy text."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        exported(family), dtype=torch.float32, output_loading_info=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported(family))
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    text, ids = engine(family).encode_prompt(REQUEST)
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    assert inputs.input_ids[0].tolist() == ids
    with torch.no_grad():
        theirs = model(**inputs).logits.numpy()
    np.testing.assert_allclose(theirs, np.array(engine(family).model(mx.array([ids]))), atol=1e-4)
    written = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)[0, len(ids) :]
    assert tokenizer.decode(written, skip_special_tokens=True) == greedy(engine(family))


# --- the programs ---


@pytest.mark.interoperability
def test_mlx_lm_generate(exported: Callable[[str], Path], engine: Callable[[str], Engine]) -> None:
    """The same greedy text as ours, from a plain request."""
    outputs = run_tools(*[generate_command(exported(family)) for family in FAMILIES])
    assert outputs == [greedy(engine(family)) + "\n" for family in FAMILIES]


@contextmanager
def mlx_lm_server(folder: Path, log: Path) -> Iterator[int]:
    """Its port, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [["server", "--model", str(folder), "--host", "127.0.0.1", "--port", str(port)]]
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-c", TOOLS, json.dumps(command)], stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    assert response.status == 200, content
    answer: dict[str, Any] = json.loads(content)
    return answer


@pytest.mark.interoperability
def test_mlx_lm_server(exported: Callable[[str], Path], engine: Callable[[str], Engine], tmp_path: Path) -> None:
    """Over HTTP, as a chat client asks and as a completion client does."""
    settings = {"temperature": 0, "max_tokens": MAX_TOKENS}
    text, _ = engine("gpt2").encode_prompt(REQUEST)
    with mlx_lm_server(exported("gpt2"), tmp_path / "log") as port:
        chat = post(port, "/v1/chat/completions", {"messages": [{"role": "user", "content": REQUEST}], **settings})
        completion = post(port, "/v1/completions", {"prompt": text, **settings})
    assert chat["choices"][0]["message"]["content"] == greedy(engine("gpt2"))
    assert completion["choices"][0]["text"] == greedy(engine("gpt2"))


def write_jsonl(folder: Path, rows: list[dict[str, str]]) -> Path:
    """A folder of training data as `mlx_lm.lora` wants it."""
    folder.mkdir()
    for name in ("train", "valid"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def mean_loss(folder: Path, adapter: Path | None, texts: list[str]) -> float:
    """What a model makes of texts, with or without an adapter, in nats per token."""
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(folder), adapter_path=None if adapter is None else str(adapter))
    losses = []
    for text in texts:
        ids = tokenizer.encode(text)[:128]
        losses.append(nn.losses.cross_entropy(model(mx.array([ids[:-1]])), mx.array([ids[1:]])).mean().item())
    return sum(losses) / len(losses)


@pytest.mark.interoperability
def test_mlx_lm_lora(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """A short training on a person's own scripts, plain or as requests and answers, makes an adapter that has learned
    them, and text is written with it."""
    scripts = list(islice(read_documents(SourceConfig(name="bash", bundled="bash")), 24))
    pairs = [{"prompt": f"Say {word}", "completion": f"#!/bin/bash\necho {word}\n"} for word in ("hello", "yes", "no", "why")]
    data = {
        "llama": write_jsonl(tmp_path / "scripts", [{"text": script} for script in scripts]),
        "gpt2": write_jsonl(tmp_path / "pairs", pairs),
    }
    texts = {"llama": scripts, "gpt2": [f"#!/bin/bash\n# {pair['prompt']}\n{pair['completion'][12:]}" for pair in pairs]}
    settings = ["--iters", "10", "--batch-size", "4", "--num-layers", "2", "--max-seq-length", "128", "--val-batches", "1"]
    commands = []
    for family, folder in data.items():
        adapter = str(tmp_path / family)
        training = ["--data", str(folder), "--adapter-path", adapter, "--learning-rate", "1e-3"]
        commands.append(["lora", "--model", str(exported(family)), "--train", *training, *settings])
        commands.append(generate_command(exported(family), "--adapter-path", adapter))
    _, llama_text, _, gpt2_text = run_tools(*commands)
    assert llama_text.strip() and gpt2_text.strip()
    for family in data:
        before = mean_loss(exported(family), None, texts[family])
        assert mean_loss(exported(family), tmp_path / family, texts[family]) < before - 0.1


@pytest.mark.interoperability
@pytest.mark.parametrize("family", FAMILIES)
def test_mlx_lm_convert(
    family: str, exported: Callable[[str], Path], family_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """`mlx_lm.convert -q` reads the folder, and writes the very arrays that our own --quantize does; both write text."""
    convert = [
        "convert",
        "--hf-path",
        str(exported(family)),
        "--mlx-path",
        str(tmp_path / "theirs"),
        "-q",
        "--q-bits",
        "8",
    ]
    export_model(family_checkpoint(family), tmp_path / "ours", "float32", quantize=8)
    _, theirs_text, ours_text = run_tools(
        [*convert, "--dtype", "float32"], generate_command(tmp_path / "theirs"), generate_command(tmp_path / "ours")
    )
    theirs, ours = (mx.load(str(tmp_path / name / "model.safetensors")) for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(mx.array_equal(theirs[name], ours[name]).item() for name in ours)
    assert theirs_text == ours_text == greedy(mlx_codegen.load(tmp_path / "ours")) + "\n"

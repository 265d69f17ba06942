"""A trained model ready to write: read the prompt once, then one token at a time with a key/value cache.

>>> model = load("runs/tiny")
>>> for text in model.stream("Create a backup script", seed=1): print(text, end="")
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map
from pydantic import Field, ValidationError

from mlx_codegen import backend
from mlx_codegen.config import PHASES, Settings, describe_validation_error
from mlx_codegen.errors import UserError
from mlx_codegen.generation.decode import Step, decode
from mlx_codegen.generation.prompts import prompt_text
from mlx_codegen.generation.samplers import distribution, sample
from mlx_codegen.generation.speculative import speculate
from mlx_codegen.hub.folder import is_model_folder, open_checkpoint
from mlx_codegen.model import Transformer
from mlx_codegen.tokenizer import Tokenizer


class SamplingConfig(Settings):
    """How text is drawn."""

    temperature: float = Field(default=0.8, ge=0)
    """0 takes the likeliest token each time; higher is more varied."""
    top_k: int = Field(default=50, ge=0)
    """Draw from the k likeliest tokens; 0 draws from all."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Draw from the likeliest tokens that make up this share of the probability."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest answer in tokens."""
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    """Same seed, same text. None draws one."""


class Engine:
    """A model and its tokenizer. `generate` returns text, `stream` yields it as it comes."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, phase: str = "code", origin: str = "") -> None:
        model.eval()
        self.model = model
        self.draft: Engine | None = None
        self.tokenizer = tokenizer
        self.phase = phase
        """Phase that the weights come from: a language model continues text, it is not asked for scripts."""
        self.origin = origin
        # Control tokens other than end-of-text stand for no text and were never trained.
        banned = [tokenizer.is_control(i) and i != tokenizer.end_of_text_id for i in range(tokenizer.vocab_size)]
        self._allowed = mx.where(mx.array(banned), -mx.inf, 0.0)
        banned[tokenizer.end_of_text_id] = True
        self._allowed_first = mx.where(mx.array(banned), -mx.inf, 0.0)

    def generate(self, prompt: str, *, command: bool = False, plain: bool | None = None, **sampling: object) -> str:
        """The whole document: the prompt as a comment and the script that follows it.

        Keywords as in SamplingConfig (temperature, top_k, top_p, max_tokens, seed). Raises UserError for values out
        of range, an empty prompt, and one longer than the context.
        """
        return "".join(self.stream(prompt, command=command, plain=plain, **sampling))

    def stream(self, prompt: str, *, command: bool = False, plain: bool | None = None, **sampling: object) -> Iterator[str]:
        """As `generate`, piece by piece; the prompt's own text is the first piece."""
        settings = check_sampling(sampling)
        text, ids = self.encode_prompt(prompt, command=command, plain=plain)
        return self._stream(text, ids, settings)

    def encode_prompt(self, prompt: str, *, command: bool = False, plain: bool | None = None) -> tuple[str, list[int]]:
        """The text that the model is given, and its token ids with the end-of-text that opens every document.

        Of a plain text that is longer than the window, the model reads the last half of a window.
        """
        if not prompt.strip():
            raise UserError('the prompt is empty; say what you want, for example "Create a backup script"')
        text = prompt_text(prompt, command=command, plain=self.phase == "language" if plain is None else plain)
        ids = [self.tokenizer.end_of_text_id, *self.tokenizer.encode(text)]
        limit = self.model.config.context_length
        if len(ids) >= limit and plain:
            ids = ids[-(limit // 2) :]
        if len(ids) >= limit:
            raise UserError(f"the prompt has {len(ids) - 1} tokens, the model reads at most {limit - 2}; shorten it")
        return text, ids

    def complete(
        self, prompts: list[str], seeds: list[int], *, command: bool = False, plain: bool | None = None, **sampling: object
    ) -> "list[Completion]":
        """One text for each prompt and seed, written side by side; row for row what `generate` gives with that seed.

        Equal prompts are read once. Raises UserError as `generate` does.
        """
        settings = check_sampling(sampling)
        encoded = {prompt: self.encode_prompt(prompt, command=command, plain=plain) for prompt in dict.fromkeys(prompts)}
        ids: list[list[int]] = [[] for _ in prompts]
        logprobs = [0.0] * len(prompts)
        for step in self._decode([encoded[prompt][1] for prompt in prompts], seeds, settings):
            for row, token, logprob in zip(step.rows, step.tokens, step.logprobs, strict=True):
                ids[row].append(token)
                logprobs[row] += logprob
        return [
            self._completion(encoded[prompt][0], row_ids, total)
            for prompt, row_ids, total in zip(prompts, ids, logprobs, strict=True)
        ]

    def token_ids(self, prompt_ids: list[int], settings: SamplingConfig) -> Iterator[int]:
        """Ids of the answer, up to end-of-text (not included) or `max_tokens`.

        When the text outgrows the window, its later half is read again as the new context.
        """
        seed = secrets.randbits(32) if settings.seed is None else settings.seed
        for token in self._one_by_one(prompt_ids, seed, settings):
            if token == self.tokenizer.end_of_text_id:
                return
            yield token

    def logprobs(self, logits: mx.array, first: bool) -> mx.array:
        """Log-probabilities `(..., V)` of the tokens that may come next, from the model's scores `(..., V)`.

        Control tokens never do, and the `first` token of an answer is not the end: an answer is never nothing.
        """
        logits = logits.astype(mx.float32) + (self._allowed_first if first else self._allowed)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def use_draft(self, draft: "Engine") -> None:
        """Let a smaller model guess ahead in `generate` and `stream`; raises UserError if it has another tokenizer."""
        if draft.tokenizer.hash != self.tokenizer.hash:
            raise UserError(
                f"the draft {draft.origin} has another tokenizer than {self.origin}; take one trained with the same tokenizer"
            )
        self.draft = draft

    def _one_by_one(self, prompt_ids: list[int], seed: int, settings: SamplingConfig) -> Iterator[int]:
        if self.draft is None:
            return (step.tokens[0] for step in self._decode([prompt_ids], [seed], settings))

        def probabilities(logits: mx.array, first: bool) -> mx.array:
            allowed = mx.broadcast_to(self._allowed, logits.shape)
            if first:
                allowed = mx.concatenate([self._allowed_first[None], allowed[1:]])
            logits = logits + allowed
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            return distribution(logprobs, settings.temperature, settings.top_k, settings.top_p)

        return islice(speculate(self.model, self.draft.model, prompt_ids, seed, probabilities), settings.max_tokens)

    def _decode(self, prompts: list[list[int]], seeds: list[int], settings: SamplingConfig) -> Iterator[Step]:
        def draw_from(logprobs: mx.array, keys: mx.array) -> tuple[mx.array, mx.array]:
            tokens = sample(logprobs, keys, settings.temperature, settings.top_k, settings.top_p)
            return tokens, mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]

        # The layers are not compiled: the cache grows by a token each time, and a new shape means compiling anew.
        compiled = mx.compile(draw_from) if backend.compiling_pays() else draw_from

        def draw(logits: mx.array, keys: mx.array, first: bool) -> tuple[mx.array, mx.array]:
            return compiled(self.logprobs(logits, first), keys)

        return decode(self.model, prompts, seeds, draw, self.tokenizer.end_of_text_id, settings.max_tokens)

    def _completion(self, prompt: str, ids: list[int], logprob: float) -> "Completion":
        ended = ids[-1] == self.tokenizer.end_of_text_id
        text = self.tokenizer.decode(ids[:-1] if ended else ids)
        return Completion(prompt, text, len(ids), ended, logprob / len(ids))

    def _stream(self, text: str, ids: list[int], settings: SamplingConfig) -> Iterator[str]:
        yield text
        for piece in self.tokenizer.decode_stream(self.token_ids(ids, settings)):
            if piece:
                yield piece


@dataclass(frozen=True)
class Completion:
    """One written text."""

    prompt: str
    """What the model was given."""
    answer: str
    """What it wrote."""
    tokens: int
    """Length of the answer, with its end-of-text."""
    ended: bool
    """True if it ended by itself and not at the limit."""
    mean_logprob: float
    """Mean log-probability of its tokens in nats, before temperature and filters: how sure the model was."""

    @property
    def text(self) -> str:
        """The whole document."""
        return self.prompt + self.answer


def check_sampling(values: dict[str, object]) -> SamplingConfig:
    """Sampling settings from keywords. Raises UserError naming the wrong one and its range."""
    try:
        return SamplingConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, SamplingConfig, "generate")) from None


def load(path: str | Path) -> Engine:
    """Open a trained model: a run folder (`runs/tiny`, its newest phase's best weights), a checkpoint file, or a folder that
    `mlx-codegen export` wrote. Raises UserError where none of them is there, or it is damaged."""
    file = find_checkpoint(Path(path))
    checkpoint = open_checkpoint(file)
    model = checkpoint.build_model()
    dtype = getattr(mx, backend.resolve_precision("auto"))
    model.update(tree_map(lambda p: p.astype(dtype), model.parameters()))
    return Engine(model, checkpoint.tokenizer, phase=checkpoint.progress.phase, origin=str(file))


def find_checkpoint(path: Path) -> Path:
    """What to generate from: `path` itself (a checkpoint file or an exported folder), or a run folder's best code,
    else language, checkpoint."""
    if path.is_file():
        return path.parent if is_model_folder(path.parent) else path
    if path.is_dir() and is_model_folder(path):
        return path
    candidates = [path / f"{name}.safetensors" for name in ("best", "last")]
    candidates += [path / phase / f"{name}.safetensors" for phase in reversed(PHASES) for name in ("best", "last")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    what = "holds no checkpoint" if path.is_dir() else "is not there"
    raise UserError(f"{path} {what}; train one first: mlx-codegen train configs/nano.yaml")

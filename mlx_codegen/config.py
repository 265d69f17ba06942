"""Every setting of a run, checked before any work starts.

One pydantic model per concern; YAML in, checked objects out. Unknown keys are refused with the nearest known name,
and a wrong value names the file, the key and what is allowed. The texts under the fields are the reference that
`docs/CONFIG.md` is made from.
"""

import difflib
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from mlx_codegen.errors import UserError

Family = Literal["gpt2", "gpt_neox", "llama"]
Schedule = Literal["cosine", "linear", "constant", "wsd"]
Precision = Literal["auto", "float32", "float16", "bfloat16"]
PhaseName = Literal["language", "code"]
PHASES: tuple[PhaseName, ...] = ("language", "code")


class _YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's loader, in C where its build has it (ten times as fast), but a key that comes twice is an error.

    PyYAML itself takes the last of two and says nothing; half a task or a phase would be lost.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} comes twice", key.start_mark)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """The value that a YAML text holds. Raises yaml.YAMLError or ValueError for a bad one, RecursionError for one nested more
    than 500 levels deep: the C loader recurses for every level, and a hundred thousand of them would end the process."""
    if _bracket_depth(text) > 500 or re.search(r"^(?: {500}|(?:[-?:]\s+){500})", text, re.MULTILINE):
        raise RecursionError("nested too deeply")
    return yaml.load(text, _YamlLoader)


def _bracket_depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


class Settings(BaseModel):
    """Base of all settings: immutable, and a key that nobody reads is an error instead of a silent nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`early_stopping: true` would count as 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are not allowed here")
        return value


class ModelConfig(Settings):
    """Shape of the transformer. `vocab_size` is what the tokenizer asks for; a small corpus may yield fewer pieces."""

    family: Family = "gpt2"
    """gpt2: learned positions, LayerNorm, GELU, tied embeddings. gpt_neox: rotary positions, LayerNorm, GELU, untied.
    llama: rotary positions, RMSNorm, SwiGLU, tied embeddings."""
    n_layers: int = Field(ge=1, le=1000)
    """Number of transformer blocks."""
    d_model: int = Field(ge=8, le=65536)
    """Width of the residual stream; a multiple of n_heads."""
    n_heads: int = Field(ge=1)
    """Attention heads per block."""
    d_ff: int | None = Field(default=None, ge=1, le=2**20)
    """Hidden width of the MLP. Default: 4 x d_model, and 8/3 x d_model rounded up to a multiple of 32 for llama."""
    vocab_size: int = Field(default=8000, ge=2, le=65536)
    """Rows of the token table; token files hold uint16, hence the limit."""
    context_length: int = Field(default=512, ge=8, le=2**20)
    """Longest sequence in tokens."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of activations dropped after embeddings, attention and MLP while training."""
    bias: bool = False
    """Bias terms in linear layers and LayerNorms."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary frequencies (gpt_neox and llama)."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelConfig":
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.family != "gpt2" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head width, d_model / n_heads is {self.head_dim}")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def hidden_dim(self) -> int:
        """Width inside the MLP, with the family's default filled in."""
        if self.d_ff is not None:
            return self.d_ff
        if self.family == "llama":
            # SwiGLU has three matrices instead of two; 8/3 keeps the parameter count of a 4x MLP (arXiv 2002.05202).
            return -(-8 * self.d_model // 3 // 32) * 32
        return 4 * self.d_model


class TokenizerConfig(Settings):
    """One SentencePiece tokenizer for English and code together."""

    type: Literal["bpe", "char"] = "bpe"
    """bpe: byte-pair pieces. char: one piece a character. Both fall back to bytes, so every text survives."""
    training_bytes: int = Field(default=6_000_000, ge=1000)
    """At most this much text, drawn evenly from the sources, trains the tokenizer."""


class SourceConfig(Settings):
    """Where one stream of documents comes from: exactly one of `hub`, `path`, `bundled`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the token files and of the figures in reports."""
    hub: str | None = None
    """Data set id on the Hugging Face hub, streamed through `datasets`."""
    path: str | None = None
    """Local file or folder: .txt, .md, .jsonl, .json, .parquet, .sh, or a folder of such files."""
    bundled: Literal["english", "bash"] | None = None
    """Data that ships with the project."""
    split: str = "train"
    """Split of a hub data set."""
    subset: str | None = None
    """Configuration of a hub data set that has several."""
    text_column: str | None = None
    """Column (or JSON key) that holds a document. Default: the first of text, content, code, script that is there."""
    prompt_column: str | None = None
    """Column with an English request; makes documents of the form `# request`, newline, `text_column`."""
    script_documents: bool = False
    """Prompt pairs are whole scripts: the request goes under a `#!/bin/bash` line."""
    fresh_values: float = Field(default=0.0, ge=0, le=1)
    """Share of prompt pairs in which the values that prompt and answer share (paths, names, numbers) are replaced on both
    sides by fresh ones, so that a model learns to copy them; the prompts' case and final stop vary too. Validation keeps
    the originals."""
    versions: int = Field(default=1, ge=1)
    """With `fresh_values`: how often each pair is written, each time with other values."""
    weight: float = Field(default=1.0, gt=0)
    """Passes over this source in one epoch: 2 shows each document twice, 0.5 another half of them each epoch.
    In a phase with a streamed source: this source's share of the training text, compared with the other weights."""
    max_documents: int | None = Field(default=None, ge=1)
    """Stop after this many documents."""
    stream: bool = False
    """For a hub data set that is too large to prepare: it is read in shards while training (DATA.md)."""
    shard_documents: int = Field(default=20_000, ge=1)
    """With `stream`: documents in a shard. Training shuffles within a shard; the first one brings the validation documents."""
    cache_bytes: int = Field(default=2_000_000_000, ge=0)
    """With `stream`: disk for shards, in bytes. Shards that were trained on are deleted when there are more; four stay."""

    @model_validator(mode="after")
    def _one_origin(self) -> "SourceConfig":
        given = [origin for origin in (self.hub, self.path, self.bundled) if origin is not None]
        if len(given) != 1:
            raise ValueError(f"source '{self.name}' needs exactly one of hub, path, bundled; it has {len(given)}")
        if self.prompt_column is not None and self.text_column is None:
            raise ValueError(f"source '{self.name}' has prompt_column but no text_column to pair it with")
        if self.versions > 1 and self.fresh_values == 0:
            raise ValueError(f"source '{self.name}' has versions but no fresh_values: all versions would be equal")
        if self.stream and self.hub is None:
            raise ValueError(f"source '{self.name}' can stream only from hub (a data set's id, or a local folder of its files)")
        if self.stream and (self.fresh_values or self.max_documents):
            raise ValueError(f"source '{self.name}' streams: fresh_values and max_documents are for sources that are prepared")
        return self

    @property
    def description(self) -> str:
        """What it is, in words: `tldr (local files, 0.8 passes an epoch)`."""
        if self.bundled is not None:
            origin = f"{self.bundled} bundled with mlx_codegen"
        else:
            origin = f"hub data set {self.hub}" if self.hub is not None else "local files"
        passes = "" if self.weight == 1 else f", {self.weight:g} passes an epoch"
        return f"{self.name} ({origin}{passes})"


class PhaseConfig(Settings):
    """One training phase: what it reads, how long, how fast it learns."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """The data mix."""
    validation_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of documents kept for validation, chosen by a hash of their content. The bundled tasks bring their own split."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the mix. Give this or `steps`."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer updates. Give this or `epochs`."""
    batch_size: int = Field(default=8, ge=1, le=65536)
    """Sequences in one forward and backward pass."""
    gradient_accumulation: int = Field(default=1, ge=1, le=65536)
    """Passes whose gradients are averaged into one update."""
    learning_rate: float = Field(gt=0, le=1)
    """Peak learning rate."""
    min_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    """Final learning rate over peak learning rate (cosine and linear)."""
    schedule: Schedule = "cosine"
    """Shape of the decay after the warm-up; wsd stays at the peak until the last `decay_share` of the phase."""
    decay_share: float = Field(default=0.4, gt=0, le=1)
    """Share of the phase in which wsd falls."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonal updates for the matrices inside the blocks, AdamW for the rest."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's decay of the gradient's running mean."""
    warmup_steps: int = Field(default=100, ge=0)
    """Updates of linear warm-up from zero; at most a tenth of the phase is used."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay (AdamW), on matrices only."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's term against division by zero."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger global norm are scaled down to it."""
    validate_every: int = Field(default=200, ge=1)
    """Updates between two evaluations of the validation loss."""
    validation_tokens: int = Field(default=65_536, ge=1)
    """At most this many tokens in one evaluation."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Updates between two writes of the `last` checkpoint."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations without a better validation loss."""

    @model_validator(mode="after")
    def _one_length(self) -> "PhaseConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        streamed = [source.name for source in self.sources if source.stream]
        if streamed and self.epochs is not None:
            raise ValueError(f"source '{streamed[0]}' streams, so that nobody knows how long an epoch is: give steps, not epochs")
        return self

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        names = [source.name for source in sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are called '{name}'; names must differ")
        return sources


class PhasesConfig(Settings):
    """The phases, in the order in which they run. Leave one out to skip it."""

    language: PhaseConfig | None = None
    """English first: grammar and words."""
    code: PhaseConfig | None = None
    """Then bash, from the language phase's best checkpoint."""

    @model_validator(mode="after")
    def _at_least_one(self) -> "PhasesConfig":
        if self.language is None and self.code is None:
            raise ValueError("needs a language phase, a code phase, or both")
        return self


class RunConfig(Settings):
    """A whole run: the content of one file in `configs/`."""

    model: ModelConfig
    """Shape of the transformer."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How text becomes tokens."""
    phases: PhasesConfig
    """What is trained on, in which order."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initialisation, dropout and data order."""
    precision: Precision = "auto"
    """Compute type; master weights stay float32. auto: what this machine is fast and safe at."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, with less memory."""

    def phase(self, name: PhaseName) -> PhaseConfig | None:
        """Settings of one phase, or None where the config has none."""
        return self.phases.language if name == "language" else self.phases.code

    def phase_names(self) -> list[PhaseName]:
        """The phases that this config has, in order."""
        return [name for name in PHASES if self.phase(name) is not None]


def repository_folder(name: str) -> Path:
    """`configs/` or `data/`: beside the package in a checkout, inside it when installed as a wheel.

    Raises UserError where neither is there.
    """
    package = Path(__file__).parent
    for folder in (package.parent / name, package / f"bundled_{name}"):
        if folder.is_dir():
            return folder
    raise UserError(f"the folder {name}/ that ships with mlx_codegen is missing; install it again")


def expanded(path: str) -> Path:
    """A path with `~` as the home folder; as it stands where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def load_run_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a config file and apply `key.path=value` overrides.

    `path` is a file, or the bare name of one in `configs/` (`tiny`). Raises UserError for anything wrong in either.
    """
    file = find_config(path)
    return build_run_config(read_yaml(file), overrides, origin=str(file))


def find_config(path: str | Path) -> Path:
    """A config file from its path or its bare name. Raises UserError with the nearest names where there is none."""
    file = Path(path)
    if file.is_file():
        return file
    shipped = {entry.stem: entry for entry in sorted(repository_folder("configs").glob("*.yaml"))}
    if str(path) in shipped:
        return shipped[str(path)]
    hint = _nearest(file.stem, shipped)
    raise UserError(f"no config file {path}; {hint or 'shipped configs: ' + ', '.join(shipped)}")


def build_run_config(values: dict[str, Any], overrides: Iterable[str] = (), origin: str = "config") -> RunConfig:
    """Check plain values (as YAML gives them) into a RunConfig; `origin` names them in errors."""
    for override in overrides:
        _apply_override(values, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, RunConfig, origin)) from None


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError for a missing, unreadable or malformed one."""
    try:
        values = load_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise UserError(f"{file}{line}: not valid YAML ({getattr(error, 'problem', None) or 'cannot be parsed'})") from None
    except (ValueError, RecursionError) as error:  # no such date, no such number, ...
        raise UserError(f"{file}: a value that cannot be read ({error}); put it in quotes, or correct it") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: holds no settings; a config is a mapping with model: and phases:")
    return values


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML that `load_run_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Set one dotted key. A number in the path indexes a list: `phases.code.sources.0.weight=2`."""
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise UserError(f"--set {override}: write it as key.path=value, for example phases.code.learning_rate=5e-5")
    try:
        value = load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--set {override}: the value is not valid YAML; put it in quotes") from None
    target: Any = values
    for part in parts[:-1]:
        target = _descend(target, part, override)
    last = parts[-1]
    if isinstance(target, list):
        target[_list_index(target, last, override)] = _number_if_number(value)
    else:
        target[last] = _number_if_number(value)


def _descend(target: Any, part: str, override: str) -> Any:
    key = _list_index(target, part, override) if isinstance(target, list) else part
    if isinstance(target, dict) and target.get(part) is None:
        target[part] = {}
    if not isinstance(target[key], dict | list):
        raise UserError(f"--set {override}: '{part}' is a single value, it has no keys inside")
    return target[key]


def _list_index(target: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(target):
        raise UserError(f"--set {override}: '{part}' should be an index from 0 to {len(target) - 1}")
    return int(part)


def _number_if_number(value: Any) -> Any:
    """YAML 1.1 reads 5e-5 (no dot) as text; a person means a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def describe_validation_error(error: ValidationError, root: type[BaseModel], origin: str) -> str:
    """All problems of a validation in one line: file, key, what is allowed."""
    return f"{origin}: " + "; ".join(_describe(problem, root) for problem in error.errors(include_url=False))


def _describe(problem: Any, root: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(root, problem["loc"][:-1])
        hint = _nearest(str(problem["loc"][-1]), known)
        return f"unknown key {key}" + (f"; {hint}" if hint else f"; allowed here: {', '.join(known)}")
    if problem["type"] == "missing":
        return f"key {key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not key:
        return message
    found = problem.get("input")
    shown = f", found {found!r}" if isinstance(found, str | int | float | bool | None) else ""
    return f"{key}: {message}{shown}"


def _known_keys(root: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """Field names of the settings at a place in the tree."""
    model: type[BaseModel] = root
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            nested = _nested_model(model.model_fields[part].annotation)
            model = nested or model
    return list(model.model_fields)


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _nested_model(argument)
        if found is not None:
            return found
    return None


def _nearest(name: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else None

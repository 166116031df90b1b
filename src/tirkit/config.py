"""What a run is made of: one frozen, strict section per stage, read from TOML plus `section.key=value` overrides.

The class defaults are the embedded setting, which a 2-core CPU runs in minutes. An unknown key or a wrong type raises
`ConfigError`, which names the key and what is allowed. A config may carry named *arms*: sets of overrides that turn it
into a baseline or an ablation.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tirkit.types import UserError

Indexing = Literal["atomic", "name", "numeric", "hierarchical", "none"]
Schedule = Literal["constant", "linear", "cosine"]
Optimizer = Literal["adamw", "muon"]


class ConfigError(UserError):
    """The configuration cannot be used; the message names the key and what is allowed."""


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelConfig(Section):
    """The model a run starts from."""

    path: str = Field(default="embedded", description="'embedded', a model folder or a Hugging Face name")
    scratch: bool = Field(default=False, description="random weights, tokenizer made from the catalogue")
    vocab_size: int = Field(default=4096, gt=300, description="size of that tokenizer")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the computation in training; weights are kept in float32"
    )
    lora_rank: int = Field(default=0, ge=0, description="0 = full training")
    device: Literal["auto", "cpu", "cuda"] = "auto"


class CatalogueConfig(Section):
    """Where the tools come from."""

    path: str = Field(default="embedded", description="'embedded', 'seal_tools_sample' or a catalogue file")
    num_tools: int = Field(default=64, gt=0, description="embedded only")
    indexing: Indexing = Field(
        default="atomic", description="how a tool is written; none = plain names, not internalised"
    )


class TasksConfig(Section):
    """Where the questions come from and how they are divided."""

    path: str = Field(default="embedded", description="'embedded', 'seal_tools_sample' or a question file")
    num_train: int = Field(default=1600, gt=0)
    num_rl: int = Field(
        default=0, ge=0, description="training questions that RL alone trains on; 0 = all, after phases 1 and 2 did"
    )
    num_validation: int = Field(default=128, gt=0)
    num_test: int = Field(default=512, gt=0)
    min_seen_test: int = Field(default=0, ge=0, description="test questions whose tools are all seen, at least")


class TrainConfig(Section):
    """One training phase."""

    enabled: bool = True
    steps: int = Field(gt=0)
    lr: float = Field(gt=0)
    batch_size: int = Field(default=32, gt=0, description="rows per optimiser step")
    max_tokens: int = Field(default=2048, gt=0, description="tokens of a micro-batch")
    optimizer: Optimizer = "muon"
    schedule: Schedule = "linear"
    warmup: float = Field(default=0.03, ge=0, le=1, description="share of the steps")
    save_every: int = Field(default=200, gt=0, description="steps between checkpoints")


class SupervisedConfig(TrainConfig):
    """A training phase on examples."""

    general: float = Field(default=0.0, ge=0, lt=1, description="share of the base model's own tasks; embedded only")
    spare_unseen: bool = Field(
        default=True, description="tokens of tools no training question uses stay out of the softmax on questions"
    )
    validate_every: int = Field(default=0, ge=0, description="steps; the best state is kept; 0 = never")


class CorpusConfig(Section):
    """Examples of phase 1: document-derived ones a tool, by kind, and training questions."""

    memorise: int = Field(default=6, ge=0)
    recall: int = Field(default=1, ge=0)
    views: int = Field(default=4, ge=0, description="0 = no document-derived views in the chat format")
    pseudo_calls: int = Field(default=3, ge=0)
    thoughts: float = Field(
        default=0.5, ge=0, le=1, description="share of views and pseudo calls that name the tool in a thought first"
    )
    field_dropout: float = Field(default=0.3, ge=0, lt=1)
    questions: int = Field(
        default=400, ge=0, description="training questions that need tools, answered without reasoning; 0 = none"
    )


class InternaliseConfig(SupervisedConfig):
    """TInR-U phase 1: memorise, recall and use."""

    steps: int = Field(default=900, gt=0)
    lr: float = Field(default=4e-3, gt=0)
    alpha: float = Field(default=1.0, ge=0, description="weight of recall")
    beta: float = Field(default=1.0, ge=0, description="weight of use")
    corpus: CorpusConfig = CorpusConfig()
    document_name: bool = Field(default=True, description="the tool's name stands in its document when memorising")


class SynthesiseConfig(Section):
    """TInR-U phase 2 data: a teacher's trajectories, kept by rejection sampling."""

    enabled: bool = True
    teacher: str = Field(default="scripted", description="'scripted' or an OpenAI-compatible model name")
    base_url: str = Field(default="", description="endpoint of that model")
    num_candidates: int = Field(default=10, gt=0)
    num_samples: int = Field(default=1, gt=0, description="teacher trajectories per question")
    concurrency: int = Field(default=8, gt=0, description="requests in flight")
    price_in: float = Field(default=0.0, ge=0, description="of a million prompt tokens, for tirkit plan")
    price_out: float = Field(default=0.0, ge=0, description="of a million written tokens, for tirkit plan")
    seconds_a_request: float = Field(default=5.0, gt=0, description="for tirkit plan")


class WarmupConfig(SupervisedConfig):
    """TInR-U phase 2 training: supervised on the kept trajectories."""

    steps: int = Field(default=500, gt=0)
    lr: float = Field(default=2e-3, gt=0)
    schedule: Schedule = "cosine"
    replay: float = Field(default=0.3, ge=0, lt=1, description="share of phase 1 rows in the mix")


class RLConfig(TrainConfig):
    """TInR-U phase 3: GRPO."""

    steps: int = Field(default=40, gt=0)
    lr: float = Field(default=1e-4, gt=0)
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "constant"
    warmup: float = Field(default=0.0, ge=0, le=1)
    batch_size: int = Field(default=16, gt=0, description="prompts per optimiser step")
    num_generations: int = Field(default=8, gt=1)
    std_normalised: bool = Field(default=True, description="divide advantages by the group's standard deviation")
    clip_low: float = Field(default=0.2, gt=0)
    clip_high: float = Field(default=0.2, gt=0)
    iterations: int = Field(default=1, gt=0, description="updates per batch of rollouts")
    temperature: float = Field(default=1.0, gt=0)
    entropy_coefficient: float = Field(default=0.0, ge=0)
    min_success: float = Field(default=0.1, ge=0, le=1, description="share of sampled validation answers that RL needs")
    save_every: int = Field(default=10, gt=0)


class RolloutConfig(Section):
    """How a task becomes a trajectory."""

    two_step: bool = Field(default=True, description="documents of the selected tools are handed back before the call")
    prompt: Literal["none", "documents", "retrieve"] = "none"
    retrieve_k: int = Field(default=5, gt=0)
    max_turns: int = Field(default=8, gt=0)
    max_calls: int = Field(default=8, gt=0)
    max_new_tokens: int = Field(default=160, gt=0, description="tokens of one turn")
    max_tokens: int = Field(default=2048, gt=0, description="tokens of one completion, replies included")
    constrain: Literal["none", "selection", "calls", "both"] = Field(
        default="none", description="what decoding is held to: known tools in selections, schemas in calls"
    )
    max_batch: int = Field(default=128, gt=0)
    tool_timeout_s: float = Field(default=10.0, gt=0)
    max_result_chars: int = Field(default=2000, gt=0)


class EvaluateConfig(Section):
    """What is measured after the last phase."""

    enabled: bool = True
    knowledge_items: int = Field(default=256, ge=0, description="tools asked after every phase; 0 = all")


class RunConfig(Section):
    """A whole run."""

    name: str = "run"
    seed: int = 0
    model: ModelConfig = ModelConfig()
    catalogue: CatalogueConfig = CatalogueConfig()
    tasks: TasksConfig = TasksConfig()
    internalise: InternaliseConfig = InternaliseConfig()
    synthesise: SynthesiseConfig = SynthesiseConfig()
    warmup: WarmupConfig = WarmupConfig()
    rl: RLConfig = RLConfig()
    rollout: RolloutConfig = RolloutConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def digest(self) -> str:
        """Twelve hex digits that change with every setting."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


def load_config(path: Path, overrides: Sequence[str] = (), arm: str = "") -> RunConfig:
    """Read a TOML config, apply one of its arms, then `section.key=value` overrides.

    Raises `ConfigError` for an unreadable file, an unknown key, a wrong type or an arm that is not there.
    """
    data = _read_toml(path)
    arms = _arms(data.pop("arms", {}), path)
    if arm:
        if arm not in arms:
            raise ConfigError(f"{path}: no arm {arm!r}; it has: {', '.join(arms) or 'none'}")
        for key, value in arms[arm].items():
            _assign(data, key, value)
        data["name"] = arm
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r}: expected section.key=value")
        _assign(data, key.strip(), _toml_value(value.strip()))
    return parse_config(data, str(path))


def arm_names(path: Path) -> list[str]:
    """Names of the arms a config file defines, in the file's order."""
    return list(_arms(_read_toml(path).get("arms", {}), path))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def parse_config(data: Mapping[str, Any], origin: str) -> RunConfig:
    """Validate a nested mapping; `origin` (a file name) begins every error message."""
    try:
        return RunConfig.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        reasons = "\n".join(f"  {_explain(item)}" for item in error.errors())
        raise ConfigError(f"{origin}: {error.error_count()} setting(s) cannot be used\n{reasons}") from error


def differences(left: RunConfig, right: RunConfig) -> list[str]:
    """`key: left → right` for every setting in which the two differ."""
    a, b = _flat(left.model_dump()), _flat(right.model_dump())
    return [f"{key}: {a[key]} → {b[key]}" for key in a if a[key] != b[key]]


def _arms(value: Any, path: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(arm, dict) for arm in value.values()):  # pyright: ignore
        raise ConfigError(f'{path}: arms must be tables of overrides, like [arms.name] "section.key" = value')
    return value  # pyright: ignore


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):  # pyright: ignore
            raise ConfigError(f"override {key}: {section} is a value, not a section")
    data[last] = value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    if item["type"] != "extra_forbidden":
        return f"{key}: {item['msg']} (got {item.get('input')!r})"
    section: type[BaseModel] = RunConfig
    for part in path[:-1]:
        section = section.model_fields[part].annotation  # pyright: ignore
    where = f"[{'.'.join(path[:-1])}]" if path[:-1] else "the top level"
    return f"{key}: unknown; {where} takes {', '.join(section.model_fields)}"


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}  # pyright: ignore
    return flat

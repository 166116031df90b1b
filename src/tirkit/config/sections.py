"""The sections of a config that all methods share, and those of TInR-U."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tirkit.types import UserError

Indexing = Literal["atomic", "name", "numeric", "hierarchical", "none"]
Schedule = Literal["constant", "linear", "cosine"]
Optimizer = Literal["adamw", "muon"]
EmbeddedKind = Literal["single", "two_step", "arithmetic_easy", "arithmetic_plain", "arithmetic_hard", "no_tool"]


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
    gradient_checkpointing: bool = Field(
        default=False, description="activations of supervision and RL are computed twice, not kept"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"


class CatalogueConfig(Section):
    """Where the tools come from."""

    path: str = Field(
        default="embedded",
        description="'embedded', 'seal_tools_sample', 'python_search', a catalogue file, or a .py file of functions",
    )
    allow: tuple[str, ...] = Field(
        default=(),
        description="imported tools that training may run beside those that are read-only; ['*'] = all",
    )
    state: Literal["shared", "attempt"] = Field(
        default="shared",
        description="attempt: MCP commands whose tools change something are started anew for each attempt",
    )
    max_states: int = Field(default=16, gt=0, description="attempts that have state at a time; the others wait")
    corpus: str = Field(default="", description="python_search only: passages to search; without, Python alone")
    num_tools: int = Field(default=64, gt=0, description="embedded only")
    indexing: Indexing = Field(
        default="atomic", description="how a tool is written; none = plain names, not internalised"
    )

    @property
    def functions(self) -> bool:
        """Whether `path` is a file of Python functions."""
        return self.path.endswith(".py")


class TasksConfig(Section):
    """Where the questions come from and how they are divided."""

    path: str = Field(default="embedded", description="'embedded', 'seal_tools_sample' or a question file")
    num_train: int = Field(default=1600, gt=0)
    kinds: tuple[EmbeddedKind, ...] = Field(
        default=(), description="embedded only: these in turn, about seen tools; none = the usual mix"
    )
    num_rl: int = Field(
        default=0, ge=0, description="training questions that RL alone trains on; 0 = all, after phases 1 and 2 did"
    )
    num_validation: int = Field(default=128, gt=0)
    num_test: int = Field(default=512, gt=0)
    test_seed: int = Field(
        default=0, ge=0, description="embedded only: another one draws other test questions, which nobody has looked at"
    )
    decontaminate: bool = Field(
        default=False, description="leave out training questions that resemble validation or test questions"
    )
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


class EndpointSection(Section):
    """A stage that may ask an OpenAI-compatible endpoint, whose key is in OPENAI_API_KEY."""

    base_url: str = Field(default="", description="its address; OpenAI's if empty")
    concurrency: int = Field(default=8, gt=0, description="requests in flight")
    price_in: float = Field(default=0.0, ge=0, description="of a million prompt tokens")
    price_out: float = Field(default=0.0, ge=0, description="of a million written tokens")
    seconds_a_request: float = Field(default=5.0, gt=0, description="for tirkit plan")


class SynthesiseConfig(EndpointSection):
    """TInR-U phase 2 data: a teacher's trajectories, kept by rejection sampling."""

    enabled: bool = True
    teacher: str = Field(default="scripted", description="'scripted' or an OpenAI-compatible model name")
    num_candidates: int = Field(default=10, gt=0)
    num_samples: int = Field(default=1, gt=0, description="teacher trajectories per question")
    think_share: float = Field(
        default=0.5, ge=0, le=1, description="rollout.modes only: share of them that keep their reasoning"
    )


class WarmupConfig(SupervisedConfig):
    """TInR-U phase 2 training: supervised on the kept trajectories."""

    steps: int = Field(default=500, gt=0)
    lr: float = Field(default=2e-3, gt=0)
    schedule: Schedule = "cosine"
    replay: float = Field(default=0.3, ge=0, lt=1, description="share of phase 1 rows in the mix")


class EntropyTermConfig(Section):
    """A bonus on entropy in RL; fields as in `tirkit.methods.autotool.decoupled.EntropyTerm`."""

    over: Literal["all", "think", "no_think"] = Field(default="all", description="the trajectories it covers")
    tokens: Literal["all", "mode"] = Field(default="all", description="all sampled tokens, or the mode token alone")
    coefficient: float = Field(default=0.0, ge=0, description="at the start")
    target: float | None = Field(default=None, ge=0, description="nats; no bonus above it; without one always")
    rate: float = Field(default=0.0, ge=0, description="how fast the coefficient adapts; 0 = fixed")
    step: Literal["proportional", "sign"] = "proportional"
    maximum: float = Field(default=0.1, gt=0, description="of an adaptive coefficient")


class GuardConfig(Section):
    """While the think rate is below `below`, `copies` of each question's rollouts are made to think; 0 = off."""

    below: float = Field(default=0.0, ge=0, le=1)
    copies: int = Field(default=1, gt=0)


class ProbeConfig(Section):
    """Watching for the collapse of thinking: every so many steps some validation questions are asked in either mode."""

    every: int = Field(default=0, ge=0, description="steps; 0 = never")
    num_tasks: int = Field(default=32, gt=0)


class GrowConfig(WarmupConfig):
    """Tools added later: new rows and LoRA factors, trained on phase 1 of what is new, with old tools replayed."""

    enabled: bool = False
    run: str = Field(default="", description="folder of the finished run; catalogue.path is then the new catalogue")
    remove: bool = Field(default=False, description="tools that the new catalogue lacks are removed; else they stay")
    questions: str = Field(default="", description="file of test questions about the new tools")
    steps: int = Field(default=200, gt=0)
    lr: float = Field(default=3e-3, gt=0)
    replay: float = Field(default=0.4, ge=0, lt=1, description="share of rows from documents of kept tools")
    attempts: float = Field(default=0.2, ge=0, lt=1, description="share of rows that the run's phase 2 was trained on")


class RLConfig(TrainConfig):
    """GRPO: TInR-U's phase 3, AutoTraj's stage 2, AutoTool's objective."""

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
    entropy: tuple[EntropyTermConfig, ...] = Field(default=(), description="bonuses on entropy, none twice")
    guard: GuardConfig = GuardConfig()
    probe: ProbeConfig = ProbeConfig()
    reward: Literal["tinr", "trajectory", "mode", "unified"] = Field(
        default="tinr",
        description="trajectory: outcome and a bonus by the reward model (AutoTraj); mode: AutoTool's table; "
        "unified: that table scaled by agreement with the gold, and the bonus",
    )
    bonus: Literal["right", "partial", "signed"] = Field(default="right", description="which outcomes it is given for")
    bonus_weight: float = Field(default=0.2, ge=0, description="0 = outcome alone")
    scorer_url: str = Field(
        default="", description="a served reward model, http://HOST:PORT/score (`tirkit serve`); the run's own if empty"
    )
    scorer_key_env: str = Field(default="", description="environment variable with the key of rl.scorer_url's server")
    min_success: float = Field(default=0.1, ge=0, le=1, description="share of sampled validation answers that RL needs")
    save_every: int = Field(default=10, gt=0)


class RolloutConfig(Section):
    """How a task becomes a trajectory."""

    modes: bool = Field(default=False, description="an attempt begins with [think] or [no_think] (AutoTool)")
    think: Literal["optional", "required"] = Field(
        default="optional", description="required: first turns and replies without a thought are not well-formed"
    )
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
    earlier: bool = Field(default=True, description="the models before fine-tuning, RL and growing answer the test too")
    forced: bool = Field(default=True, description="rollout.modes only: the last model answers it in either mode too")
    knowledge_items: int = Field(default=256, ge=0, description="tools asked after every phase; 0 = all")
    general_items: int = Field(
        default=50, ge=0, description="of each of the embedded base model's own tasks, after every phase; 0 = none"
    )

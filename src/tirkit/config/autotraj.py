"""The sections of AutoTraj: candidates, their score, repair, datasets, supervision on them, reward model."""

from typing import Literal

from pydantic import Field

from tirkit.config.sections import EndpointSection, Schedule, Section, WarmupConfig


class CandidatesConfig(EndpointSection):
    """AutoTraj: attempts at training questions, to be scored."""

    enabled: bool = False
    policy: str = Field(default="model", description="'model' (the newest one) or an OpenAI-compatible model name")
    log: str = Field(default="", description="file of attempts made elsewhere, taken instead of sampling")
    num_tasks: int = Field(
        default=0, ge=0, description="of the questions that RL trains on, the first so many; 0 = all"
    )
    samples: int = Field(default=4, gt=0, description="attempts at each")
    temperature: float = Field(default=1.0, gt=0)
    instruct: bool = Field(
        default=False, description="tell the model the format in a system message, which its attempts forget"
    )
    chunk: int = Field(default=32, gt=0, description="questions between two writes; here and when repairing")


class QualityConfig(Section):
    """AutoTraj's score S and the thresholds on it; fields as in `tirkit.scoring.quality.QualitySettings`."""

    hesitation: float = Field(default=0.4, ge=0, description="weight; this and the next five")
    length_weight: float = Field(default=0.3, ge=0)
    repetition: float = Field(default=0.3, ge=0)
    tool_efficiency: float = Field(default=0.0, ge=0)
    tool_success: float = Field(default=0.0, ge=0)
    well_formed: float = Field(default=0.0, ge=0)
    length: Literal["two_sided", "one_sided"] = Field(default="two_sided", description="one_sided: L <= L* is 1")
    tool_turns: bool = Field(default=False, description="what tools hand back counts as words")
    hedges_in: Literal["thoughts", "all"] = "thoughts"
    keep_all: float = Field(default=0.90, ge=0, le=1)
    keep_best: float = Field(default=0.86, ge=0, le=1)
    accept_poor: float = Field(default=0.86, ge=0, le=1)
    accept_wrong: float = Field(default=0.80, ge=0, le=1)


class RepairConfig(EndpointSection):
    """AutoTraj: poor and wrong candidates are rewritten."""

    enabled: bool = False
    repairer: str = Field(
        default="scripted", description="'rules' alone, 'scripted' or an OpenAI-compatible model name"
    )
    rules: bool = Field(default=True, description="rules go first")
    cases: tuple[Literal["poor", "wrong"], ...] = Field(
        default=("poor", "wrong"), min_length=1, description="right but poor (case A), wrong (case B)"
    )
    retries: int = Field(default=2, ge=0, description="tries after the first, at the temperature below")
    temperature: float = Field(default=0.7, gt=0)
    templates: str = Field(default="", description="folder of repair prompts in the place of the built-in ones")
    skill: float = Field(default=1.0, ge=0, le=1, description="scripted: probability to see through a flaw it knows")
    knows: tuple[Literal["poor", "broken", "wrong_tool", "wrong_arguments", "wrong_answer"], ...] = Field(
        default=("poor", "broken", "wrong_tool", "wrong_arguments", "wrong_answer"),
        description="scripted: flaws",
    )
    max_requests: int = Field(default=0, ge=0, description="of the whole stage; 0 = no limit, here and below")
    max_tokens: int = Field(default=0, ge=0, description="read and written")
    max_money: float = Field(default=0.0, ge=0, description="by price_in and price_out")


class PairsConfig(Section):
    """AutoTraj: the SFT set and the preference pairs."""

    enabled: bool = False
    repairs: Literal["use", "none", "demonstrations"] = Field(
        default="use", description="demonstrations: the gold's, played by a script, in the place of every repair"
    )
    outcomes: bool = Field(default=False, description="every success and failure at one question is a pair too")
    max_per_query: int = Field(default=2, gt=0, description="SFT examples of one question and mode, best S first")
    num_examples: int = Field(default=0, ge=0, description="exactly so many SFT examples, drawn at random; 0 = all")


class FinetuneConfig(WarmupConfig):
    """AutoTraj: supervised on kept and repaired trajectories."""

    enabled: bool = False
    steps: int = Field(default=120, gt=0)


class RewardModelConfig(Section):
    """AutoTraj: a scalar head on the newest model, trained on the pairs; see `training.reward_model.RewardSettings`."""

    enabled: bool = False
    lr: float = Field(default=1e-3, gt=0)
    epochs: float = Field(default=4.0, gt=0)
    batch_size: int = Field(default=16, gt=0, description="pairs per optimiser step")
    micro_batch: int = Field(default=8, gt=0, description="pairs per forward")
    schedule: Schedule = "linear"
    warmup: float = Field(default=0.1, ge=0, le=1, description="share of the steps")
    lora_rank: int = Field(default=0, ge=0, description="0 = full training")
    held_out: float = Field(default=0.2, gt=0, lt=1, description="share of the questions")
    max_tokens: int = Field(default=2048, gt=0, description="of a trajectory; pairs with a longer one are left out")
    save_every: int = Field(default=50, gt=0, description="steps between checkpoints")

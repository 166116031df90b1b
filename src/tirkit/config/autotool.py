"""The sections of AutoTool: mode labels, refinement of RL's questions. Entropy is in RL's section."""

from typing import Literal

from pydantic import Field

from tirkit.config.sections import EndpointSection, Section


class LabelConfig(EndpointSection):
    """AutoTool: which questions need thinking, by attempts without and with it; fine-tuning imitates accordingly."""

    enabled: bool = False
    no_think: str = Field(
        default="model", description="who does not think: 'model' (the newest one) or an OpenAI-compatible model name"
    )
    think: str = Field(default="model", description="who thinks")
    num_tasks: int = Field(
        default=0, ge=0, description="of the questions that RL trains on, the first so many; 0 = all"
    )
    samples: int = Field(default=8, gt=0, description="attempts of either at each")
    temperature: float = Field(default=1.0, gt=0)
    min_correct: int = Field(default=1, gt=0, description="right attempts without thinking that make a question easy")
    only: Literal["", "think", "no_think"] = Field(
        default="", description="attempts in the other mode count for nothing: baselines that always or never think"
    )
    min_think_share: float = Field(default=0.3, ge=0, le=1, description="of what is imitated, where there is enough")
    max_think_share: float = Field(default=0.5, ge=0, le=1)
    chunk: int = Field(default=32, gt=0, description="questions between two writes")


class RefineConfig(Section):
    """AutoTool: RL gets the questions whose reward varies least over some cheap rounds of RL."""

    enabled: bool = False
    rounds: int = Field(default=4, gt=2, description="over all of RL's questions; fewer than 3 have no variance")
    fraction: float = Field(default=1 / 3, gt=0, le=1, description="of the questions that is kept")
    easy: float = Field(default=0.95, ge=0, le=1, description="success from which a question counts as too easy")
    hard: float = Field(default=0.05, ge=0, le=1, description="success up to which it counts as too hard")
    drop: float = Field(default=0.5, ge=0, le=1, description="probability to leave such a question out")

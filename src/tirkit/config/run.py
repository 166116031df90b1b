"""The config of a whole run: one section a stage, and those that several stages share."""

import hashlib

from tirkit.config.autotool import LabelConfig, RefineConfig
from tirkit.config.autotraj import (
    CandidatesConfig,
    FinetuneConfig,
    PairsConfig,
    QualityConfig,
    RepairConfig,
    RewardModelConfig,
)
from tirkit.config.sections import (
    CatalogueConfig,
    EvaluateConfig,
    GrowConfig,
    InternaliseConfig,
    ModelConfig,
    RLConfig,
    RolloutConfig,
    Section,
    SynthesiseConfig,
    TasksConfig,
    WarmupConfig,
)


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
    label: LabelConfig = LabelConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    quality: QualityConfig = QualityConfig()
    repair: RepairConfig = RepairConfig()
    pairs: PairsConfig = PairsConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    refine: RefineConfig = RefineConfig()
    rl: RLConfig = RLConfig()
    grow: GrowConfig = GrowConfig()
    rollout: RolloutConfig = RolloutConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def digest(self) -> str:
        """Twelve hex digits that change with every setting."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

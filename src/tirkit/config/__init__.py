"""What a run is made of: one frozen, strict section per stage, read from TOML plus `section.key=value` overrides.

The class defaults are the embedded setting, which a 2-core CPU runs in minutes. An unknown key, a wrong type or
settings that make no sense together raise `ConfigError`, which names the key and what is allowed. A config may carry
named *arms*: sets of overrides that turn it into a baseline or an ablation.
"""

from tirkit.config.autotraj import QualityConfig, RepairConfig
from tirkit.config.check import TRAINING
from tirkit.config.load import arm_names, differences, load_config, override, parse_config
from tirkit.config.run import RunConfig
from tirkit.config.sections import (
    CatalogueConfig,
    ConfigError,
    EndpointSection,
    RLConfig,
    SupervisedConfig,
    SynthesiseConfig,
    TasksConfig,
    TrainConfig,
    WarmupConfig,
)

__all__ = [
    "TRAINING",
    "CatalogueConfig",
    "ConfigError",
    "EndpointSection",
    "QualityConfig",
    "RLConfig",
    "RepairConfig",
    "RunConfig",
    "SupervisedConfig",
    "SynthesiseConfig",
    "TasksConfig",
    "TrainConfig",
    "WarmupConfig",
    "arm_names",
    "differences",
    "load_config",
    "override",
    "parse_config",
]

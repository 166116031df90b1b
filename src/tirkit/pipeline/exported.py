"""An exported folder, opened again: the model, its tools, its run's settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from tirkit.config import ConfigError, RunConfig
from tirkit.pipeline.context import Loaded, constraints
from tirkit.pipeline.sources import load_folder
from tirkit.rollout.allow import AllOf, Constraint
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.serving.export import RUN_FILE, read_tools
from tirkit.store import Manifest
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.types import ToolSchema


@dataclass(frozen=True)
class Exported:
    """What an export left; `tools` by name, without what runs them. `constraint`: bounds what is written in blocks."""

    config: RunConfig
    tools: Mapping[str, ToolSchema]
    loaded: Loaded
    dialect: Dialect
    constraint: Constraint | None

    def policy(self, temperature: float) -> TransformersPolicy:
        """The model as a policy, held to what its run's models were held to."""
        model, renderer = self.loaded.model, self.loaded.renderer
        return TransformersPolicy(model, renderer, temperature, self.config.rollout.max_batch, self.constraint)


def open_exported(folder: Path) -> Exported:
    """The model as it was exported. Raises a UserError where the folder is damaged."""
    index, tools = read_tools(folder)
    config = _config(folder / RUN_FILE)
    model, tokenizer = load_folder(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]
    loaded, r = Loaded(model, tokenizer, Renderer(tokenizer, index)), config.rollout
    dialect = Dialect(index, two_step=r.two_step, think=r.think, modes=r.modes)
    parts = constraints(r.constrain, loaded, dialect, tuple(tools.values()))
    return Exported(config, tools, loaded, dialect, AllOf(parts) if parts else None)


def _config(path: Path) -> RunConfig:
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8")).config
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{path}, the settings an exported model was trained with, is missing, damaged or of another version of "
            "tirkit: export the run again"
        ) from error

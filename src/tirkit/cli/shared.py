"""What commands share: their options, and how what was given is read."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tirkit.types import UserError

out = Console()

Config = Annotated[Path, typer.Argument(help="TOML config; see configs/", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value settings", show_default=False)]
Arm = Annotated[str, typer.Option(help="one of the config's arms: a baseline or an ablation")]
Run = Annotated[Path, typer.Argument(help="a run folder", show_default=False)]
Stage = Annotated[str, typer.Option(help="the run's model of this stage; the last one if empty")]
Scripted = Annotated[Path | None, typer.Option(help="play these tasks' gold: JSONL, as in RUN/records")]


def listed(names: str) -> list[str]:
    """What is separated by commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def numbers(text: str, option: str) -> list[int]:
    """Integers that are separated by commas. Raises UserError, naming the option, where one is none."""
    try:
        return [int(number) for number in listed(text)]
    except ValueError:
        raise UserError(f"{option} {text}: give integers, separated by commas") from None


def asked_for(ctx: typer.Context, names: Collection[str]) -> str:
    """The first of these options that was given on the command line; "" where none was."""
    given = (param for param in ctx.command.params if param.name in names and _was_given(ctx, param.name))
    return next((max(param.opts, key=len) for param in given), "")


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"

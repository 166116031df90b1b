"""The README.md of an exported model."""

from dataclasses import dataclass
from pathlib import Path

import jinja2


@dataclass(frozen=True)
class Number:
    """One measured mean with its 95 % interval, as text, over `n` questions, for the model of `stage`."""

    stage: str
    measure: str
    mean: str
    interval: str
    n: int


@dataclass(frozen=True)
class Card:
    """What a model card says; the words are in model_card.jinja.

    base: words for the base model; base_id: its name on the hub, "" where it has none; license: its SPDX name, "" where
    unknown. folder: where the export is, as the reader is to write it; gguf: the name of a GGUF file in it, "" without.
    example: how one tool is written. index: as in tools.json. stages: (name, time). unbreakable: tokens that outside
    text can spell all the same.
    """

    name: str
    folder: str
    version: str
    base: str
    base_id: str
    license: str
    catalogue: str
    tasks: str
    stage: str
    seed: int
    prompt: str
    constrain: str
    dtype: str
    num_tools: int
    num_test: int
    index: str
    selection: str
    example: str
    numbers: tuple[Number, ...] = ()
    stages: tuple[tuple[str, str], ...] = ()
    retired: int = 0
    unbreakable: tuple[str, ...] = ()
    gguf: str = ""

    def text(self) -> str:
        """The card as Markdown."""
        words = Path(__file__).with_name("model_card.jinja").read_text(encoding="utf-8")
        environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
        )
        return environment.from_string(words).render(card=self)

"""Phase 1: what a model reads to know its tools: memorise, recall, use, and document-derived views.

    memorise     user: a template around the document                    → the tool's selection
    recall       user asks; selection of the tool (given); user asks     → the tool's document, canonical JSON
    view         user: words of the name or of the description, keywords → (thought), the tool's selection
    pseudo_call  user: such words and random values for its parameters   → selection, (document), call
    use          user: a real question                                   → the gold selection, (documents), calls, …

The last three speak the chat format of real questions: without them alignment did not carry over to questions in our
study (the paper has memorise, recall and use only). Everything is a function of (seed, tool, i) alone.

L = L_mem + α·L_rec + β·L_use: every example names the weight it counts with, see `loss_weights`.
"""

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from bm25s.stopwords import STOPWORDS_EN
from pydantic import JsonValue

from tirkit.methods.tinr.values import random_arguments, say
from tirkit.rollout.loop import RolloutSettings, rollout, stable_seed
from tirkit.rollout.policy import RolloutRequest, ScriptedPolicy, oracle
from tirkit.text.control import CONTROL_STRINGS
from tirkit.text.dialects import DOCUMENT_FIELDS, Dialect, print_document
from tirkit.text.render import Renderer
from tirkit.text.schema import validate_arguments
from tirkit.tools.runtime import Toolbox
from tirkit.types import Message, StopReason, Task, ToolCall, ToolSchema, Trajectory, Turn

Kind = Literal["memorise", "recall", "view", "pseudo_call", "use"]
Weight = Literal["memorise", "recall", "use"]


class Example(NamedTuple):
    """One training example: what is trained is the trajectory's turns; `weight` names its weight in the loss."""

    trajectory: Trajectory
    kind: Kind
    weight: Weight


@dataclass(frozen=True)
class CorpusSettings:
    """What phase 1 is made of; counts are examples a tool.

    alpha, beta: not published; 1 is ours. A kind whose weight is 0 is left out. `names_in_documents` False hides the
    name from memorise and from views, so that the token must be found from the description alone. `thoughts` is the
    share of views and pseudo calls that restate the description, or its keywords, and name the tool in a thought before
    they select it, as phase 2 will: without it no unseen tool's token ever follows a thought. Paper's ablations:
    memorise only = alpha 0, beta 0, views 0; no recall = alpha 0.
    """

    alpha: float = 1.0
    beta: float = 1.0
    memorise: int = 6
    recall: int = 1
    views: int = 4
    pseudo_calls: int = 3
    thoughts: float = 0.5
    field_dropout: float = 0.3
    names_in_documents: bool = True


def loss_weights(settings: CorpusSettings) -> dict[Weight, float]:
    """Weight name → weight of one example's mean loss."""
    return {"memorise": 1.0, "recall": settings.alpha, "use": settings.beta}


def alignment_corpus(
    tools: Sequence[ToolSchema], dialect: Dialect, settings: CorpusSettings, seed: int = 0
) -> list[Example]:
    """All document-derived examples of `tools`, tool by tool. `use` examples come from `use`."""
    examples: list[Example] = []
    for tool in tools:
        examples += [memorise(tool, dialect, settings, seed, i) for i in range(settings.memorise)]
        if settings.alpha:
            examples += [recall(tool, dialect) for _ in range(settings.recall)]
        examples += [view(tool, dialect, settings, seed, i) for i in range(settings.views)]
        if settings.beta:
            examples += [pseudo_call(tool, dialect, settings, seed, i) for i in range(settings.pseudo_calls)]
    return examples


# ------------------------------------------------------------------------------------------------ memorise

MEMORISE_TEMPLATES = (
    "{document}",
    "Which tool is this?\n{document}",
    "{document}\nName the tool that this document describes.",
    "Tool document:\n{document}\nTool:",
    "Read the document and select its tool.\n{document}",
    "I lost the name of this one. What is it?\n{document}",
    "Select the tool that is documented like this: {document}",
    "A tool works as follows.\n{document}\nSelect it.",
)


def memorise(tool: ToolSchema, dialect: Dialect, settings: CorpusSettings, seed: int, i: int) -> Example:
    """Document → token. i = 0 is the canonical document as it is; the others lose fields and change order and form."""
    rng = random.Random(stable_seed(seed, "memorise", tool.name, i))
    if i == 0:
        document = print_document(tool, DOCUMENT_FIELDS if settings.names_in_documents else DOCUMENT_FIELDS[1:])
    else:
        document = _varied_document(tool, settings, rng)
    content = rng.choice(MEMORISE_TEMPLATES).format(document=document)
    return Example(_selecting(tool, dialect, content, f"memorise/{tool.name}/{i}"), "memorise", "memorise")


def _varied_document(tool: ToolSchema, settings: CorpusSettings, rng: random.Random) -> str:
    """A document with fields dropped and reordered, as JSON or as plain lines; name or description always remains."""
    fields: dict[str, JsonValue] = {"description": tool.description, "parameters": _varied_parameters(tool, rng)}
    if settings.names_in_documents:
        fields["name"] = tool.name
    essential = rng.choice([field for field in ("name", "description") if fields.get(field)] or ["parameters"])
    kept = [f for f in fields if fields[f] and (f == essential or rng.random() >= settings.field_dropout)]
    rng.shuffle(kept)
    if rng.random() < 0.5:
        return json.dumps({field: fields[field] for field in kept}, ensure_ascii=False)
    return "\n".join(f"{field}: {_plain(fields[field])}" for field in kept)


def _varied_parameters(tool: ToolSchema, rng: random.Random) -> dict[str, JsonValue]:
    """The parameters' names with their types or descriptions, in random order."""
    properties = list(_properties(tool).items())
    rng.shuffle(properties)
    key = rng.choice(("type", "description"))
    return {name: schema.get(key, "") for name, schema in properties}


def _plain(value: JsonValue) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} ({inner})" if inner else key for key, inner in value.items())
    return str(value)


# ------------------------------------------------------------------------------------------------ recall

RECALL_QUESTION = "Select a tool and recite its document."
RECALL_CUE = "Recite its document."


def recall_prompt(tool: ToolSchema, dialect: Dialect) -> tuple[Message, ...]:
    """The question for a tool's document.

    The token stands where it stands in real use, in a selection of the assistant's; a user's message could not carry
    it, since outside text never becomes a tool token.
    """
    return (
        Message(role="user", content=RECALL_QUESTION),
        Message(role="assistant", content=selection_text(tool, dialect)),
        Message(role="user", content=RECALL_CUE),
    )


def recall(tool: ToolSchema, dialect: Dialect) -> Example:
    """Token → document (canonical JSON with fixed key order)."""
    trajectory = Trajectory(
        task_id=f"recall/{tool.name}",
        prompt=recall_prompt(tool, dialect),
        turns=(Turn(text=print_document(tool)),),
        stop=StopReason.MAX_TURNS,
        policy="corpus",
    )
    return Example(trajectory, "recall", "recall")


# ------------------------------------------------------------------------------------------------ views

VIEW_TEMPLATES = (
    "{words}",
    "{words}?",
    "I need this: {words}",
    "Can you {words}",
    "Please help me: {words}",
    "{words}.",
)


def view(tool: ToolSchema, dialect: Dialect, settings: CorpusSettings, seed: int, i: int) -> Example:
    """A short synthetic query, some words of the name or of the description, as a user turn → the tool's selection."""
    rng = random.Random(stable_seed(seed, "view", tool.name, i))
    template, words = rng.choice(VIEW_TEMPLATES), _words(tool, settings, rng)
    if not template.startswith("{words}"):
        words = words[:1].lower() + words[1:]
    content, think = template.format(words=words), _thought(tool, dialect, settings, rng)
    return Example(_selecting(tool, dialect, content, f"view/{tool.name}/{i}", think), "view", "memorise")


def pseudo_call(tool: ToolSchema, dialect: Dialect, settings: CorpusSettings, seed: int, i: int) -> Example:
    """Such a query with random typed values for the parameters → selection, document, call.

    Where no valid values can be made up for the schema (a pattern, say) it is a view instead.
    """
    rng = random.Random(stable_seed(seed, "pseudo_call", tool.name, i))
    call = ToolCall(name=tool.name, arguments=random_arguments(tool.parameters, rng))
    if validate_arguments(tool, call.arguments):
        return view(tool, dialect, settings, seed, settings.views + i)
    content = f"{_words(tool, settings, rng)}{rng.choice((': ', ', ', '. '))}{say(call.arguments, rng)}"
    think = _thought(tool, dialect, settings, rng)
    calls = Turn(text=dialect.print_calls((call,), "" if dialect.selects else think), calls=(call,))
    turns = (_selection(tool, dialect, handed_back=True, think=think), calls) if dialect.selects else (calls,)
    task_id = f"pseudo_call/{tool.name}/{i}"
    return Example(_trajectory(task_id, content, turns, StopReason.CALLS_COMPLETE), "pseudo_call", "use")


def _thought(tool: ToolSchema, dialect: Dialect, settings: CorpusSettings, rng: random.Random) -> str:
    """The description or keywords of it, then the tool as it is written; "" for the rest, and where that can't be said.

    A teacher's thoughts name what is wanted in words of its own: the description without its first words ("gives the
    …") and keywords in any order are nearest to all of them.
    """
    if rng.random() < 0.5:
        said = tool.description.rstrip(".").split()
        words = " ".join(said[rng.randrange(min(3, len(said) or 1)) :])
    else:
        words = " ".join(keywords(tool.description, rng)[:4])
    if rng.random() >= settings.thoughts or dialect.index is None or not words:
        return ""
    if any(entry in words for entry in (*CONTROL_STRINGS, "<<", "\n")):
        return ""
    return f"{words[0].lower()}{words[1:]} : {dialect.index.surface(tool.name)}"


def split_name(name: str) -> str:
    """The words of an identifier.

    >>> split_name("getWeather_forCity.v2")
    'get weather for city v2'
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return " ".join(re.split(r"[\W_]+", spaced)).strip().lower()


def _words(tool: ToolSchema, settings: CorpusSettings, rng: random.Random) -> str:
    """The name in words, the description's keywords, the whole of it, or a part (words left out, order kept)."""
    sources = [tool.description] * 2 + [" ".join(keywords(tool.description, rng))] if tool.description else []
    if settings.names_in_documents or not sources:
        sources.append(split_name(tool.name) or tool.name)
    words = rng.choice(sources).rstrip(".").split()
    if len(words) > 3 and rng.random() < 0.6:
        words = [word for word in words if rng.random() >= settings.field_dropout] or words
    return " ".join(words)


def keywords(text: str, rng: random.Random) -> list[str]:
    """The words of `text` that are no function words, in random order; without the possessive 's."""
    found = re.findall(r"\w[\w-]*", text.lower().replace("'s", ""))
    words = [word for word in found if word not in STOPWORDS_EN]
    return rng.sample(words, len(words))


# ------------------------------------------------------------------------------------------------ use


def use(
    tasks: Iterable[Task],
    renderer: Renderer,
    dialect: Dialect,
    tools: Mapping[str, ToolSchema],
    toolbox: Toolbox | None = None,
    settings: RolloutSettings | None = None,
) -> list[Example]:
    """Instruction → the gold attempt without reasoning; without a toolbox only up to the first round of calls.

    Attempts that do not reach their end within `settings` are left out. Also makes the examples of arms that read
    documents in the prompt (a dialect without index, `settings.prompt`).
    """
    plain = [
        task.model_copy(update={"thoughts": (), "calls_only": task.calls_only or toolbox is None}) for task in tasks
    ]
    dialect = replace(dialect, think="optional")
    script = ScriptedPolicy(oracle(dialect), renderer, "gold")
    requests = [RolloutRequest(task) for task in plain]
    trajectories = rollout(requests, script, renderer, dialect, tools, toolbox, settings)
    whole = (StopReason.ANSWERED, StopReason.CALLS_COMPLETE)
    return [Example(trajectory, "use", "use") for trajectory in trajectories if trajectory.stop in whole]


# ------------------------------------------------------------------------------------------------ shared


def _properties(tool: ToolSchema) -> dict[str, dict[str, JsonValue]]:
    properties = tool.parameters.get("properties")
    items = properties.items() if isinstance(properties, dict) else ()
    return {name: schema if isinstance(schema, dict) else {} for name, schema in items}


def selection_text(tool: ToolSchema, dialect: Dialect, think: str = "") -> str:
    """The selection of `tool`: what its memory is asked for, also where the dialect later calls without selecting."""
    return replace(dialect, two_step=True).print_selection((tool.name,), think)


def _selection(tool: ToolSchema, dialect: Dialect, handed_back: bool, think: str = "") -> Turn:
    reply = (Message(role="tool", content=print_document(tool)),) if handed_back else ()
    return Turn(text=selection_text(tool, dialect, think), selected=(tool.name,), reply=reply)


def _selecting(tool: ToolSchema, dialect: Dialect, content: str, task_id: str, think: str = "") -> Trajectory:
    return _trajectory(task_id, content, (_selection(tool, dialect, False, think),), StopReason.MAX_TURNS)


def _trajectory(task_id: str, content: str, turns: tuple[Turn, ...], stop: StopReason) -> Trajectory:
    prompt = (Message(role="user", content=content),)
    return Trajectory(task_id=task_id, prompt=prompt, turns=turns, stop=stop, policy="corpus")

"""What the weights know of the catalogue: greedy memorise and recall, to be measured after every phase.

memorise  canonical document → is exactly the tool selected?
recall    token → document: exact match, and field F1
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from tirkit.methods.tinr.corpus import CorpusSettings, memorise, recall_prompt, selection_text
from tirkit.rollout.policy import GenerateRequest, Policy
from tirkit.text.dialects import Dialect, print_document
from tirkit.text.render import Renderer
from tirkit.types import Message, Task, ToolSchema


@dataclass(frozen=True)
class Probe:
    """One tool's result: `memorised` its token from its document; `recalled` the document exactly, and its field F1."""

    name: str
    memorised: bool
    recalled: bool
    recall_f1: float


def probe(
    policy: Policy,
    renderer: Renderer,
    dialect: Dialect,
    tools: Sequence[ToolSchema],
    names_in_documents: bool = True,
    max_new_tokens: int = 1024,
) -> list[Probe]:
    """One result a tool, in order. `policy` should be greedy; a document over `max_new_tokens` cannot be recalled."""
    settings = CorpusSettings(names_in_documents=names_in_documents)
    asks: list[GenerateRequest] = []
    for tool in tools:
        prompt = memorise(tool, dialect, settings, seed=0, i=0).trajectory.prompt
        asks.append(_request(tool, prompt, renderer, 64))
        asks.append(_request(tool, recall_prompt(tool, dialect), renderer, max_new_tokens))
    texts = [generation.text for generation in policy.generate(asks)]
    results: list[Probe] = []
    for tool, selection, document in zip(tools, texts[::2], texts[1::2], strict=True):
        gold = print_document(tool)
        memorised = selection.strip() == selection_text(tool, dialect)
        results.append(Probe(tool.name, memorised, document.strip() == gold, field_f1(gold, document)))
    return results


def _request(tool: ToolSchema, messages: tuple[Message, ...], renderer: Renderer, limit: int) -> GenerateRequest:
    task = Task(id=f"probe/{tool.name}", prompt=messages)
    ids = tuple(renderer.prompt_ids(messages))
    return GenerateRequest(task, (), messages, ids, seed=0, max_new_tokens=limit)


def field_f1(gold: str, predicted: str) -> float:
    """F1 over the leaves of two JSON documents, a leaf being (path, value); 0 where `predicted` is no JSON object.

    Lists count their elements without position, so that the order of `required` does not matter.

    >>> field_f1('{"name": "a", "description": "x"}', '{"name": "a", "description": "y"}')
    0.5
    """
    try:
        found = json.loads(predicted)
    except (json.JSONDecodeError, RecursionError):
        return 0.0
    if not isinstance(found, dict):
        return 0.0
    wanted, got = _leaves(json.loads(gold)), _leaves(found)
    return 2 * len(wanted & got) / (len(wanted) + len(got)) if wanted or got else 1.0


def _leaves(value: JsonValue, path: tuple[str, ...] = ()) -> set[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict) and value:
        return {leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, key))}
    if isinstance(value, list) and value:
        return {leaf for inner in value for leaf in _leaves(inner, (*path, "[]"))}
    return {(path, json.dumps(value))}

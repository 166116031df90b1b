"""Who writes trajectories beside the model that is trained: a script that knows the gold, and endpoints."""

import os
from collections.abc import Sequence
from dataclasses import replace

from tirkit.config import ConfigError, EndpointSection, RunConfig, SynthesiseConfig
from tirkit.methods.tinr.think import TEACHER_DIALECT
from tirkit.rollout.endpoint import OPENAI, EndpointPolicy, EndpointSettings
from tirkit.rollout.policy import Policy, RolloutFn, RolloutRequest, ScriptedPolicy, oracle
from tirkit.text.render import Renderer
from tirkit.types import Message, Trajectory

INSTRUCTIONS = """You solve tasks with the tools that are documented below.
Think first, inside <think> and </think>. Name tools by their exact names. Do not speak of the documents.
Then either call tools, one JSON object a line:
<tool_call>
{"name": "the tool's name", "arguments": {"parameter": "value"}}
</tool_call>
or, when you have the results you need or no tool is needed, reply: <answer>your reply</answer>
Write nothing else."""
NO_THINK_INSTRUCTIONS = INSTRUCTIONS.replace("Think first, inside <think> and </think>. ", "Do not think first. ")


def instructed(attempt: RolloutFn) -> RolloutFn:
    """`attempt` by a model that no phase has taught the format: told of it in a system message.

    The attempts that come back have the prompts they were asked with: later models know the format without.
    """
    system = Message(role="system", content=INSTRUCTIONS)

    def ask(requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        told = [replace(r, task=r.task.model_copy(update={"prompt": (system, *r.task.prompt)})) for r in requests]
        return [_without(t, r.task.prompt) for t, r in zip(attempt(told), requests, strict=True)]

    return ask


def _without(trajectory: Trajectory, prompt: tuple[Message, ...]) -> Trajectory:
    # Log-probs are left out: they were those of another prompt.
    turns = tuple(turn.model_copy(update={"logps": ()}) for turn in trajectory.turns)
    return trajectory.model_copy(update={"prompt": prompt, "prompt_ids": (), "turns": turns})


def endpoints(config: RunConfig) -> dict[str, str]:
    """Key of the config → the endpoint's model, for every enabled stage that asks one."""
    s, w, t, c, r = config.synthesise, config.warmup, config.label, config.candidates, config.repair
    asked = {
        "synthesise.teacher": s.teacher if s.enabled and w.enabled and s.teacher != "scripted" else "",
        "label.no_think": t.no_think if t.enabled and t.no_think != "model" else "",
        "label.think": t.think if t.enabled and t.think != "model" else "",
        "candidates.policy": c.policy if c.enabled and not c.log and c.policy != "model" else "",
        "repair.repairer": r.repairer if r.enabled and r.repairer not in ("rules", "scripted") else "",
    }
    return {key: model for key, model in asked.items() if model}


def check_key(config: RunConfig) -> None:
    """Raises `ConfigError` where an endpoint's key is missing."""
    if keys := endpoints(config):
        need_key(" and ".join(keys))


def need_key(whose: str) -> None:
    """Raises `ConfigError` where the key of the endpoint that `whose` names is missing."""
    if not os.environ.get("OPENAI_API_KEY"):
        raise ConfigError(f"{whose}: an endpoint needs its key in OPENAI_API_KEY (any text for a local server)")


def make_endpoint(
    model: str,
    section: EndpointSection,
    renderer: Renderer,
    temperature: float = 1.0,
    instructions: str = INSTRUCTIONS,
) -> EndpointPolicy:
    """A model behind an endpoint, asked as `section` says. Raises `ConfigError` where its key is missing."""
    need_key(model)
    key = os.environ["OPENAI_API_KEY"]  # a secret, so it never stands in a config, which is saved with the run
    settings = EndpointSettings(model, instructions, temperature, max_concurrent=section.concurrency)
    return EndpointPolicy(section.base_url or OPENAI, key, renderer, settings)


def make_teacher(config: SynthesiseConfig, renderer: Renderer) -> Policy:
    """The teacher of phase 2."""
    if config.teacher == "scripted":
        return ScriptedPolicy(oracle(TEACHER_DIALECT), renderer, "scripted teacher")
    return make_endpoint(config.teacher, config, renderer)

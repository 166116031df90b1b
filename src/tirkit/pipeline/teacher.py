"""The teacher of phase 2: a script that knows the gold, or any OpenAI-compatible endpoint."""

import os
from functools import partial

from openai import AsyncOpenAI

from tirkit.config import ConfigError, SynthesiseConfig
from tirkit.methods.tinr.think import TEACHER_DIALECT
from tirkit.rollout.endpoint import EndpointPolicy, EndpointSettings
from tirkit.rollout.policy import Policy, ScriptedPolicy, oracle
from tirkit.text.render import Renderer

INSTRUCTIONS = """You solve tasks with the tools that are documented below.
Think first, inside <think> and </think>. Name tools by their exact names. Do not speak of the documents.
Then either call tools, one JSON object a line:
<tool_call>
{"name": "the tool's name", "arguments": {"parameter": "value"}}
</tool_call>
or, when you have the results you need or no tool is needed, reply: <answer>your reply</answer>
Write nothing else."""


def check_teacher(config: SynthesiseConfig) -> None:
    """Raises `ConfigError` where an endpoint's key is missing."""
    if config.teacher != "scripted" and not os.environ.get("OPENAI_API_KEY"):
        raise ConfigError(
            "synthesise.teacher is an endpoint: put its key in OPENAI_API_KEY (any text for a local server)"
        )


def make_teacher(config: SynthesiseConfig, renderer: Renderer) -> Policy:
    """The configured teacher. Raises `ConfigError` where an endpoint's key is missing."""
    if config.teacher == "scripted":
        return ScriptedPolicy(oracle(TEACHER_DIALECT), renderer, "scripted teacher")
    check_teacher(config)
    # The key is a secret, so it never stands in a config, which is saved with the run.
    connect = partial(AsyncOpenAI, base_url=config.base_url or None, api_key=os.environ["OPENAI_API_KEY"])
    settings = EndpointSettings(config.teacher, INSTRUCTIONS, max_concurrent=config.concurrency)
    return EndpointPolicy(connect, renderer, settings)

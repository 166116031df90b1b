"""Serve a run's model, a model folder or a script as an OpenAI-compatible endpoint."""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from starlette.routing import Route

from tirkit.config import ConfigError
from tirkit.embedded.model import load_base
from tirkit.pipeline.autotraj import load_scorer
from tirkit.pipeline.context import Loaded
from tirkit.pipeline.exported import open_exported
from tirkit.pipeline.run import model_stage, open_run
from tirkit.pipeline.sources import load_folder, scripted_tasks
from tirkit.rollout.policy import ScriptedPolicy, oracle
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.serving.chat import MOST_TOKENS, Chat, Served
from tirkit.serving.conversation import task_by_question
from tirkit.serving.export import TOOL_FILE
from tirkit.serving.limits import Limits
from tirkit.serving.score import score_route
from tirkit.serving.server import chat_app, serve
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer


@dataclass(frozen=True)
class Access:
    """Who may ask: where the server listens, and the bearer key, which the variable `key_env` or a file holds.

    anyone: lets other machines in without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key_env: str = ""
    key_file: Path | None = None
    anyone: bool = False

    def key(self) -> str:
        """The key; "" where none is wanted. ConfigError where there is none that was named, or where one is needed."""
        if self.key_env and self.key_file:
            raise ConfigError("--key-env and --key-file both name a key; give one")
        if self.key_env:
            return _usable(os.environ.get(self.key_env, ""), f"the environment variable {self.key_env}")
        if self.key_file:
            try:
                return _usable(self.key_file.read_text(encoding="utf-8"), str(self.key_file))
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--key-file {self.key_file} cannot be read ({error})") from error
        if not self.anyone and not _is_local(self.host):
            raise ConfigError(
                f"--host {self.host} lets other machines in: name a key by --key-env or --key-file, or say "
                "--allow-anyone"
            )
        return ""

    def hosts(self) -> tuple[str, ...]:
        """The only names under which the server may be asked; () where a key or `anyone` says who may."""
        if self.key_env or self.key_file or self.anyone:
            return ()
        return ("localhost", "127.0.0.1", "[::1]", self.host)


def _usable(text: str, place: str) -> str:
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{place} holds no key: it must be printable ASCII without spaces, and not empty")
    return key


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve_model(source: str, stage: str, scripted: Path | None, access: Access, limits: Limits) -> None:
    """Serve until interrupted; see `load_served`."""
    key = access.key()
    served, routes = load_served(source, stage, scripted), score_routes(source, limits)
    chat = Chat(served, limits.max_waiting)
    address = f"http://{access.host}:{access.port}"
    print(f"{served.name} and {served.name}:text at {address}/v1", flush=True)
    if routes:
        print(f"its reward model at {address}/score", flush=True)
    try:
        serve(chat_app(chat, routes, limits, key, access.hosts()), access.host, access.port, limits)
    finally:
        chat.close()


def load_served(source: str, stage: str = "", scripted: Path | None = None) -> Served:
    """What `source` names: a run folder (its model of `stage`, the last one if empty), an exported folder, with its
    tools, a model folder, a model's name.

    scripted: tasks, one a line, as runs keep them in records/tasks_*.jsonl; their gold is played instead of the model,
    whose tokenizer alone is used. Raises ConfigError where there is no such model, or no such tasks.
    """
    if (Path(source) / "manifest.json").exists():
        served = _run(Path(source), stage)
    else:
        served = _exported(Path(source)) if (Path(source) / TOOL_FILE).exists() else _model(source)
    if scripted is None:
        return served
    tasks = scripted_tasks(scripted)
    policy = ScriptedPolicy(oracle(served.dialect), served.renderer)
    return Served("scripted", policy, served.renderer, served.dialect, served.tools, task_by_question(tasks))


def score_routes(source: str, limits: Limits | None = None) -> list[Route]:
    """/score of the reward model that a run has trained; nothing for other sources."""
    if not (Path(source) / "manifest.json").exists():
        return []
    ctx = open_run(Path(source))
    return [score_route(load_scorer(ctx), limits)] if ctx.folder.mark("reward_model") else []


def _run(root: Path, stage: str) -> Served:
    ctx = open_run(root)
    loaded = ctx.load(model_stage(ctx, stage))
    return Served(
        ctx.config.name,
        ctx.policy(loaded, Served.temperature),
        loaded.renderer,
        ctx.dialect,
        ctx.tools if ctx.index else {},
        max_tokens=ctx.config.rollout.max_new_tokens,
        max_context=_max_context(loaded),
    )


def _exported(folder: Path) -> Served:
    opened = open_exported(folder)
    return Served(
        opened.config.name,
        opened.policy(Served.temperature),
        opened.loaded.renderer,
        opened.dialect,
        opened.tools if opened.dialect.index else {},
        max_tokens=opened.config.rollout.max_new_tokens,
        max_context=_max_context(opened.loaded),
    )


def _loaded(source: str) -> Loaded:
    model, tokenizer = load_base() if source == "embedded" else load_folder(source)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]
    return Loaded(model, tokenizer, Renderer(tokenizer))


def _model(source: str) -> Served:
    loaded = _loaded(source)
    policy = TransformersPolicy(loaded.model, loaded.renderer)
    return Served(Path(source).name, policy, loaded.renderer, Dialect(), max_context=_max_context(loaded))


def _max_context(loaded: Loaded) -> int:
    return getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None) or MOST_TOKENS

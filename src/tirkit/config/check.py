"""Which settings make no sense together: said here and nowhere else, before anything runs."""

from tirkit.config.run import RunConfig
from tirkit.config.sections import ConfigError

TRAINING = (  # stages between preparation and evaluation, in order; each has a section
    "internalise",
    "synthesise",
    "warmup",
    "label",
    "candidates",
    "repair",
    "pairs",
    "finetune",
    "reward_model",
    "refine",
    "rl",
)


def check(config: RunConfig, origin: str) -> None:
    """Raises `ConfigError` with every reason; `origin` (a file name) begins it."""
    if reasons := [*_sources(config), *_stages(config), *_modes(config), *_endpoints(config), *_rl(config)]:
        raise ConfigError(f"{origin}: settings that make no sense together\n" + "\n".join(f"  {r}" for r in reasons))


def _sources(config: RunConfig) -> list[str]:
    trained = ("internalise", "warmup", "finetune")
    general = [name for name in trained if getattr(config, name).enabled and getattr(config, name).general]
    other_model = config.model.path != "embedded" or config.model.scratch
    return _said(
        (
            (config.catalogue.path == "embedded") != (config.tasks.path == "embedded"),
            "catalogue.path and tasks.path: 'embedded' tools go with 'embedded' questions, and only those",
        ),
        (
            bool(config.catalogue.allow)
            and config.catalogue.path in ("embedded", "seal_tools_sample", "python_search"),
            'catalogue.allow names tools of your own: set catalogue.path = "my_tools.py", or an imported catalogue',
        ),
        (
            config.catalogue.state == "attempt"
            and config.catalogue.path in ("embedded", "seal_tools_sample", "python_search"),
            'catalogue.state = "attempt" is for MCP servers of your own: set catalogue.path to an imported catalogue',
        ),
        (
            bool(general) and other_model,
            f"{', '.join(f'{name}.general' for name in general)} > 0 replays the embedded base model's own tasks: set "
            "it to 0 for other models",
        ),
    )


def _stages(config: RunConfig) -> list[str]:
    """Stages that need what another one leaves."""
    needs = (("repair", "candidates"), ("pairs", "candidates"), ("reward_model", "pairs"))
    missing = [
        f"{stage}.enabled needs {needed}.enabled = true"
        for stage, needed in needs
        if getattr(config, stage).enabled and not getattr(config, needed).enabled
    ]
    p = config.pairs
    return missing + _said(
        (
            config.finetune.enabled and not p.enabled and not config.label.enabled,
            "finetune.enabled needs pairs.enabled = true or label.enabled = true",
        ),
        (
            config.label.min_correct > config.label.samples,
            "label.min_correct is more than label.samples: no question could be easy",
        ),
        (
            config.label.min_think_share > config.label.max_think_share,
            "label.min_think_share is more than label.max_think_share",
        ),
        (config.refine.hard >= config.refine.easy, "refine.hard must be less than refine.easy"),
        (config.refine.enabled and not config.rl.enabled, "refine.enabled needs rl.enabled = true"),
        (
            config.grow.enabled and any(getattr(config, stage).enabled for stage in TRAINING),
            f"grow.enabled adds tools to a finished run, which is trained no further: disable {', '.join(TRAINING)}",
        ),
        (
            config.grow.enabled and config.grow.replay + config.grow.attempts >= 1,
            "grow.replay and grow.attempts leave no row for the new tools: their sum must be below 1",
        ),
        (
            p.enabled and p.repairs != "none" and not config.repair.enabled,
            f'pairs.repairs = "{p.repairs}" needs repair.enabled = true; without repairs set it to "none"',
        ),
        (
            config.reward_model.enabled and p.repairs == "none" and not p.outcomes,
            'reward_model needs preference pairs: pairs.repairs = "use" or pairs.outcomes = true',
        ),
        (
            config.repair.enabled and config.repair.repairer == "rules" and not config.repair.rules,
            'repair.repairer = "rules" with repair.rules = false leaves nobody to repair',
        ),
    )


def _modes(config: RunConfig) -> list[str]:
    """What goes with modes alone, and what does not go with them."""
    modes = config.rollout.modes
    return _said(
        (config.label.enabled and not modes, "label.enabled needs rollout.modes = true"),
        (config.label.enabled and not config.finetune.enabled, "label.enabled needs finetune.enabled = true"),
        (
            modes and config.rollout.think == "required",
            'rollout.think = "required" leaves rollout.modes no attempt without a thought: set one of them',
        ),
        (
            modes
            and config.candidates.enabled
            and (config.candidates.policy != "model" or bool(config.candidates.log)),
            "candidates of an endpoint or a log have no mode: set rollout.modes = false",
        ),
        (
            modes and config.repair.enabled and config.repair.repairer not in ("rules", "scripted"),
            "repair by an endpoint knows no modes: set rollout.modes = false",
        ),
    )


def _endpoints(config: RunConfig) -> list[str]:
    """An endpoint knows no tool tokens and no tool but those it is shown."""
    t, c, r = config.label, config.candidates, config.repair
    keys = [
        key
        for key, asks in (
            ("label.no_think", t.enabled and t.no_think != "model"),
            ("label.think", t.enabled and t.think != "model"),
            ("candidates.policy", c.enabled and not c.log and c.policy != "model"),
            ("repair.repairer", r.enabled and r.repairer not in ("rules", "scripted")),
        )
        if asks
    ]
    return [
        f"{key} is an endpoint, which must be shown the tools and can't write tool tokens: set catalogue.indexing = "
        '"none" and rollout.prompt = "documents" or "retrieve"'
        for key in keys
        if config.catalogue.indexing != "none" or config.rollout.prompt == "none"
    ]


def _rl(config: RunConfig) -> list[str]:
    rl = config.rl
    names = [(term.over, term.tokens) for term in rl.entropy]
    of_modes = [
        key
        for key, used in (
            ("rl.entropy (over a mode, or on the mode token)", any(name != ("all", "all") for name in names)),
            ("rl.guard", rl.guard.below > 0),
            ("rl.probe", rl.probe.every > 0),
            ('rl.reward = "mode"', rl.reward == "mode"),
        )
        if rl.enabled and used and not config.rollout.modes
    ]
    unstable = [term for term in rl.entropy if term.rate and (term.target is None or term.coefficient > term.maximum)]
    return [f"{key} needs rollout.modes = true" for key in of_modes] + _said(
        (
            rl.guard.below > 0 and rl.guard.copies >= rl.num_generations,
            "rl.guard.copies must leave some of rl.num_generations to choose their mode themselves",
        ),
        (len(set(names)) < len(names), "rl.entropy has two terms over the same trajectories and tokens"),
        (bool(unstable), "rl.entropy: a term with a rate needs a target, and a coefficient within its maximum"),
        (
            rl.enabled and config.refine.enabled and rl.reward in ("tinr", "trajectory"),
            'refine needs a reward that says which attempts are right: rl.reward = "mode" or "unified"',
        ),
        (
            rl.enabled
            and rl.reward == "trajectory"
            and rl.bonus_weight > 0
            and not (config.reward_model.enabled or rl.scorer_url),
            'rl.reward = "trajectory" gets its bonus from a reward model: set reward_model.enabled = true, '
            "rl.scorer_url to that of a served one, or rl.bonus_weight = 0 for the outcome alone",
        ),
    )


def _said(*cases: tuple[bool, str]) -> list[str]:
    return [reason for holds, reason in cases if holds]

"""τ-bench, retail: requests to a shop, judged by the state of its database afterwards.

The original has a language model play the customer. Here there is none: the customer's instruction, with all that
the customer knows, is the one message (so this is not τ-bench's number), and there is nobody to ask. Right: orders and
users are as the gold calls leave them, and all outputs that the task wants are in the reply. Asked with the shop's
policy and its tools, which are our own (see `retail`).
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from tirkit.evaluation.benchmarks.base import Benchmark, Case, Loaded, Score, Source, own_tools, records
from tirkit.evaluation.benchmarks.conversation import Ask
from tirkit.evaluation.benchmarks.parts import category_means
from tirkit.evaluation.benchmarks.retail import TOOLS, Database, Shop
from tirkit.tools.lines import FileIssue
from tirkit.types import Message, StopReason, Task, ToolCall, Trajectory

FILES = {"dev": "v1_retail_dev_gt_traces.jsonl", "train": "v1_retail_train_gt_traces.jsonl"}
NO_CUSTOMER = "The customer cannot answer: do at once what the customer wants, as far as the policy allows, then reply."

database = lru_cache(maxsize=2)(Database)


def read(folder: Path) -> Loaded:
    """Cases of the recorded gold traces."""
    issues: list[FileIssue] = []
    documents: list[Any] = [r.value for r in records(folder / "tools_retail.json", issues)]
    tools = own_tools([one["function"] for one in documents if one["function"]["name"] in TOOLS], "tau_retail")
    policy = (folder / "policy_retail.md").read_text("utf-8")
    cases: list[Case] = []
    for kind, name in FILES.items():
        for record in records(folder / name, issues):
            value: Any = record.value
            gold = tuple(ToolCall(name=step["name"], arguments=step["kwargs"]) for step in value["gt_trace"])
            task = Task(
                id=f"{kind}-{value['task_id']}",
                prompt=(
                    Message(role="system", content=f"{policy}\n\n{NO_CUSTOMER}"),
                    Message(role="user", content=value["instruction"]),
                ),
                tools=tuple(tool.name for tool in tools),
                gold_rounds=tuple((call,) for call in gold),
                kind=kind,
            )
            cases.append(Case(task, tools, {"folder": str(folder / "db_retail"), "outputs": value["outputs"]}))
    return Loaded(tuple(cases), issues=tuple(issues))


def _shop(case: Case) -> Shop:
    gold: Any = case.gold
    return Shop(database(Path(gold["folder"])))


def play(case: Case, ask: Ask) -> Trajectory:
    """The attempt, over a database of its own."""
    return ask(case.task, case.tools, _shop(case))


def score(trajectory: Trajectory, case: Case) -> Score:
    """The state that the calls leave against that of the gold calls, and the outputs in the reply."""
    gold: Any = case.gold
    if trajectory.stop is not StopReason.ANSWERED:
        return Score(right=0.0, why="no reply")
    made, wanted = _shop(case), _shop(case)
    for shop, calls in ((made, trajectory.calls), (wanted, case.task.gold_calls or ())):
        for call in calls:
            shop.run(call)
    reply = (trajectory.answer or "").lower().replace(",", "")
    told = all(str(output).lower().replace(",", "") in reply for output in gold["outputs"])
    same = made.state() == wanted.state()
    why = "" if same and told else "other state" if told else "not told"
    # Where nothing must be done, any reply is right.
    return Score(right=float(not why), why=why, values={} if case.task.gold_calls else {"answered": float(not why)})


TAU_RETAIL = Benchmark(
    name="tau-retail",
    folder="tau_bench",
    source=Source("https://github.com/sierra-research/tau-bench", "59a200c6d575d595120f1cb70fea53cef0632f6b", "MIT"),
    categories=tuple(FILES),
    prompting="the shop's policy, the customer's instruction as the one message, the tools' documents; up to 20 turns",
    read=read,
    score=score,
    totals=category_means,
    play=play,
)

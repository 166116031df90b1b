import json
from pathlib import Path

import pytest

from tirkit.embedded.model import build_tokenizer
from tirkit.methods.autotraj.export import ExportError, preference_rows, sft_rows, to_dataset, write_parquet
from tirkit.methods.autotraj.pairs import Datasets, PairSettings, build_datasets, contaminated, outcome_pairs
from tirkit.methods.autotraj.prompts import Case
from tirkit.methods.autotraj.repair import Repair, RepairedTask
from tirkit.methods.autotraj.synthesise import JudgedGroup, from_logs
from tirkit.scoring.quality import Decision, QualityScore
from tirkit.text.dialects import Dialect
from tirkit.text.masks import TokenRow, token_row
from tirkit.text.render import Renderer, encode
from tirkit.tools.lines import convert_records, read_records
from tirkit.tools.logs import read_attempt
from tirkit.types import Message, Mode, StopReason, Task, ToolResult, ToolSchema, Trajectory, Turn

KEEP, REPAIR = Decision.KEEP, Decision.REPAIR
ADD = ToolSchema(name="add", description="Adds.")
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def task(name: str, question: str = "") -> Task:
    return Task(id=name, prompt=(Message(role="user", content=question or f"What is {name}?"),), answer="5")


def attempt(name: str, text: str = "5", mode: Mode | None = None, seconds: float = 0.5) -> Trajectory:
    calls = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    read = Dialect().parse(calls)
    reply = (Message(role="tool", content="5"),)
    results = (ToolResult(name="add", content="5", duration_s=seconds),)
    turns = (
        Turn(text=calls, calls=read.calls, results=results, reply=reply),
        Turn(text=f"<answer>{text}</answer>", answer=text),
    )
    return Trajectory(
        task_id=name, prompt=task(name).prompt, turns=turns, stop=StopReason.ANSWERED, mode=mode, policy="p"
    )


def score(total: float = 1.0, right: bool | None = True) -> QualityScore:
    return QualityScore(
        right=right,
        hesitation=1,
        length=None,
        repetition=1,
        tool_efficiency=None,
        tool_error_rate=None,
        well_formed=1,
        words=1,
        reference_words=None,
        total=total,
    )


def group(name: str, *attempts: tuple[Trajectory, float, Decision], right: bool | None = True) -> JudgedGroup:
    trajectories, totals, decisions = zip(*attempts, strict=True)
    scores = tuple(score(total, right) for total in totals)
    return JudgedGroup(task_id=name, trajectories=trajectories, scores=scores, decisions=decisions)


def repair(name: str, original: Trajectory, repaired: Trajectory, total: float = 0.9, by: str = "rules") -> Repair:
    return Repair(
        task_id=name,
        place=1,
        case=Case.WRONG,
        by=by,
        tries=1,
        changes=("x",),
        original=original,
        original_score=score(0.5, False),
        repaired=repaired,
        score=score(total),
    )


def build(
    *groups: JudgedGroup, repairs: tuple[Repair, ...] = (), evaluation: tuple[Task, ...] = (), **settings: object
):
    tasks = {g.task_id: task(g.task_id) for g in groups}
    records = [RepairedTask(task_id=r.task_id, repairs=(r,)) for r in repairs]
    return build_datasets(groups, records, tasks, evaluation, PairSettings(**settings))  # type: ignore[arg-type]


def test_kept_and_repaired_with_provenance() -> None:
    bad, good = attempt("a", "6"), attempt("a", "five")
    made = build(
        group("a", (attempt("a"), 0.95, KEEP), (bad, 0.5, REPAIR)), repairs=(repair("a", bad, good, by="llm"),)
    )
    assert [(e.source, e.by, e.place, e.score) for e in made.sft] == [
        ("kept", "p", 0, 0.95),
        ("repaired", "llm", 1, 0.9),
    ]
    (pair,) = made.preferences
    assert (pair.source, pair.by, pair.case, pair.changes) == ("repair", "llm", "wrong", ("x",))
    assert (pair.chosen.answer, pair.rejected.answer, pair.chosen_score, pair.rejected_score) == ("five", "6", 0.9, 0.5)
    record = RepairedTask(task_id="a", repairs=(repair("a", bad, good),))
    (alone,) = [build_datasets([], [record], {}, (), PairSettings(repairs=False))]
    assert alone.preferences == alone.sft == ()
    assert Datasets.model_validate_json(made.model_dump_json()) == made


def test_equal_runs_give_equal_datasets() -> None:
    one, other = (build(group("a", (attempt("a", seconds=s), 1.0, KEEP))) for s in (0.1, 0.2))
    assert one == other


def test_at_most_two_of_a_query_and_mode_best_first() -> None:
    texts = [attempt("a", f"answer {i}", mode) for i, mode in enumerate(("think", "think", "think", "no_think"))]
    made = build(group("a", *((t, s, KEEP) for t, s in zip(texts, (0.91, 0.99, 0.95, 0.9), strict=True))))
    assert [(e.trajectory.mode, e.score) for e in made.sft] == [("think", 0.99), ("think", 0.95), ("no_think", 0.9)]
    assert made.dropped.over_limit == 1
    one = build(group("a", *((t, 1.0, KEEP) for t in texts)), max_per_query=1)
    assert [e.place for e in one.sft] == [0, 3]  # the first of equals


def test_duplicates_by_query_and_normalised_text() -> None:
    same = attempt("a", "five"), attempt("a", "FIVE ")
    tasks = {"a": task("a", "What?"), "b": task("b", " what")}
    groups = [group("a", *((t, 1.0, KEEP) for t in same)), group("b", (attempt("b", "five"), 1.0, KEEP))]
    made = build_datasets(groups, [], tasks)
    assert [(e.task_id, e.place) for e in made.sft] == [("a", 0)]
    assert made.dropped.duplicates == 2
    bad = attempt("a", "6")
    twice = (repair("a", bad, same[0]), repair("a", bad.model_copy(update={"seed": 7}), same[1]))
    assert len(build(group("a", (bad, 0.5, REPAIR)), repairs=twice).preferences) == 1


def test_decontamination() -> None:
    tasks = [
        task("same", "What is  5?"),
        task("gram", f"Say: {LONG} and more"),
        task("twelve", LONG.partition(" ")[2]),
        task("other", "What is 6?"),
    ]
    evaluation = [task("e1", "what is 5"), task("e2", f"Now {LONG}!")]
    found = contaminated(tasks, evaluation)
    assert found == {
        "same": "equals evaluation question e1",
        "gram": "shares 13 words with evaluation question e2",
    }
    bad = attempt("a", "6")
    groups = group("a", (attempt("a"), 1.0, KEEP), (bad, 0.5, REPAIR)), group("b", (attempt("b"), 1.0, KEEP))
    made = build(*groups, repairs=(repair("a", bad, attempt("a", "five")),), evaluation=(task("e", "what is A"),))
    assert [e.task_id for e in made.sft] == ["b"]
    assert made.preferences == ()
    assert made.dropped.contaminated == {"a": "equals evaluation question e"}


def test_outcome_pairs() -> None:
    scores = (score(0.8, True), score(0.9, False), score(0.7, None), score(0.6, True))
    attempts = tuple(attempt("a", str(i)) for i in range(4))
    (made,) = [JudgedGroup(task_id="a", trajectories=attempts, scores=scores, decisions=(REPAIR,) * 4)]
    pairs = outcome_pairs([made])
    assert [(p.chosen.answer, p.rejected.answer, p.source) for p in pairs] == [
        ("0", "1", "outcome"),
        ("3", "1", "outcome"),
    ]
    assert len(build(made, outcomes=True).preferences) == 2
    assert build(made).preferences == ()


def test_pairs_of_real_trajectories(shared_data: Path) -> None:
    path = shared_data / "tau_bench" / "gpt4o_airline_trajectories.jsonl"
    records, issues = read_records(path)
    tasks, groups = from_logs(log for _, log in convert_records(path, records, read_attempt, issues))
    pairs = outcome_pairs(groups)
    assert (len(tasks), len(pairs), len({pair.task_id for pair in pairs})) == (15, 27, 8)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(build_tokenizer(["What is the answer add user assistant tool"], size=320))


def test_export_in_trls_columns(tmp_path: Path, renderer: Renderer) -> None:
    pytest.importorskip("datasets", reason="exporting needs the datasets library")
    bad = attempt("a", "6")
    made = build(group("a", (attempt("a"), 0.95, KEEP)), repairs=(repair("a", bad, attempt("a", "five")),))
    tasks = {"a": task("a")}

    def row(trajectory: Trajectory, _: Task) -> TokenRow:
        return token_row(encode(renderer, trajectory, (ADD,)))

    (kept, _), (pair,) = (
        sft_rows(made.sft, tasks, row, lambda _: (ADD,)),
        preference_rows(made.preferences, tasks, row, lambda _: (ADD,)),
    )
    assert kept["prompt"] == [{"role": "user", "content": "What is a?"}]
    assert [message["role"] for message in kept["completion"]] == ["assistant", "tool", "assistant"]
    assert json.loads(kept["tools"])[0]["function"]["name"] == "add"
    # what is learnt is what the policy wrote: the prompt and the tool's turn are left out
    learnt = [id_ for id_ in kept["labels"] if id_ != -100]
    assert renderer.decode_all(learnt).count("<|im_end|>") == 2
    assert "tool\n5" in renderer.decode_all(kept["input_ids"])
    assert "tool\n5" not in renderer.decode_all(learnt)
    assert (kept["source"], kept["by"], kept["score"]) == ("kept", "p", 0.95)
    assert pair["chosen"][-1]["content"] == "<answer>five</answer>"
    chosen = row(made.preferences[0].chosen, tasks["a"])
    assert pair["chosen_ids"] == [*chosen.prompt_ids, *chosen.completion_ids]
    path = tmp_path / "out" / "sft.parquet"
    write_parquet([kept, kept], path)
    from datasets import Dataset

    assert Dataset.from_parquet(str(path))[1] == to_dataset([kept])[0]  # type: ignore[index]
    assert [p.name for p in path.parent.iterdir()] == ["sft.parquet"]
    with pytest.raises(ExportError, match="nothing to export"):
        to_dataset([])

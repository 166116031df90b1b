from pathlib import Path

from tirkit.evaluation.quality import blind_scores, relate
from tirkit.evaluation.score_file import score_file
from tirkit.scoring.quality import QualityScore, QualitySettings
from tirkit.types import StopReason, Task, Trajectory, Turn


def made(total: float, right: bool | None, length: float | None = None) -> QualityScore:
    return QualityScore(
        right=right,
        hesitation=1,
        length=length,
        repetition=total,
        tool_efficiency=None,
        tool_error_rate=None,
        well_formed=1,
        words=10,
        reference_words=None,
        total=total,
    )


def test_auc_by_hand() -> None:
    scores = [made(0.9, True), made(0.5, True), made(0.7, False), made(0.5, False), made(1.0, None)]
    relations = {r.dimension: r for r in relate(scores, ["a", "b", "a", "b", "a"])}
    # 0.9 beats both; 0.5 loses to 0.7 and ties with 0.5: (2 + 0.5) / 4. Within tasks: one won, one tied
    auc, within = relations["S"].auc, relations["S"].within
    assert auc is not None
    assert within is not None
    assert (auc.mean, auc.n, within.mean, within.n) == (0.625, 4, 0.75, 2)
    assert auc.low <= auc.mean <= auc.high
    assert (within.low, within.high) == (0.5, 1.0)  # task b alone, task a alone
    hesitation = relations["hesitation"].auc
    assert hesitation is not None
    assert (hesitation.mean, hesitation.low, hesitation.high) == (0.5, 0.5, 0.5)
    assert relations["length"].auc is None  # unscored
    assert relate([made(1, True)], ["a"])[0].auc is None


def test_blind_scores_do_not_know_their_own_outcome() -> None:
    def attempt(*words: str) -> Trajectory:
        turn = Turn(text=" ".join(words), answer="x")
        return Trajectory(task_id="t", prompt=(), turns=(turn,), stop=StopReason.ANSWERED)

    attempts = [attempt("a"), attempt("a", "b"), attempt("a", "b", "c")]
    scores = blind_scores(attempts, Task(id="t", prompt=()), [True, True, False], QualitySettings())
    assert [score.reference_words for score in scores] == [2, 1, 1]


def test_gpt4o_airline_trajectories(shared_data: Path) -> None:
    scored = score_file(shared_data / "tau_bench" / "gpt4o_airline_trajectories.jsonl")
    assert (len(scored.scores), scored.issues) == (60, ())
    blind = [score.blind for score in scored.scores]
    relations = {r.dimension: r for r in relate(blind, [score.trajectory.task_id for score in scored.scores])}
    every, within = relations["S"].auc, relations["S"].within
    assert every is not None
    assert within is not None
    assert (every.n, within.n) == (17 * 43, 27)  # 27 pairs of the same task, as counted by hand from the rewards
    assert 0 <= every.low <= every.mean <= every.high <= 1

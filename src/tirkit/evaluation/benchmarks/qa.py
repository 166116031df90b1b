"""HotpotQA, 2WikiMultihopQA, MuSiQue and Bamboogle with search: questions over several passages.

Asked with the question and the document of `search`, over the passages there are (2Wiki's corpus and HotpotQA's
distractor paragraphs). Right: exact match after SQuAD's normalisation with one of the accepted answers; the F1 of
words is reported beside it, as the data sets' own scripts do.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tirkit.evaluation.benchmarks.base import Benchmark, Case, CaseResult, Loaded, Score, Source, Totals, records
from tirkit.evaluation.benchmarks.parts import category_means, value_mean
from tirkit.tools.lines import FileIssue
from tirkit.tools.questions import load_tasks
from tirkit.tools.runtime import PythonToolbox, Toolbox
from tirkit.tools.search import SEARCH_SCHEMA, Bm25Searcher, Passage, SearchTool
from tirkit.types import Message, StopReason, Trajectory

KINDS = ("hotpotqa", "2wiki", "musique", "bamboogle")
RULE = "Answer the question; you may search. Reply with the answer alone, in as few words as it takes."
CORPUS, DISTRACTORS = "2wiki_corpus.jsonl", "hotpotqa_distractor_with_context.jsonl"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read(folder: Path) -> Loaded:
    """Cases of the files there are."""
    cases: list[Case] = []
    issues: list[FileIssue] = []
    for kind in KINDS:
        if not (folder / f"{kind}.jsonl").exists():
            continue
        file = load_tasks(folder / f"{kind}.jsonl")
        issues += file.issues
        for task in file.tasks:
            prompt = (Message(role="system", content=RULE), *task.prompt)
            change = {"id": f"{kind}-{task.id}", "prompt": prompt, "tools": ("search",), "kind": kind}
            cases.append(Case(task.model_copy(update=change), (SEARCH_SCHEMA,)))
    return Loaded(tuple(cases), issues=tuple(issues))


def score(trajectory: Trajectory, case: Case) -> Score:
    """Exact match with the best of the accepted answers, F1 among the values."""
    reply = trajectory.answer if trajectory.stop is StopReason.ANSWERED else None
    if not reply or not words(reply):
        return Score(right=0.0, why="no answer", values={"f1": 0.0})
    right = any(words(reply) == words(gold) for gold in case.task.answers)
    best = max(word_f1(gold, reply) for gold in case.task.answers)
    return Score(right=float(right), why="" if right else "wrong answer", values={"f1": best})


def words(text: str) -> list[str]:
    """The words that count: lower case, without punctuation and articles (SQuAD's script)."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def word_f1(gold: str, reply: str) -> float:
    """F1 of the words; a yes or no that is not the other's counts nothing (HotpotQA's script)."""
    a, b = words(gold), words(reply)
    if a != b and ({*a, *b} & {"yes", "no", "noanswer"}) and (len(a) == 1 or len(b) == 1):
        short = a if len(a) == 1 else b
        if short[0] in ("yes", "no", "noanswer"):
            return 0.0
    shared = (Counter(a) & Counter(b)).total()
    return 2 * shared / (len(a) + len(b)) if shared else 0.0


def toolbox(folder: Path) -> Toolbox:
    """`search` over the passages of the folder."""
    issues: list[FileIssue] = []
    passages: dict[tuple[str, str], Passage] = {}
    for record in records(folder / CORPUS, issues):
        value: Any = record.value
        passages.setdefault((value["title"], value["text"]), Passage(title=value["title"], text=value["text"]))
    for record in records(folder / DISTRACTORS, issues):
        context: Any = record.value["context"]  # type: ignore[index, call-overload]
        for title, sentences in zip(context["title"], context["sentences"], strict=True):
            passages.setdefault((title, "".join(sentences)), Passage(title=title, text="".join(sentences)))
    tool = SearchTool(Bm25Searcher(list(passages.values())))
    return PythonToolbox({"search": tool}, [SEARCH_SCHEMA], isolation="inline")


def totals(results: Sequence[CaseResult]) -> Totals:
    """Exact match by data set, and F1 over all."""
    return {**category_means(results), "F1": value_mean(results, "f1")}


QA = Benchmark(
    name="qa",
    folder="qa",
    source=Source(
        "https://github.com/dongguanting/Tool-Star (questions), OSU-NLP-Group/HippoRAG (2Wiki's corpus)",
        "d12222c7e54a63a5c0a266eb72170e4f22c526ef",
        "CC BY-SA 4.0, Apache-2.0, CC BY 4.0, MIT",
    ),
    categories=KINDS,
    prompting="the question, the search tool's document, the request for a short answer; up to 20 turns",
    read=read,
    score=score,
    totals=totals,
    toolbox=toolbox,
)

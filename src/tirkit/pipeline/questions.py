"""Write training questions for a catalogue, batch by batch, so that what was killed goes on.

    FILE             the questions, our Task JSONL, appended to; whatever stands there is kept
    FILE.log.jsonl   a line a batch: who wrote it, how many questions were kept, why others were not, what it cost

The same command goes on with the batches that the log lacks; a larger number of questions adds to the file.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from tirkit.config import CatalogueConfig, EndpointSection, RunConfig
from tirkit.embedded.model import BASE_MODEL
from tirkit.evaluation.terminal import Progress
from tirkit.methods.autotraj.budget import Caps, Metered, Spent
from tirkit.methods.questions import templates
from tirkit.methods.questions.check import Asked, Rejection, make_task
from tirkit.methods.questions.slots import Draft, Shares, Slot, draw_slots
from tirkit.methods.questions.teacher import TeacherPrompt, read_drafts
from tirkit.pipeline.policies import make_endpoint
from tirkit.pipeline.sources import load_tokenizer, load_toolbox, load_tools
from tirkit.rollout.loop import stable_seed
from tirkit.rollout.policy import GenerateRequest, RolloutError
from tirkit.store import append_lines, whole_lines
from tirkit.text.dialects import parse_json
from tirkit.text.render import Renderer
from tirkit.tools.questions import QuestionError, read_task
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, Record, Task, ToolSchema

BARREN = 10  # batches in a row; where they give fewer questions than that, more of them will not help
MAX_NEW_TOKENS = 8192  # of a teacher's answer, its thoughts included


@dataclass(frozen=True)
class QuestionOptions:
    """`num` questions in the file in all. `teacher`: an endpoint's model; without one, templates. `prompt`: a file in
    the place of the built-in one. `allow`: functions that may be run beside those that change nothing. `size`:
    questions asked for at once. `tokenizer`: counts what is spent; the embedded one if empty.
    """

    num: int = 400
    seed: int = 0
    shares: Shares = field(default_factory=Shares)
    allow: tuple[str, ...] = ()
    teacher: str = ""
    endpoint: EndpointSection = field(default_factory=EndpointSection)
    prompt: Path | None = None
    size: int = 10
    temperature: float = 1.0
    tokenizer: str = ""
    caps: Caps = field(default_factory=Caps)


class Batch(Record):
    """A line of the log. `by`: the teacher's name, or "templates"."""

    by: str
    seed: int
    number: int
    kept: int
    rejected: dict[str, int]
    spent: Spent = Spent()


@dataclass(frozen=True)
class Outcome:
    """The questions in the file, the batches asked for with these options, the tools that no question needs, and why
    it ended before there were enough questions ("" where there are).
    """

    tasks: tuple[Task, ...]
    batches: tuple[Batch, ...]
    unasked: tuple[str, ...]
    stopped: str = ""

    def lines(self, caps: Caps) -> Iterator[str]:
        """To be shown."""
        kinds = Counter(task.kind or "other" for task in self.tasks)
        yield f"{len(self.tasks)} questions: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}"
        rejected = sum((Counter(batch.rejected) for batch in self.batches), Counter[str]())
        yield from (f"rejected {n}: {why}" for why, n in rejected.most_common())
        spent = sum((batch.spent for batch in self.batches), Spent())
        if spent.requests:
            tokens = f"{spent.prompt_tokens:,} tokens read, {spent.written_tokens:,} written"
            yield f"asked {spent.requests} times: {tokens}, cost {caps.cost(spent):g}"
        if self.unasked:
            yield f"no question needs {len(self.unasked)} of the tools: {', '.join(self.unasked[:5])}"
        if self.stopped:
            yield self.stopped


@dataclass(frozen=True)
class Written:
    """One batch as it was written: drafts by number of the slot, what could not be read, what it cost."""

    drafts: Mapping[int, Iterable[Draft]]
    refused: Counter[Rejection] = field(default_factory=Counter)
    spent: Spent = field(default_factory=Spent)


class Writer(Protocol):
    """Who writes the questions, `width` batches at a time."""

    name: str
    width: int

    def write(self, batches: Mapping[int, Sequence[Slot]]) -> dict[int, Written | None]:
        """By number of the batch; None for one that could not be asked for."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether a budget is used up."""
        ...


class TemplateWriter:
    """Writes from the documents: several drafts a slot, to choose from."""

    name, width, exhausted = "templates", 1, False

    def __init__(self, tools: Sequence[ToolSchema], seed: int):
        self.telling, self.seed = templates.telling_words(tools), seed

    def write(self, batches: Mapping[int, Sequence[Slot]]) -> dict[int, Written | None]:
        """See `templates.drafts`."""
        return {
            number: Written({slot.number: templates.drafts(slot, self.seed, number, self.telling) for slot in slots})
            for number, slots in batches.items()
        }


class TeacherWriter:
    """Asks a policy, one draft a slot."""

    def __init__(self, policy: Metered, renderer: Renderer, prompt: TeacherPrompt, width: int, seed: int):
        self.policy, self.renderer, self.prompt = policy, renderer, prompt
        self.name, self.width, self.seed = policy.name, width, seed

    def write(self, batches: Mapping[int, Sequence[Slot]]) -> dict[int, Written | None]:
        """A batch that the endpoint, or the budget, refuses is not written."""
        requests = [self._request(number, slots) for number, slots in batches.items()]
        written: dict[int, Written | None] = {}
        for (number, slots), generation in zip(batches.items(), self.policy.generate(requests), strict=True):
            drafts, refused = read_drafts(generation.text, slots)
            spent = self.policy.by_task[_name(number)]
            made = Written({slot: [draft] for slot, draft in drafts.items()}, refused, spent)
            written[number] = None if generation.finish == "failed" else made
        return written

    @property
    def exhausted(self) -> bool:
        """Whether the budget has refused a request."""
        return bool(self.policy.refused)

    def _request(self, number: int, slots: Sequence[Slot]) -> GenerateRequest:
        messages = (Message(role="user", content=self.prompt.text(slots)),)
        task, ids = Task(id=_name(number), prompt=messages), tuple(self.renderer.prompt_ids(messages))
        seed = stable_seed(self.seed, "questions", number)
        return GenerateRequest(task, (), messages, ids, seed, MAX_NEW_TOKENS)


def _name(number: int) -> str:
    return f"batch {number}"


class Book:
    """The file of questions and its log. Raises QuestionError where one of them holds something else."""

    def __init__(self, path: Path, by: str, seed: int):
        self.path, self.log, self.by, self.seed = path, log_path(path), by, seed
        self.tasks = {task.id: task for task in _stored(path)}
        self.batches = [batch for batch in _logged(self.log) if (batch.by, batch.seed) == (by, seed)]
        self.asked = Asked()
        for task in self.tasks.values():
            self.asked.add(task)

    @property
    def spent(self) -> Spent:
        """By all batches so far."""
        return sum((batch.spent for batch in self.batches), Spent())

    def next(self, count: int) -> list[int]:
        """The numbers of the first `count` batches that are not done."""
        done = {batch.number for batch in self.batches}
        return [number for number in range(len(done) + count) if number not in done][:count]

    def take(
        self, number: int, slots: Sequence[Slot], written: Written, toolbox: PythonToolbox | None, room: int
    ) -> None:
        """Store the questions of a batch that are good, at most `room` more; then its line in the log.

        Between the two there may be a kill: a question that stands in the file already is left as it is.
        """
        new: list[Task] = []
        rejected, kept = Counter(written.refused), 0
        for slot in slots:
            task_id = f"{self.by}-{self.seed}-{number}-{slot.number}"
            if task_id in self.tasks:
                kept += 1
                continue
            if len(new) == room:
                break
            made = self._first_good(slot, written.drafts.get(slot.number), task_id, toolbox)
            if isinstance(made, Task):
                new.append(made)
                self.tasks[task_id] = made
                self.asked.add(made)
            elif made is not None:
                rejected[made] += 1
        append_lines(self.path, (task.model_dump_json(exclude_defaults=True) for task in new))
        counts = {str(why): n for why, n in rejected.items()}
        batch = Batch(
            by=self.by, seed=self.seed, number=number, kept=kept + len(new), rejected=counts, spent=written.spent
        )
        append_lines(self.log, [batch.model_dump_json()])
        self.batches.append(batch)

    def _first_good(
        self, slot: Slot, drafts: Iterable[Draft] | None, task_id: str, toolbox: PythonToolbox | None
    ) -> Task | Rejection | None:
        """The first draft that is a good question, or why the last one is not; None where nothing was written."""
        made: Task | Rejection | None = None if drafts is None else Rejection.ARGUMENTS
        for draft in drafts or ():
            made = make_task(slot, draft, task_id, self.asked, toolbox)
            if isinstance(made, Task):
                break
        return made


def log_path(path: Path) -> Path:
    """Where the log of a file of questions is."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.log.jsonl")


def _stored(path: Path) -> Iterator[Task]:
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            yield read_task(parse_json(line))
        except ValueError as error:
            raise QuestionError(
                f"{path}:{number} is not a question, one JSON object a line ({str(error).splitlines()[0]}); put it "
                "right, or give another --out"
            ) from error


def _logged(path: Path) -> Iterator[Batch]:
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            yield Batch.model_validate_json(line)
        except ValidationError as error:
            raise QuestionError(
                f"{path}:{number} is not a line of the log; put it right or give another --out"
            ) from error


def write_questions(catalogue: str, out: Path, options: QuestionOptions) -> Outcome:
    """Fill the file `out` up to `options.num` questions for the tools of `catalogue`, a file as runs read them.

    Raises a `UserError` where the catalogue, the prompt, the file or the endpoint can't be used; what was written by
    then is in the file.
    """
    config = RunConfig(catalogue=CatalogueConfig(path=catalogue, allow=options.allow))
    tools, issues = load_tools(config.catalogue)
    toolbox = load_toolbox(config, tools)
    with Progress() as progress:
        for issue in issues:
            progress.say(str(issue))
        by = options.teacher or "templates"
        book = Book(out, by, options.seed)
        writer = _teacher(options, book.spent) if options.teacher else TemplateWriter(tools, options.seed)
        stopped = fill(book, writer, tools, toolbox, options, progress)
    needed = {call.name for task in book.tasks.values() for call in task.gold_calls or ()}
    unasked = tuple(tool.name for tool in tools if tool.name not in needed)
    return Outcome(tuple(book.tasks.values()), tuple(book.batches), unasked, stopped)


def _teacher(options: QuestionOptions, before: Spent) -> TeacherWriter:
    prompt = TeacherPrompt(options.prompt)
    renderer = Renderer(load_tokenizer(options.tokenizer or BASE_MODEL))
    endpoint = make_endpoint(options.teacher, options.endpoint, renderer, options.temperature, instructions="")
    policy = Metered(endpoint, options.caps, before)
    return TeacherWriter(policy, renderer, prompt, options.endpoint.concurrency, options.seed)


def fill(
    book: Book,
    writer: Writer,
    tools: Sequence[ToolSchema],
    toolbox: PythonToolbox | None,
    options: QuestionOptions,
    progress: Progress,
) -> str:
    """Have batches written until there are enough questions; why it ended before, "" where it did not.

    Raises RolloutError where the endpoint gives nothing.
    """
    show, started, first = progress.stage("questions"), time.monotonic(), len(book.tasks)
    gains: list[int] = []
    while (room := options.num - len(book.tasks)) > 0:
        if len(gains) >= BARREN and sum(gains[-BARREN:]) < BARREN:
            return (
                f"{len(book.tasks)} of {options.num}: the last {BARREN} batches gave {sum(gains[-BARREN:])} questions"
            )
        numbers = book.next(min(writer.width, -(-room // options.size)))
        batches = {n: draw_slots(tools, n, options.size, options.seed, options.shares) for n in numbers}
        written = writer.write(batches)
        for number, one in written.items():
            if one is not None:
                before = len(book.tasks)
                book.take(number, batches[number], one, toolbox, options.num - before)
                gains.append(len(book.tasks) - before)
        done = len(book.tasks)
        left = (time.monotonic() - started) / max(done - first, 1) * (options.num - done)
        show(done, options.num, {"rejected": float(_rejected(book.batches))}, left)
        if writer.exhausted:
            return f"{done} of {options.num}: the budget is used up"
        if lost := sum(one is None for one in written.values()):
            raise RolloutError(
                f"{lost} requests to {writer.name} failed after their retries; {done} questions are stored: see to the "
                "endpoint, then run the same command to go on"
            )
    return ""


def _rejected(batches: Iterable[Batch]) -> int:
    return sum(sum(batch.rejected.values()) for batch in batches)

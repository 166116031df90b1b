"""The world: chains of permutations of ten digits, easy (one) and hard (six), and how answers to them are written.

A problem gives a digit and up to six of eight tools; each tool is a fixed permutation of the digits. The answer is the
class of the last digit, the digit modulo the number of classes:

    problem               3 c a f h b b ?                   six tools; an easy one has one: 3 c - - - - - ?
    without thinking      [no_think] B
    thinking              [think] all 7 0 4 4 9 1 so B      the digit after each tool
    by the rough route    [think] rough 5 0 1 1 8 1 so B    of each digit only the pair it is in, as its first digit

Every word is one token, so all problems have the same length, and an answer is 3 tokens without thinking and 11 with.
One forward pass cannot follow six permutations: without thinking a hard problem is a guess, an easy one is not. In a
paired world every tool sends each pair of digits to a pair, either way round: the rough route then finds the last pair,
but not which digit of it. Two of five pairs have one class: it is right in 2/5 + 3/5 * 1/2 = 70 %.
"""

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tirkit.rollout.loop import stable_seed
from tirkit.rollout.policy import RolloutRequest
from tirkit.text.control import MODE_TAGS, TURN_END
from tirkit.text.masks import TokenRow
from tirkit.text.mode import read_mode
from tirkit.types import Message, Mode, StopReason, Task, Trajectory, Turn

Route = Literal["all", "rough"]
Split = Literal["train", "validation", "test"]
Difficulty = Literal["easy", "hard"]

TOOLS, DIGITS, CLASSES = "abcdefgh", "0123456789", "ABCDEFGHIJ"
EASY, HARD = 1, 6  # tools in a chain
PAIRS = ((0, 3), (1, 4), (2, 6), (5, 7), (8, 9))  # the digits of the first two are of one class, modulo 3
FIRST = {digit: pair[0] for pair in PAIRS for digit in pair}
EMPTY, ASK, SO, PAD = "-", "?", "so", "<|pad|>"
THINK, NO_THINK = MODE_TAGS["think"], MODE_TAGS["no_think"]
VOCABULARY = (PAD, TURN_END, THINK, NO_THINK, "all", "rough", SO, EMPTY, ASK, *DIGITS, *TOOLS, *CLASSES)
IDS = {token: id_ for id_, token in enumerate(VOCABULARY)}
PAD_ID, END_ID = IDS[PAD], IDS[TURN_END]
MAX_ANSWER = 5 + HARD  # [think] all, six digits, so, class, end of turn
_ROUGH = "".join(str(first) for first, _ in PAIRS)  # no other digit will do: else the route would be but a word
_DIGITS = rf"all(?: \d)+|rough(?: [{_ROUGH}])+"
_ANSWER = re.compile(rf"(?:\[no_think\]|\[think\] (?:{_DIGITS}) so) ([A-J])")


@dataclass(frozen=True)
class Problem:
    """A digit and the tools that are applied to it, in order."""

    digit: int
    tools: tuple[int, ...]

    @property
    def text(self) -> str:
        """The words of the prompt."""
        slots = [TOOLS[tool] for tool in self.tools] + [EMPTY] * (HARD - len(self.tools))
        return " ".join((str(self.digit), *slots, ASK))

    @property
    def difficulty(self) -> Difficulty:
        """By the number of tools."""
        return "easy" if len(self.tools) == EASY else "hard"

    @property
    def split(self) -> Split | None:
        """The only split a hard problem occurs in; None for easy ones: all 80 of them occur in all splits."""
        if self.difficulty == "easy":
            return None
        place = stable_seed("split", self.text) % 10
        return "validation" if place == 0 else "test" if place == 1 else "train"


@dataclass(frozen=True)
class World:
    """What the tools do. `seed` draws the permutations; `paired`: such that they keep `PAIRS` together."""

    num_classes: int = 3
    seed: int = 0
    paired: bool = False

    @functools.cached_property
    def permutations(self) -> tuple[tuple[int, ...], ...]:
        """Of the ten digits, one a tool."""
        rng = random.Random(self.seed)
        return tuple(_paired(rng) if self.paired else tuple(rng.sample(range(10), 10)) for _ in TOOLS)

    def digits(self, problem: Problem) -> tuple[int, ...]:
        """The digit after each tool."""
        digits, digit = [], problem.digit
        for tool in problem.tools:
            digit = self.permutations[tool][digit]
            digits.append(digit)
        return tuple(digits)

    def class_of(self, digit: int) -> str:
        """The class a chain that ends in `digit` has."""
        return CLASSES[digit % self.num_classes]

    def problems(self, number: int, split: Split, seed: int, depths: Sequence[int] = (HARD, EASY)) -> list[Problem]:
        """Drawn problems of `depths` tools in turn; hard ones all of `split`."""
        rng = random.Random(stable_seed("problems", split, seed))
        return [self._draw(rng, depths[i % len(depths)], split) for i in range(number)]

    def _draw(self, rng: random.Random, depth: int, split: Split) -> Problem:
        while True:
            problem = Problem(rng.randrange(10), tuple(rng.randrange(len(TOOLS)) for _ in range(depth)))
            if problem.split in (None, split):
                return problem

    def task(self, problem: Problem, name: str) -> Task:
        """The problem as a task; its kind is its difficulty."""
        prompt = (Message(role="user", content=problem.text),)
        answer = self.class_of(self.digits(problem)[-1])
        return Task(id=name, prompt=prompt, answer=answer, kind=problem.difficulty)

    def tasks(self, number: int, split: Split, seed: int, depths: Sequence[int] = (HARD, EASY)) -> list[Task]:
        """`problems` as tasks."""
        problems = self.problems(number, split, seed, depths)
        return [self.task(problem, f"{split}-{seed}-{i}") for i, problem in enumerate(problems)]

    def answer(self, problem: Problem, mode: Mode, route: Route = "all", noise: float = 0.0, seed: int = 0) -> str:
        """A teacher's answer. With probability `noise` a written digit is a random one, and the rest goes on from it.

        The rough route writes the first digit of the pair in the digit's place.
        """
        if mode == "no_think":
            return f"{NO_THINK} {self.class_of(self.digits(problem)[-1])}"
        rng = random.Random(seed)
        written, digit = [], problem.digit
        for tool in problem.tools:
            digit = self.permutations[tool][digit]
            digit = rng.randrange(10) if rng.random() < noise else digit
            written.append(str(FIRST[digit] if route == "rough" else digit))
        return " ".join((THINK, route, *written, SO, self.class_of(digit)))


def _paired(rng: random.Random) -> tuple[int, ...]:
    """A permutation that sends every pair to a pair, either way round."""
    images: dict[int, int] = {}
    for pair, image in zip(PAIRS, rng.sample(PAIRS, len(PAIRS)), strict=True):
        images.update(zip(pair, rng.sample(image, 2), strict=True))
    return tuple(images[digit] for digit in range(10))


def difficulty_of(text: str) -> Difficulty:
    """Of a problem's prompt: an easy one has empty slots."""
    return "easy" if EMPTY in text else "hard"


def encode(text: str) -> tuple[int, ...]:
    """Ids of the words of a text. KeyError on a word that is not in the vocabulary."""
    return tuple(IDS[word] for word in text.split())


def decode(ids: Sequence[int]) -> str:
    """The words of the ids, in a line."""
    return " ".join(VOCABULARY[id_] for id_ in ids)


def teacher_row(problem: Problem, answer: str, trained: Literal["all", "route", "rest"] = "all") -> TokenRow:
    """A row to learn `answer` from: all of it, only its route word (the second token), or all but that."""
    ids = (*encode(answer), END_ID)
    keep = {"all": lambda _: 1, "route": lambda at: int(at == 1), "rest": lambda at: int(at != 1)}[trained]
    return TokenRow(encode(problem.text), ids, tuple(keep(at) for at in range(len(ids))), (0.0,) * len(ids))


def trajectory(
    request: RolloutRequest, prompt_ids: tuple[int, ...], ids: tuple[int, ...], logps: tuple[float, ...]
) -> Trajectory:
    """The record of one sampled answer, read as the module docstring says.

    A mode tag that was forced and is not trained counts as given, not as the policy's.
    """
    finished = ids[-1] == END_ID
    text = decode(ids[:-1] if finished else ids)
    match = _ANSWER.fullmatch(text)
    turn = Turn(
        text=text,
        ids=ids,
        logps=logps,
        given=int(request.mode is not None and not request.trains_mode),
        answer=match[1] if match else None,
        problems=() if match else ("not an answer of this world",),
    )
    return Trajectory(
        task_id=request.task.id,
        prompt=request.task.prompt,
        prompt_ids=prompt_ids,
        turns=(turn,),
        stop=StopReason.MAX_TOKENS if not finished else StopReason.ANSWERED if match else StopReason.MALFORMED,
        mode=read_mode(text),
        seed=request.seed,
        copy_index=request.copy_index,
        policy="micro_world",
    )

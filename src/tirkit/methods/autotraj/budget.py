"""What a repairer may cost: requests, tokens and money, counted where they are spent."""

from collections import defaultdict
from dataclasses import dataclass

from tirkit.rollout.policy import GenerateRequest, Generation, Policy, Session
from tirkit.types import Record


class Spent(Record):
    """What was asked and written. Tokens are our tokenizer's; an endpoint may bill by another."""

    requests: int = 0
    prompt_tokens: int = 0
    written_tokens: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            requests=self.requests + other.requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            written_tokens=self.written_tokens + other.written_tokens,
        )


@dataclass(frozen=True)
class Caps:
    """Limits for a whole run, None = without; prices are per million tokens, in any currency.

    A request is refused once a limit is reached, so at most the requests in flight go over a limit of tokens or money.
    """

    requests: int | None = None
    tokens: int | None = None
    money: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    def cost(self, spent: Spent) -> float:
        """What it cost by the price table."""
        return (spent.prompt_tokens * self.price_in + spent.written_tokens * self.price_out) / 1e6

    def allow(self, spent: Spent) -> bool:
        """Whether one more request may be made."""
        used = (spent.requests, spent.prompt_tokens + spent.written_tokens, self.cost(spent))
        limits = (self.requests, self.tokens, self.money)
        return all(limit is None or value < limit for value, limit in zip(used, limits, strict=True))


class Metered(Policy):
    """Passes requests on to another policy while the caps allow, and counts what each task spends.

    A refused request comes back as "failed"; `refused` names its task.
    """

    def __init__(self, policy: Policy, caps: Caps, before: Spent):
        self.policy, self.caps, self.total = policy, caps, before
        self.name = policy.name
        self.by_task: defaultdict[str, Spent] = defaultdict(Spent)
        self.refused: set[str] = set()

    def session(self) -> Session:
        """A session of the other policy, counted."""
        return _MeteredSession(self)

    def add(self, task_id: str, spent: Spent) -> None:
        """Count."""
        self.total += spent
        self.by_task[task_id] += spent


class _MeteredSession(Session):
    def __init__(self, policy: Metered):
        self._policy, self._session = policy, policy.policy.session()
        self._refused: list[int] = []
        self._asked: dict[int, str] = {}  # task ids of what is being written

    def __enter__(self) -> "_MeteredSession":
        self._session.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._session.__exit__(*error)

    def submit(self, key: int, request: GenerateRequest) -> None:
        if not self._policy.caps.allow(self._policy.total):
            self._policy.refused.add(request.task.id)
            self._refused.append(key)
            return
        self._policy.add(request.task.id, Spent(requests=1, prompt_tokens=len(request.ids)))
        self._asked[key] = request.task.id
        self._session.submit(key, request)

    def advance(self) -> list[tuple[int, Generation]]:
        if self._refused:
            refused, self._refused = self._refused, []
            return [(key, Generation((), (), "", "failed")) for key in refused]
        written = self._session.advance()
        for key, generation in written:
            self._policy.add(self._asked.pop(key), Spent(written_tokens=len(generation.ids)))
        return written

    def forget(self, key: int) -> None:
        self._session.forget(key)

    def wake(self) -> None:
        self._session.wake()

r"""When a client may keep an update to itself because it says too little that is new.

Written in deltas of factors: a client's delta is its trained factors minus its share's, q is what the server last holds
of it, v = delta - q the innovation, dq what of it would arrive, e = v - dq what quantising it would lose. The papers
have gradients and a step size alpha; a delta is a gradient times its step, so alpha is 1 here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from tasks.errors import ConfigError, NonFiniteUpdateError

FIRST, NOTHING_NEW, TOO_LONG, NOTHING_MOVED = "first upload", "nothing new", "skipped too often", "nothing moved yet"
LARGE, SMALL, ALWAYS = "large innovation", "small innovation", "rule is off"
"""Why a rule decided as it did."""


@dataclass(frozen=True)
class LazyLook:
    r"""What one client knows when it decides, and no tensors.

    Args:
        innovation_sq: $\|dq\|^2$, the squared norm of the innovation as it would arrive.
        error_sq: $\|e\|^2$, what would not arrive.
        last_error_sq: The same of the client's last upload.
        moved_sq: $\|\theta^{k+1-d} - \theta^{k-d}\|^2$ for d = 1, 2, ...: how far each of the last rounds moved the
            global factors, newest first; empty before the first round that did.
        num_clients: Clients that are asked to take part, M.
        skips: Rounds in a row in which the client skipped.
        has_held: The server holds an update of this client.
        share: What the client's delta counts in the server's step, p; 1 for a server that adds deltas up, as LAQ's does
            gradients, and None for a plain mean, 1 / M.

    Raises:
        NonFiniteUpdateError: A squared norm is NaN or infinite.
        ConfigError: There are no clients, or the share is not above 0 and at most 1.
    """

    innovation_sq: float
    error_sq: float
    last_error_sq: float
    moved_sq: tuple[float, ...]
    num_clients: int
    skips: int
    has_held: bool
    share: float | None = None

    def __post_init__(self) -> None:
        figures = (self.innovation_sq, self.error_sq, self.last_error_sq, *self.moved_sq)
        if not all(map(math.isfinite, figures)):
            raise NonFiniteUpdateError("lazy upload", "a squared norm is NaN or infinite", got=list(figures),
                                       remedy="keep what the server holds; lower the learning rate")  # fmt: skip
        if self.num_clients < 1 or not 0.0 < self.counts <= 1.0:
            raise ConfigError(
                "lazy upload", "cannot tell what a client counts",
                got=f"{self.num_clients} clients, share {self.share}", expected="1 or more, a share above 0 up to 1",
            )  # fmt: skip

    @property
    def counts(self) -> float:
        """What the client's delta counts in the server's step, p [fraction]."""
        return 1.0 / max(self.num_clients, 1) if self.share is None else self.share


@dataclass(frozen=True)
class Verdict:
    """What a rule decided.

    Args:
        skip: The client sends nothing but the word that its old update still holds.
        reason: One of this module's.
        left: What the innovation weighs.
        right: What it has to reach.
    """

    skip: bool
    reason: str
    left: float = 0.0
    right: float = 0.0


Rule = Callable[[LazyLook], Verdict]


def never() -> Rule:
    """Make the rule under which every client uploads in every round."""
    return lambda _: Verdict(skip=False, reason=ALWAYS)


def laq(*, laq_memory: int, laq_xi: float, max_skips: int) -> Rule:
    r"""Make LAQ's rule: send if the innovation is large beside what the last rounds moved and what quantising loses.

    $\|dq\|^2 \ge \frac{1}{(p M)^2} \sum_{d=1}^{D} \frac{\xi}{D} \|\theta^{k+1-d} - \theta^{k-d}\|^2
    + 3 (\|e\|^2 + \|\hat e\|^2)$, with $\hat e$ the error of the client's last upload.

    Args:
        laq_memory: D, rounds that count; those that are not there yet count as still.
        laq_xi: xi, the weight of all D rounds together.
        max_skips: Skips in a row after which the client sends.

    Invariants:
        A client sends the first time, while nothing has moved yet, and after `max_skips` skips in a row. Where there is
        nothing new it skips for as long as that holds, since the server has it to the bit. Scaling all deltas changes
        nothing.

    References:
        Jun Sun, Tianyi Chen, Georgios B. Giannakis, Zaiyue Yang, "Communication-Efficient Distributed Learning via
        Lazily Aggregated Quantized Gradients", NeurIPS 2019, https://arxiv.org/abs/1909.07588. Read: the authors' code
        (its D = 10, xi = 0.8, 100 skips), not the paper. We differ: deltas of factors stand for gradients, alpha = 1;
        the code's server adds gradients of M clients, which is p = 1 here, while ours takes a mean, so that the sum
        over rounds keeps its meaning only with p = 1 / M; 10 skips by default; v = 0 is a skip (0 / 0 in the code);
        the server goes on counting those alone who say that their old update holds, never those who do not answer.
    """

    def rule(look: LazyLook) -> Verdict:
        recent = look.moved_sq[:laq_memory]
        moved = math.fsum(recent) * laq_xi / laq_memory / (look.counts * look.num_clients) ** 2
        left, right = look.innovation_sq, moved + 3 * (look.error_sq + look.last_error_sq)
        return _decided(look, Verdict(left < right, SMALL if left < right else LARGE, left, right), max_skips)

    return rule


def aquila(*, aquila_beta: float, max_skips: int) -> Rule:
    r"""Make AQUILA's rule: skip if the innovation, lost part included, is small beside what the last round moved.

    Skip if $\|dq\|^2 + \|e\|^2 \le \beta \|\theta^k - \theta^{k-1}\|^2$.

    Args:
        aquila_beta: beta; 0 skips only where there is nothing new.
        max_skips: Skips in a row after which the client sends.

    Invariants:
        As those of `laq`; rounds before the last do not count.

    References:
        "AQUILA: Communication Efficient Federated Learning with Adaptive Quantization in Device Selection Strategy",
        IEEE TMC 23(6), 2024, https://arxiv.org/abs/2308.00258. The rule is recalled: the text was not readable and no
        code was found, so that this is inspired by it. Deltas of factors stand for gradients, alpha = 1; the default
        of beta, the longest row of skips and who is remembered (see `laq`) are ours.
    """

    def rule(look: LazyLook) -> Verdict:
        left = look.innovation_sq + look.error_sq
        right = aquila_beta * (look.moved_sq[0] if look.moved_sq else 0.0)
        return _decided(look, Verdict(left <= right, SMALL if left <= right else LARGE, left, right), max_skips)

    return rule


def _decided(look: LazyLook, compared: Verdict, max_skips: int) -> Verdict:
    """Put what comes before any comparison before it."""
    if not look.has_held:
        return replace(compared, skip=False, reason=FIRST)
    if look.innovation_sq == 0.0 and look.error_sq == 0.0:
        return replace(compared, skip=True, reason=NOTHING_NEW)
    if look.skips >= max_skips:
        return replace(compared, skip=False, reason=TOO_LONG)
    if not any(look.moved_sq):
        return replace(compared, skip=False, reason=NOTHING_MOVED)
    return compared

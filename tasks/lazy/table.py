"""The table of lazy rules: forms, validation and the law suite all read it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tasks.errors import UnknownNameError
from tasks.lazy.rules import Rule, aquila, laq, never
from tasks.options import Option, Value, chosen

MAX_SKIPS = Option(
    name="max_skips",
    description="rounds in a row that a client may skip; in the next one it sends [rounds]",
    default=10,
    most=1e6,
    kind="count",
)
LAQ_MEMORY = Option(
    name="laq_memory",
    description="rounds whose movement an innovation is measured against [rounds]",
    default=10,
    least=1.0,
    most=10.0,
    kind="count",
)
LAQ_XI = Option(
    name="laq_xi",
    description="weight of all those rounds' movement together; 0 skips only what quantising would drown",
    default=0.8,
    most=1e6,
)
AQUILA_BETA = Option(
    name="aquila_beta",
    description="weight of the last round's movement; 0 skips only where there is nothing new",
    default=0.25,
    most=1e6,
)


@dataclass(frozen=True)
class LazyRule:
    """One way to decide whether an update is worth its bytes.

    Args:
        name: As configs write it.
        title: For people.
        paper: Link to the publication; empty where there is none.
        start: Options as keywords -> the rule.
        may_skip: Clients may skip. Then the server keeps an update of each of them, and who skips tells about its data:
            not for hidden sums, nor for private runs.
        options: What people may set; keywords of `start`.
    """

    name: str
    title: str
    paper: str
    start: Callable[..., Rule]
    may_skip: bool = True
    options: tuple[Option, ...] = ()

    def rule(self, values: Mapping[str, Value] = MappingProxyType({})) -> Rule:
        """Make the rule with the options chosen.

        Args:
            values: Option name -> value; what is missing keeps its default.

        Raises:
            UnknownNameError: The rule has no such option.
            ConfigError: A value is of the wrong type or out of bounds.
        """
        return self.start(**chosen(self.name, self.options, values))


LAZY_RULES: dict[str, LazyRule] = {
    "never": LazyRule(name="never", title="Every client uploads", paper="", start=never, may_skip=False),
    "laq": LazyRule(
        name="laq",
        title="LAQ: skip what is small beside the last rounds' movement",
        paper="https://arxiv.org/abs/1909.07588",
        start=laq,
        options=(LAQ_MEMORY, LAQ_XI, MAX_SKIPS),
    ),
    "aquila": LazyRule(
        name="aquila",
        title="After AQUILA: skip what is small beside the last round's movement",
        paper="https://arxiv.org/abs/2308.00258",
        start=aquila,
        options=(AQUILA_BETA, MAX_SKIPS),
    ),
}


def lazy_rule(name: str) -> LazyRule:
    """Look up a lazy rule.

    Args:
        name: As configs write it.

    Raises:
        UnknownNameError: No lazy rule has this name.
    """
    if name not in LAZY_RULES:
        raise UnknownNameError("lazy rule", name, LAZY_RULES)
    return LAZY_RULES[name]

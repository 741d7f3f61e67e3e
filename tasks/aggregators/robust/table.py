"""The table of robust rules: forms, validation and the law suite all read it. No rule is no row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tasks.aggregators.promises import Aggregator
from tasks.aggregators.robust.coordinate_median import coordinate_median
from tasks.aggregators.robust.geometric_median import geometric_median
from tasks.aggregators.robust.krum import krum, krum_fewest, multi_krum, multi_krum_fewest
from tasks.aggregators.robust.norm_clip import norm_clip
from tasks.aggregators.robust.screen import Screen
from tasks.aggregators.robust.trimmed_mean import trimmed_mean
from tasks.errors import UnknownNameError
from tasks.options import Option, chosen

NUM_ATTACKERS = Option(
    name="num_attackers",
    description="hostile updates to withstand; the cohort must hold twice as many and three more [clients]",
    default=1,
    most=1000,
    kind="count",
)


@dataclass(frozen=True)
class RobustRule:
    """One rule, and what it promises.

    Args:
        name: As configs write it.
        title: For people.
        paper: Link to the publication.
        screen: Makes the rule.
        options: What people may set; keywords of `screen`.
        fewest: Same keywords -> updates below which the rule refuses; None for a rule that takes any number, though
            it guards little in a cohort of two.
        keeps_factors: Clients' factors reach the aggregator as they are, up to scale. False for rules that refactor
            them, which would break an aggregator in which clients share or keep one factor.
        acts_by_weights: All it does is to give new weights, which an aggregator has to heed.
    """

    name: str
    title: str
    paper: str
    screen: Callable[..., Screen]
    options: tuple[Option, ...] = ()
    fewest: Callable[..., int] | None = None
    keeps_factors: bool = True
    acts_by_weights: bool = False

    def start(self, values: Mapping[str, float] = MappingProxyType({})) -> Screen:
        """Make the rule with the options chosen.

        Args:
            values: Option name -> value; what is missing keeps its default.

        Raises:
            UnknownNameError: The rule has no such option.
            ConfigError: A value is of the wrong type or out of bounds.
        """
        return self.screen(**chosen(self.name, self.options, values))

    def fewest_updates(self, values: Mapping[str, float] = MappingProxyType({})) -> int:
        """Return how many updates the rule needs, so that a quorum can be checked before anyone trains.

        Args:
            values: Option name -> value; what is missing keeps its default.

        Returns:
            Updates below which the rule refuses with ConfigError; 1 if it takes any number.

        Raises:
            UnknownNameError: The rule has no such option.
            ConfigError: A value is of the wrong type or out of bounds.
        """
        keywords = chosen(self.name, self.options, values)
        return self.fewest(**keywords) if self.fewest else 1


def misfit(rule: RobustRule, row: Aggregator) -> str:
    """Say why a rule cannot guard an aggregator; empty where it can.

    Args:
        rule: The rule.
        row: The aggregator behind it.
    """
    if row.sends == "a":
        return f"{row.name} is sent no products, which {rule.name} compares; leave the rule out"
    if row.sends in {"b", "core"} and not rule.keeps_factors:
        return f"{rule.name} makes new factors, and {row.name} needs the shared one as it is; use another rule"
    if rule.acts_by_weights and not row.weighs_by_examples:
        return f"{rule.name} acts by weights, and {row.name} finds its own; use another rule, or zero_pad"
    return ""


ROBUST_RULES: dict[str, RobustRule] = {
    "norm_clip": RobustRule(
        name="norm_clip",
        title="Norm clipping at a multiple of the median",
        paper="https://arxiv.org/abs/1911.07963",
        screen=norm_clip,
        options=(Option("factor", "largest norm of an update [median norms]", default=2.0, least=1.0, most=1000.0),),
    ),
    "coordinate_median": RobustRule(
        name="coordinate_median",
        title="Coordinate-wise median of canonical factors",
        paper="https://arxiv.org/abs/1803.01498",
        screen=coordinate_median,
        keeps_factors=False,
    ),
    "trimmed_mean": RobustRule(
        name="trimmed_mean",
        title="Coordinate-wise trimmed mean of canonical factors",
        paper="https://arxiv.org/abs/1803.01498",
        screen=trimmed_mean,
        options=(
            Option("trim_frac", "share of values dropped at each end [fraction]", default=0.2, least=0.0, most=0.49),
        ),
        keeps_factors=False,
    ),
    "krum": RobustRule(
        name="krum",
        title="Krum: the one update closest to its neighbours",
        paper="https://arxiv.org/abs/1703.02757",
        screen=krum,
        options=(NUM_ATTACKERS,),
        fewest=krum_fewest,
    ),
    "multi_krum": RobustRule(
        name="multi_krum",
        title="Multi-Krum: the updates closest to their neighbours",
        paper="https://arxiv.org/abs/1703.02757",
        screen=multi_krum,
        options=(
            NUM_ATTACKERS,
            Option(
                "num_selected",
                "updates to keep; 0 keeps all but num_attackers [clients]",
                default=0,
                most=10_000,
                kind="count",
            ),
        ),
        fewest=multi_krum_fewest,
    ),
    "geometric_median": RobustRule(
        name="geometric_median",
        title="Geometric median, as new weights",
        acts_by_weights=True,
        paper="https://arxiv.org/abs/1912.13445",
        screen=geometric_median,
        options=(
            Option("iterations", "most steps of the iteration", default=100, least=1, most=10_000, kind="count"),
            Option(
                "smoothing",
                "distance below which updates count as one [fraction of the median norm]",
                default=1e-6,
                least=1e-8,
                most=1.0,
            ),
        ),
    ),
}


def robust_rule(name: str) -> RobustRule:
    """Look up a robust rule.

    Args:
        name: As configs write it.

    Raises:
        UnknownNameError: No rule has this name.
    """
    if name not in ROBUST_RULES:
        raise UnknownNameError("robust rule", name, ROBUST_RULES)
    return ROBUST_RULES[name]

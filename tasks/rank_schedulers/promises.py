"""What a row of the table of rank schedulers says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tasks.options import Option, Value, chosen
from tasks.rank_schedulers.decision import Bound, RankSignals

Propose = Callable[..., Mapping[str, Bound]]
"""(signals, **options) -> client id -> bound; a client that is left out is not bounded."""


@dataclass(frozen=True)
class RankScheduler:
    """One way to bound ranks; several bounds together leave each client the smallest.

    Args:
        name: As configs write it.
        title: For people.
        paper: Link to the publication; empty where it is ours.
        propose: Bounds the next round's ranks.
        equal_ranks: Clients with one ceiling get one rank, so that methods which need equal ranks can be scheduled.
        follows_clients: Its bounds depend on what single clients did, so the size of the global adapter tells of them.
        reads_spectra: It looks at the singular values of the global adapter, which cost an SVD each round.
        options: What people may set; keywords of `propose`.
    """

    name: str
    title: str
    paper: str
    propose: Propose
    equal_ranks: bool
    follows_clients: bool = False
    reads_spectra: bool = False
    options: tuple[Option, ...] = ()

    def bounds(self, signals: RankSignals, values: Mapping[str, Value] = MappingProxyType({})) -> Mapping[str, Bound]:
        """Ask for bounds.

        Args:
            signals: What is known.
            values: Option name -> value; what is missing keeps its default.

        Raises:
            UnknownNameError: There is no such option.
            ConfigError: A value is of the wrong type or out of bounds.
        """
        return self.propose(signals, **chosen(self.name, self.options, values))

"""What a row of the table of aggregators says: how to run a method, and what it promises."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.fold import Fold
from tasks.errors import ConfigError
from tasks.options import Option, chosen


@dataclass(frozen=True)
class Aggregator:
    """One method, and what it promises; the law suite holds it to every promise.

    Args:
        name: As configs write it.
        title: For people.
        paper: Link to the publication.
        start: Makes an empty fold.
        share: (global adapter, module path -> rank) -> what a client of these ranks receives.
        mixed_ranks: Clients may train different ranks.
        exact_product: What a round adds to the product is the weighted mean of the clients' products.
        gauge_invariant: Only products matter: `(b g^-1, g a)` gives the same result and shares as `(b, a)`.
        needs: "sums" if weighted sums of what clients send suffice, so that clients of one rank may be averaged before
            they are sent; "updates" if each update must be seen.
        noop_fixed_point: If all clients return the share they were given, the global adapter does not change: not a bit
            where slots are averaged, its product where products are; `raflora_canonical` keeps it only where singular
            values differ, as slots of one strength have no order of their own.
        downlink: What goes to a client: "slice" is the first rank slots of the global adapter; "stack" is the round's
            whole stack, which every client adds to its base before it starts anew; "residual" is both, a slice to
            train on and a residual to add to the base.
        averages: "slots" or "products": what the mean is taken of, and so what the laws compare.
        rank: Rank of the result: the "largest" seen, the previous adapter's included; at most the "sum" of the clients'
            and what earlier rounds left, which is no more than the layer's smaller size; or that of a "bank", which is
            at least the largest seen and, with a previous adapter, larger than any client's if the layer is.
        sends: Factors that cross the link, both ways; the other one stays where it is. "core": both factors are frozen,
            and what is trained and sent is the square matrix between them.
        weighs_by_examples: The weights given decide how much a client counts; False: the method finds its own.
        noisable: With equal weights it is a plain mean of what clients send, as the noise of private runs asks.
        options: What people may set; keywords of `start`.
        merges: (new global adapter, previous one, module path -> rank that clients train) -> what every client adds to
            its base before the next round; None: nothing.
    """

    name: str
    title: str
    paper: str
    start: Callable[..., Fold]
    share: Callable[[LoraAdapter, Mapping[str, int]], LoraAdapter]
    mixed_ranks: bool
    exact_product: bool
    gauge_invariant: bool
    needs: Literal["sums", "updates"]
    noop_fixed_point: bool
    downlink: Literal["slice", "stack", "residual"]
    averages: Literal["slots", "products"] = "slots"
    rank: Literal["largest", "sum", "bank"] = "largest"
    sends: Literal["both", "a", "b", "core"] = "both"
    weighs_by_examples: bool = True
    noisable: bool = False
    options: tuple[Option, ...] = ()
    merges: Callable[[LoraAdapter, LoraAdapter, Mapping[str, int]], LoraAdapter] | None = None

    @property
    def keeps_slots(self) -> bool:
        """Whether a slot of this round's shares is the same slot in the next: it is averaged, or its factors are fixed.

        The others make their slots anew in every round, by SVD or from a seed.
        """
        return self.averages == "slots" or self.sends == "core" or self.downlink == "residual"

    @property
    def noised(self) -> Literal["both", "a", "b"]:
        """The factors of a private run's updates: those that are sent, where the row is noisable."""
        if self.sends == "core":
            raise ConfigError(self.name, "has no noise for cores", remedy="use ffa for private runs")
        return self.sends

    def fold(self, values: Mapping[str, float] = MappingProxyType({})) -> Fold:
        """Start a fold.

        Args:
            values: Option name -> value; what is missing keeps its default.

        Raises:
            UnknownNameError: The method has no such option.
            ConfigError: A value is of the wrong type or out of bounds.
        """
        return self.start(**chosen(self.name, self.options, values))

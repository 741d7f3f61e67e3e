"""Who takes part at which rank, where clients run, and how adapters travel."""

from typing import Annotated, Literal

from pydantic import Field

from configs.forms import FormModel, NameIn
from configs.sections.options import CodecOption, LazyOption, RankOption, SelectionOption
from tasks.codecs.table import CODECS
from tasks.cohorts.selections.table import SELECTIONS
from tasks.lazy.table import LAZY_RULES
from tasks.rank_schedulers.table import RANK_SCHEDULERS

Fraction = Annotated[float, Field(ge=0.001, le=1.0)]


class ModuleRankConfig(FormModel):
    """One module's own largest rank."""

    module: str = Field(title="Module", description="Path of the module, or the end of it.")
    max_rank: int = Field(ge=1, le=65_536, title="Largest rank", description="Rank of a client with the largest rank.")


class RanksConfig(FormModel):
    """Which rank each client trains at."""

    schedulers: list[Annotated[str, NameIn("rank scheduler", RANK_SCHEDULERS)]] = Field(
        default=["fixed"],
        min_length=1,
        title="Schedulers",
        description="How ranks change over the rounds; of several, each client gets the smallest rank that one allows.",
    )
    options: list[RankOption] = Field(
        default=[], title="Options", description="Options of the schedulers that differ from their defaults."
    )
    max_rank: int = Field(
        default=16,
        ge=1,
        le=65_536,
        title="Largest rank",
        description="Rank of the global adapter; a layer never gets more than its own size allows.",
    )
    client_fractions: list[Fraction] = Field(
        default=[1.0],
        min_length=1,
        title="Client fractions",
        description="Share of the largest rank that each client in turn gets at most, repeated when there are more "
        "clients [fraction].",
    )
    module_ranks: list[ModuleRankConfig] = Field(
        default=[], title="Module ranks", description="Modules whose largest rank differs."
    )


class CohortConfig(FormModel):
    """Who takes part in a round and how long it waits."""

    cohort_size: int = Field(
        default=0,
        ge=0,
        le=100_000,
        title="Cohort size",
        description="Clients wanted in a round; 0 means all [clients].",
    )
    overshoot: int = Field(
        default=0,
        ge=0,
        le=100_000,
        title="Overshoot",
        description="Extra clients invited to make up for no-shows [clients].",
    )
    selection: Annotated[str, NameIn("selection", SELECTIONS)] = Field(
        default="uniform",
        title="Selection",
        description="Who is invited where the cohort is smaller than all: anybody, or those whose updates help more.",
    )
    selection_options: list[SelectionOption] = Field(
        default=[], title="Selection options", description="Options of the selection that differ from their defaults."
    )
    quorum: int = Field(
        default=1,
        ge=1,
        le=100_000,
        title="Quorum",
        description="Fewest accepted updates for a valid round [clients].",
    )
    deadline_s: float = Field(
        default=3600.0, ge=0.1, le=604_800.0, title="Deadline", description="A round waits no longer than this [s]."
    )
    grace_s: float = Field(
        default=600.0,
        ge=0.0,
        le=604_800.0,
        title="Grace",
        description="Once quorum is there, wait at most this much longer [s].",
    )
    max_failed_rounds: int = Field(
        default=0,
        ge=0,
        le=10_000,
        title="Failed rounds allowed",
        description="The run stops when more rounds than this miss their quorum [rounds].",
    )
    byte_budget_mb: float = Field(
        default=0.0,
        ge=0.0,
        le=1e12,
        title="Byte budget",
        description="What clients may move in the whole run, both ways, 0 for no budget: the run ends before a round "
        "that would exceed it if it moved as much as the last one. Ranks stay as they are; the rank scheduler budget, "
        "with an option of its own, lowers ranks to fit and never ends a run [MB of 10^6 bytes].",
    )


class MachineConfig(FormModel):
    """A machine that clients of a simulation pretend to have; 0 leaves what was measured."""

    flops_per_s: float = Field(
        default=0.0, ge=0.0, le=1e18, title="Arithmetic", description="Operations per second of training [1/s]."
    )
    memory_bytes: float = Field(
        default=0.0, ge=0.0, le=1e15, title="Memory", description="Free beside the base model [bytes]."
    )
    uplink_bytes_per_s: float = Field(
        default=0.0, ge=0.0, le=1e12, title="Uplink", description="Bandwidth to the bucket [bytes/s]."
    )
    downlink_bytes_per_s: float = Field(
        default=0.0, ge=0.0, le=1e12, title="Downlink", description="Bandwidth from the bucket [bytes/s]."
    )


class DispatchConfig(FormModel):
    """Where clients run."""

    mode: Literal["inline", "pools", "external"] = Field(
        default="inline",
        title="Mode",
        description="inline: simulated in the server's own process; pools: one run each on a Prefect work pool; "
        "external: sites start their own client-update runs.",
    )
    inline_workers: int = Field(
        default=1,
        ge=1,
        le=256,
        title="Inline workers",
        description="Clients that train at once in the server's process [threads].",
    )
    deployment: str = Field(
        default="client-update/local",
        title="Deployment",
        description="Deployment that runs a client on its pool; pools only.",
    )
    simulated_machines: list[MachineConfig] = Field(
        default=[],
        title="Simulated machines",
        description="Machines that clients in turn report instead of their own, to try rank schedulers; inline only.",
    )
    simulated_loss: float = Field(
        default=0.0,
        ge=0.0,
        le=0.99,
        title="Simulated loss",
        description="Probability that a client's answer of a round is lost on the way; inline only [fraction].",
    )

    @property
    def clients_at_once(self) -> int:
        """Clients that share one process and its memory."""
        return self.inline_workers if self.mode == "inline" else 1


class ExchangeConfig(FormModel):
    """How adapters are encoded on the way."""

    uplink_codec: Annotated[str, NameIn("codec", CODECS)] = Field(
        default="fp32", title="Uplink codec", description="Encoding of updates."
    )
    uplink_options: list[CodecOption] = Field(
        default=[], title="Uplink options", description="Options of the uplink codec that differ from their defaults."
    )
    downlink_codec: Annotated[str, NameIn("codec", CODECS)] = Field(
        default="fp32",
        title="Downlink codec",
        description="Encoding of shares; one that sends differences sends them to clients that hold the last share.",
    )
    downlink_options: list[CodecOption] = Field(
        default=[],
        title="Downlink options",
        description="Options of the downlink codec that differ from their defaults.",
    )
    lazy: Annotated[str, NameIn("lazy rule", LAZY_RULES)] = Field(
        default="never",
        title="Lazy clients",
        description="When a client may skip its upload, so that the last one the server got of it counts again.",
    )
    lazy_options: list[LazyOption] = Field(
        default=[], title="Lazy options", description="Options of the lazy rule that differ from their defaults."
    )
    max_held_age: int = Field(
        default=20,
        ge=1,
        le=100_000,
        title="Longest memory",
        description="After so many rounds without an upload a lazy client's last one is forgotten [rounds].",
    )

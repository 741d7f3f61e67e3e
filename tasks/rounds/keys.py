"""The key grammar of the exchange bucket: the one place that spells an object's name.

Every key depends only on (run, round, client, attempt), so a step that is repeated writes where it wrote before.
Ids are checked here because some of them come from outside; nothing else may join text into a key.
"""

import re
from dataclasses import dataclass

from tasks.errors import ConfigError

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
_ATTEMPT = re.compile(r"[1-9][0-9]{0,2}")
GLOBAL = "global"
"""Name of the one model of a run without clusters; clusters are called "cluster-1", "cluster-2", ..."""
MANIFEST = "manifest.json"
FAILURE = "failure.json"
UPDATE = "update.safetensors"
MERGE = "merge.safetensors"
DIAGNOSTICS = "diagnostics.json"


def check_id(kind: str, value: str) -> str:
    """Return an id that is safe inside a key.

    Args:
        kind: What the id names, for the message.
        value: The id.

    Raises:
        ConfigError: It holds anything but lower-case letters, digits and dashes.
    """
    if not _ID.fullmatch(value):
        raise ConfigError(
            f"{kind} {value!r}",
            "is not a usable id",
            expected="1 to 100 of a-z, 0-9 and '-', no leading dash",
        )
    return value


def run_spec(run_id: str) -> str:
    """Key of the frozen description of a run."""
    return f"runs/{check_id('run', run_id)}/run.json"


def fusion(run_id: str, client_id: str) -> str:
    """Key of what a client tells about its fused adapter after the run."""
    return f"runs/{check_id('run', run_id)}/fusion/{check_id('client', client_id)}.json"


@dataclass(frozen=True)
class RoundKeys:
    """Keys of one round.

    Args:
        run_id: The run.
        round_index: 0 for the initial adapter, trained rounds from 1.
    """

    run_id: str
    round_index: int

    @property
    def root(self) -> str:
        """Prefix of all the round's objects, without a trailing slash."""
        return f"runs/{check_id('run', self.run_id)}/rounds/{self.round_index:06d}"

    @property
    def plan(self) -> str:
        """Who is invited, at which rank, with which nonce."""
        return f"{self.root}/plan.json"

    def part(self, client_id: str) -> str:
        """What of the plan concerns one client: all that it downloads of it."""
        return f"{self.root}/plans/{check_id('client', client_id)}.json"

    @property
    def collection(self) -> str:
        """Which updates count, fixed before they are aggregated."""
        return f"{self.root}/collection.json"

    @property
    def record(self) -> str:
        """The round's commit point."""
        return f"{self.root}/record.json"

    @property
    def clustering(self) -> str:
        """Which model each client belongs to, fixed before aggregation."""
        return f"{self.root}/clustering.json"

    def share(self, rank: int, model: str = GLOBAL) -> str:
        """What clients of this model and rank download."""
        return f"{self.root}/downlink/{check_id('model', model)}/rank-{rank}.safetensors"

    @property
    def uplinks(self) -> str:
        """Prefix of everything that clients wrote."""
        return f"{self.root}/uplink/"

    def uplink(self, client_id: str, attempt: int, name: str) -> str:
        """One file of one attempt of one client."""
        return f"{self.uplinks}{check_id('client', client_id)}/{attempt}/{name}"

    def step(self, rank: int, model: str = GLOBAL) -> str:
        """What leads clients of this model and rank here from the share of the round before."""
        return f"{self.root}/downlink/{check_id('model', model)}/rank-{rank}-step.bin"

    def held(self, client_id: str) -> str:
        """The step that a lazy client brought in the round."""
        return f"{self.root}/held/{check_id('client', client_id)}.safetensors"

    def adapter(self, name: str, model: str = GLOBAL) -> str:
        """One file of a global adapter of the round."""
        return f"{self.root}/{check_id('model', model)}/{name}"

    def quarantine(self, client_id: str, attempt: int) -> str:
        """Why an update was refused."""
        return (
            f"runs/{check_id('run', self.run_id)}/quarantine/{self.round_index:06d}/"
            f"{check_id('client', client_id)}/{attempt}.json"
        )

    def parse_uplink(self, key: str) -> tuple[str, int, str] | None:
        """Split an uplink key into client, attempt and file name; None when it is not one of ours."""
        parts = key.removeprefix(self.uplinks).split("/")
        if not key.startswith(self.uplinks) or len(parts) != 3 or not _ATTEMPT.fullmatch(parts[1]):
            return None
        return parts[0], int(parts[1]), parts[2]

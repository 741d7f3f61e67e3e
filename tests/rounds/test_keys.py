"""The key grammar: nothing from outside can leave its folder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ConfigError
from tasks.rounds import keys
from tasks.rounds.keys import RoundKeys

ROUND = RoundKeys("run-1", 3)


def test_keys_are_those_of_the_grammar():
    assert keys.run_spec("run-1") == "runs/run-1/run.json"
    assert ROUND.plan == "runs/run-1/rounds/000003/plan.json"
    assert ROUND.share(8) == "runs/run-1/rounds/000003/downlink/global/rank-8.safetensors"
    assert ROUND.uplink("c01", 2, keys.MANIFEST) == "runs/run-1/rounds/000003/uplink/c01/2/manifest.json"
    assert ROUND.adapter("adapter_model.safetensors") == "runs/run-1/rounds/000003/global/adapter_model.safetensors"
    assert ROUND.quarantine("c01", 2) == "runs/run-1/quarantine/000003/c01/2.json"


@pytest.mark.parametrize("bad", ["", "..", "a/b", "A", "a.b", "-a", "a b", "a" * 101, "a\n"])
def test_ids_that_could_leave_their_folder_are_refused(bad):
    with pytest.raises(ConfigError, match="not a usable id"):
        ROUND.uplink(bad, 1, keys.UPDATE)
    with pytest.raises(ConfigError, match="not a usable id"):
        keys.run_spec(bad)


@given(st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True), st.integers(1, 999))
def test_uplink_keys_parse_back(client, attempt):
    key = ROUND.uplink(client, attempt, keys.UPDATE)
    assert ROUND.parse_uplink(key) == (client, attempt, keys.UPDATE)


@pytest.mark.parametrize(
    "stray",
    [
        "c01",
        "c01/1",
        "c01/one/manifest.json",
        "c01/01/manifest.json",
        "c01/1000/manifest.json",
        "c01/1/2/manifest.json",
    ],
)
def test_strange_objects_under_uplink_are_not_ours(stray):
    assert ROUND.parse_uplink(ROUND.uplinks + stray) is None
    assert ROUND.parse_uplink("elsewhere/c01/1/manifest.json") is None

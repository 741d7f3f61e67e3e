"""Codecs in real rounds: they learn, remember what they left out, and their messages are as long as the table says."""

import struct

import pytest

from infra.run_store import read_adapter
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import encode_adapter
from tasks.codecs.table import CODECS
from tasks.evaluate_adapter import evaluate_adapter
from tasks.rounds import keys
from tasks.rounds.keys import GLOBAL, RoundKeys
from tasks.rounds.steps import Candidate, Group
from tasks.uplink import CODEC, Uplink
from tests.flows.closing import closed
from tests.flows.links import ONE_RANK, THREE, booked, private, starve
from tests.flows.staged import RUN_ID, Staged, stage_round
from tests.flows.told import payload

COHORT = ["c00", "c01", "c02"]
LEARNING = (*THREE, "training.epochs=2", "training.optimizer.learning_rate=0.01")
THIN = {
    "ffa": ("aggregation.name=ffa",),
    "fedsa": ("aggregation.name=fedsa", "training.validation_frac=0.2"),
    "fed_sb": ("aggregation.name=fed_sb",),
    "flora_stack": ("aggregation.name=flora_stack",),
    "local ffa": ("training.local_methods=[ffa]",),
    "alternating": ("training.local_methods=[alternating]",),
}
COMPACT = ("exchange.uplink_codec=compact", "exchange.downlink_codec=compact")

pytestmark = pytest.mark.usefixtures("home")


def sent(staged: Staged, client: str, attempt: int = 1) -> bytes:
    return staged.store.get(staged.key(client, keys.UPDATE, attempt))


def loss_of(staged: Staged) -> float:
    """Loss of the global adapter that a round goes on from, on the server's examples."""
    model = staged.initial.models[GLOBAL]
    candidate = Candidate(Group(GLOBAL, GLOBAL, staged.initial.collection.accepted), model, {}, 0.0, {}, {})
    return evaluate_adapter.fn(staged.plan, candidate, staged.url, staged.bench)["loss"]


def rounds_of(staged: Staged, monkeypatch, count: int) -> Staged:
    for _ in range(count):
        staged.train(*COHORT)
        assert sorted(staged.look().accepted) == COHORT
        staged = closed(staged, monkeypatch)
    return staged


# --- learning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("downlink", [False, True], ids=["up", "both ways"])
@pytest.mark.parametrize("name", CODECS)
def test_a_run_with_a_codec_finishes_and_learns(tmp_path, monkeypatch, name, downlink):
    ways = (f"exchange.uplink_codec={name}", *([f"exchange.downlink_codec={name}"] if downlink else []))
    staged = stage_round(tmp_path / "store", *LEARNING, *ways)
    first = loss_of(staged)
    last = loss_of(rounds_of(staged, monkeypatch, 3))
    assert last < 0.97 * first


@pytest.mark.parametrize("method", THIN)
def test_thin_messages_go_through_a_codec_both_ways(tmp_path, monkeypatch, method):
    staged = stage_round(tmp_path / "store", *LEARNING, *THIN[method], *COMPACT)
    first = staged
    for _ in range(3):
        plain = rounds_of(staged, monkeypatch, 1)
        assert len(sent(staged, "c02")) < exact_bytes(staged, "c02")
        assert booked(staged, "c02", "update", "uplink") == len(sent(staged, "c02"))
        staged = plain
    if method != "fedsa":  # the factor b stays at home: the server has no loss to measure
        assert loss_of(staged) < loss_of(first)


def exact_bytes(staged: Staged, client: str) -> int:
    """What the same update would take in 32 bits."""
    exchange = staged.bench.exchange(staged.plan)
    return len(encode_adapter(exchange.thinned(staged.update(client))))


# --- what was left out ----------------------------------------------------------------------------------------


def test_each_client_keeps_what_its_own_message_left_out(tmp_path, monkeypatch):
    staged = rounds_of(stage_round(tmp_path / "store", *THREE, *COMPACT), monkeypatch, 1)
    kept = {client: private(client).latest(CODEC, 2) for client in COHORT}
    found = {client: state[1].dense for client, state in kept.items() if state is not None and state[0] == 1}
    assert sorted(found) == COHORT
    assert all(any(bool(t.any()) for t in state.values()) for state in found.values())
    assert len({encode_adapter(LoraAdapter({}, state)) for state in found.values()}) == len(COHORT)
    assert {staged.plan.round_index} == {2}


def test_what_was_left_out_is_what_the_server_did_not_get(tmp_path, monkeypatch):
    ends = []
    staged = stage_round(tmp_path / "store", *THREE, ONE_RANK, *COMPACT)
    prepare = Uplink.prepare

    def noted(uplink, update, start, **how):
        ends.append(update)
        return prepare(uplink, update, start, **how)

    monkeypatch.setattr(Uplink, "prepare", noted)
    staged.train("c00")
    kept, arrived = private("c00").latest(CODEC, 2), staged.update("c00")
    assert kept is not None
    for path, pair in ends[0].pairs.items():
        state = sorted(kept[1].dense.items())
        missing = [pair.a - arrived.pairs[path].a, pair.b - arrived.pairs[path].b]
        assert all(any(t.shape == m.shape and (t - m).abs().max() < 1e-7 for _, t in state) for m in missing)


def test_an_attempt_made_again_sends_the_same_bytes(tmp_path, monkeypatch):
    staged = rounds_of(stage_round(tmp_path / "store", *THREE, *COMPACT), monkeypatch, 2)
    staged.train("c00")
    staged.train("c00", attempt=2)
    assert sent(staged, "c00") == sent(staged, "c00", 2)
    without = staged.copy(tmp_path / "without")
    private("c00").forget()
    without.train("c00", attempt=3)
    assert sent(without, "c00", 3) != sent(staged, "c00"), "what it keeps counts"


def test_factors_that_take_turns_keep_what_each_left_out(tmp_path, monkeypatch):
    staged = stage_round(tmp_path / "store", *THREE, ONE_RANK, *THIN["alternating"], *COMPACT)
    third = rounds_of(staged, monkeypatch, 2)
    kept = private("c00").latest(CODEC, 3)
    assert kept is not None
    assert {key.rpartition("::")[2] for key in kept[1].dense if "::" in key} == {"lora_A", "lora_B"}
    third.train("c00")
    assert sorted(third.look().accepted) == ["c00"]


def test_a_lower_rank_starts_with_nothing_left_out(tmp_path, monkeypatch):
    """The cut behind it turns every slot into another one, for those who keep their rank as well."""
    staged = stage_round(tmp_path / "store", *THREE, *COMPACT)
    staged.train("c00", "c01")
    with monkeypatch.context() as full:
        starve(full)
        staged.train("c02")
    after = closed(staged, monkeypatch)
    assert after.plan.cuts
    after.train(*COHORT)
    fresh = after.copy(tmp_path / "fresh")
    for client in COHORT:
        private(client).forget()
    fresh.train(*COHORT, attempt=2)
    for client in COHORT:
        assert sent(after, client) == sent(fresh, client, 2)
    assert sorted(after.look().accepted) == COHORT


def assert_memory_is_void(staged: Staged, folder, *clients: str) -> None:
    """What clients send is what they would send had they kept nothing."""
    staged.train(*clients)
    fresh = staged.copy(folder)
    for client in clients:
        assert private(client).latest(CODEC, staged.plan.round_index) is not None
        private(client).forget()
    fresh.train(*clients, attempt=2)
    for client in clients:
        assert sent(staged, client) == sent(fresh, client, 2)


@pytest.mark.parametrize("is_away", [1, 2])
def test_a_client_that_was_away_for_a_cut_starts_with_nothing_left_out(tmp_path, monkeypatch, is_away):
    """It keeps its rank, so that shapes do not tell."""
    staged = stage_round(tmp_path / "store", *THREE, *COMPACT)
    staged.train("c00", "c01")
    with monkeypatch.context() as full:
        starve(full)
        staged.train("c02")
    cut = closed(staged, monkeypatch)
    assert cut.plan.cuts
    later, rank = cut, cut.initial.ranks["c01"]
    for _ in range(is_away):
        later.train("c00", "c02")
        later = closed(later, monkeypatch)
        assert not later.plan.cuts
    assert later.initial.ranks["c01"] == rank
    assert_memory_is_void(later, tmp_path / "fresh", "c01")


@pytest.mark.parametrize("method", ["flexlora", "flora_stack"])
def test_where_slots_are_made_anew_nothing_is_left_out_for_them(tmp_path, monkeypatch, method):
    staged = stage_round(tmp_path / "store", *THREE, COMPACT[0], f"aggregation.name={method}")
    assert_memory_is_void(rounds_of(staged, monkeypatch, 1), tmp_path / "fresh", *COHORT)


# --- bytes ----------------------------------------------------------------------------------------------------


def width(staged: Staged, client: str, side: str) -> int:
    """Sum over modules of r d_in, r d_out or r^2, by the method notes' table."""
    ranks, shapes = staged.bench.module_ranks(staged.initial.ranks[client]), staged.bench.module_shapes
    each = {"in": lambda r, o, i: r * i, "out": lambda r, o, i: r * o, "core": lambda r, o, i: r * r}[side]
    return sum(each(rank, *shapes[path]) for path, rank in ranks.items())


TABLE = {  # method -> what is sent in an odd round, and in an even one
    "ffa": (["out"], ["out"]),
    "local ffa": (["out"], ["out"]),
    "fedsa": (["in"], ["in"]),
    "fed_sb": (["core"], ["core"]),
    "rbla": (["in", "out"], ["in", "out"]),
    "flora_stack": (["in", "out"], ["in", "out"]),
    "alternating": (["out"], ["in"]),
}


@pytest.mark.parametrize("method", TABLE)
def test_messages_in_32_bits_are_as_long_as_the_table_says(tmp_path, monkeypatch, method):
    staged = stage_round(tmp_path / "store", *THREE, *THIN.get(method, ()))
    for sides in TABLE[method]:
        staged.train(*COHORT)
        for client in COHORT:
            values = sum(width(staged, client, side) for side in sides) + staged.bench.dense_parameters
            data = sent(staged, client)
            assert payload(data) == 4 * values
            assert booked(staged, client, "update", "uplink") == len(data) == header(data) + 4 * values
        staged = closed(staged, monkeypatch)


def header(data: bytes) -> int:
    return 8 + struct.unpack("<Q", data[:8])[0]


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_messages_on_a_grid_are_no_longer_than_the_table_says(tmp_path, monkeypatch, bits):
    """P b / 8, and a 16-bit step for each row of a and column of b; the envelope and each dense tensor's step apart."""
    staged = stage_round(
        tmp_path / "store", *THREE, *COMPACT, f"exchange.uplink_options=[{{name: bits, value: {bits}}}]"
    )
    staged.train(*COHORT)
    for client in COHORT:
        ranks = staged.bench.module_ranks(staged.initial.ranks[client])
        steps = 2 * 2 * sum(ranks.values())
        table = staged.bench.values(staged.initial.ranks[client]) * bits / 8 + steps
        assert 0.3 * table < booked(staged, client, "update", "uplink") <= table + 120


def test_round_and_bytes_are_those_of_the_runs_records(tmp_path, monkeypatch):
    staged = rounds_of(stage_round(tmp_path / "store", *THREE, *COMPACT), monkeypatch, 2)
    lying = sum(f.size for k in (1, 2) for f in staged.store.list(RoundKeys(RUN_ID, k).uplinks))
    assert staged.initial.totals["uplink_bytes"] == lying
    assert read_adapter(staged.store, RUN_ID, staged.initial.models[GLOBAL]).pairs

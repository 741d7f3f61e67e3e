"""Records and adapters of a run: written once, read with suspicion."""

import msgspec
import pytest

from infra.object_store import open_store
from infra.run_store import (
    CONFIG,
    WEIGHTS,
    commit_record,
    find_record,
    list_run_ids,
    quarantine,
    read_adapter,
    read_adapter_files,
    read_records,
    read_run,
    write_adapter,
)
from tasks.errors import IntegrityError, ObjectNotFoundError, RecordFormatError, RunNotFoundError
from tasks.rounds import keys
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import GlobalModel, RoundRecord, RunSpec, encode, sha256
from tests.flows.staged import bench_of

DIGEST = "a" * 64
SPEC = RunSpec(run_id="run-1", config={"name": "x"}, base_digest=DIGEST, code_version="0", created_at="now")


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def chain(store):
    """Three records, each naming the one before."""
    records = []
    for index in range(3):
        record = RoundRecord(
            run_id="run-1",
            round_index=index,
            outcome="committed" if index else "initial",
            models={"global": GlobalModel(sha256=DIGEST, round_index=index)},
            previous_sha256=sha256(encode(records[-1])) if records else "",
            ranks={"c00": 2},
        )
        records.append(commit_record(store, RoundKeys("run-1", index).record, record))
    return records


@pytest.fixture
def written(store):
    """A real adapter as round 0, and how records name it."""
    bench = bench_of()
    adapter = bench.initial_adapter()
    return adapter, write_adapter(store, RoundKeys("run-1", 0), adapter, bench.peft_config(adapter))


def test_a_record_that_is_there_holds_against_a_later_one(store):
    key = keys.run_spec("run-1")
    later = msgspec.structs.replace(SPEC, created_at="later")
    assert commit_record(store, key, SPEC) == SPEC
    assert commit_record(store, key, later) == SPEC
    assert store.get(key) == encode(SPEC)


def test_a_record_is_not_adopted_when_it_is_none(store):
    store.put(keys.run_spec("run-1"), b"{}")
    with pytest.raises(RecordFormatError, match=r"runs/run-1/run\.json: is not a RunSpec"):
        commit_record(store, keys.run_spec("run-1"), SPEC)


def test_no_record_is_none_and_no_run_is_named(store):
    assert find_record(store, keys.run_spec("run-1"), RunSpec) is None
    with pytest.raises(RunNotFoundError, match="run 'run-1'"):
        read_run(store, "run-1")


def test_a_run_is_read_as_it_was_written(store):
    commit_record(store, keys.run_spec("run-1"), SPEC)
    assert read_run(store, "run-1") == SPEC


def test_records_are_read_in_the_order_of_rounds(store, chain):
    assert read_records(store, "run-1") == chain


def test_records_end_at_the_first_gap(store, chain):
    store.delete(RoundKeys("run-1", 1).record)
    assert read_records(store, "run-1") == chain[:1]


@pytest.mark.parametrize("index", [0, 1])
def test_an_altered_record_is_noticed_by_the_one_after_it(store, chain, index):
    key = RoundKeys("run-1", index).record
    store.put(key, store.get(key).replace(b'"c00":2', b'"c00":8'))
    with pytest.raises(IntegrityError, match=rf"rounds/00000{index + 1}/record\.json: does not continue"):
        read_records(store, "run-1")


def test_a_first_record_that_continues_another_is_refused(store, chain):
    store.put(RoundKeys("run-1", 0).record, encode(chain[1]))
    with pytest.raises(IntegrityError, match=r"rounds/000000/record\.json: does not continue"):
        read_records(store, "run-1")


def test_an_adapter_is_read_as_it_was_written(store, written):
    adapter, model = written
    read = read_adapter(store, "run-1", model)
    assert read.ranks == adapter.ranks
    for path, pair in adapter.pairs.items():
        assert read.pairs[path].a.equal(pair.a)
        assert read.pairs[path].b.equal(pair.b)


def test_writing_an_adapter_again_changes_nothing(store, written):
    adapter, model = written
    assert write_adapter(store, RoundKeys("run-1", 0), adapter, bench_of().peft_config(adapter)) == model


def test_altered_weights_are_refused(store, written):
    key = RoundKeys("run-1", 0).adapter(WEIGHTS)
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors: bytes were altered"):
        read_adapter_files(store, "run-1", written[1])


def test_a_folder_without_its_config_is_not_read(store, written):
    store.delete(RoundKeys("run-1", 0).adapter(CONFIG))
    with pytest.raises(ObjectNotFoundError, match=r"adapter_config\.json"):
        read_adapter_files(store, "run-1", written[1])


def test_only_described_runs_are_listed(store):
    for run_id in ("run-2", "run-1"):
        commit_record(store, keys.run_spec(run_id), msgspec.structs.replace(SPEC, run_id=run_id))
    strays = ("runs/run.json", "runs/run-3/run.json/x", "runs/run-4/rounds/000000/run.json", "other/run-5/run.json")
    for key in strays:
        store.put(key, b"{}")
    quarantine(store, RoundKeys("run-6", 1).quarantine("c00", 1), "late", "too late")
    assert list_run_ids(store) == ["run-1", "run-2"]

"""What cannot be shared out is refused by name: the field, what was got, what to do."""

import numpy as np
import pytest

from tasks.data.partitions import PARTITIONS, PartitionSpec, partition
from tasks.errors import DataError, UnknownNameError

LABELS = np.arange(40) % 4
SITES = {"site": ["north", "south"] * 20}


def refused(spec, *, labels=LABELS, columns=SITES, seed=0):
    with pytest.raises(DataError) as caught:
        partition(spec, labels=labels, columns=columns, seed=seed)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_unknown_partition_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"data\.partition 'dirichlett'") as caught:
        partition(PartitionSpec("dirichlett", 2), labels=LABELS, columns={}, seed=0)
    assert all(name in str(caught.value) for name in PARTITIONS)


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("data.partition.num_clients", PartitionSpec("iid", 0)),
        ("data.partition.num_clients", PartitionSpec("natural", -1, column="site")),
        ("data.partition.num_clients", PartitionSpec("iid", 41)),
        ("data.partition.num_clients", PartitionSpec("iid", 5, min_examples=9)),
        ("data.partition.num_clients", PartitionSpec("natural", 3, column="site")),
        ("data.partition.min_examples", PartitionSpec("iid", 4, min_examples=0)),
        ("data.partition.alpha", PartitionSpec("dirichlet", 4, alpha=0.0)),
        ("data.partition.alpha", PartitionSpec("dirichlet", 4, alpha=float("nan"))),
        ("data.partition.alpha", PartitionSpec("dirichlet", 4, alpha=float("inf"))),
        ("data.partition.labels_per_client", PartitionSpec("pathological", 4, labels_per_client=5)),
        ("data.partition.labels_per_client", PartitionSpec("pathological", 4, labels_per_client=0)),
        ("data.partition.shards_per_client", PartitionSpec("shards", 4, shards_per_client=0)),
        ("data.partition.shards_per_client", PartitionSpec("shards", 4, shards_per_client=11)),
        ("data.partition.column", PartitionSpec("natural", 2, column="speaker")),
        ("data.partition", PartitionSpec("staircase", 11)),
        ("data.partition", PartitionSpec("pathological", 40, labels_per_client=2)),
    ],
)
def test_bad_request_names_its_field(field, spec):
    message = refused(spec)
    assert message.startswith(f"{field}: ")
    assert "got" in message
    assert "expected" in message


def test_dirichlet_that_cannot_fill_every_client_says_what_to_change():
    message = refused(PartitionSpec("dirichlet", 20, alpha=0.001), labels=np.zeros(40, dtype=int))
    assert message.startswith("data.partition: dirichlet left a client with fewer than 1 examples")
    assert "data.partition.alpha 0.001, data.partition.num_clients 20" in message
    assert "raise data.partition.alpha" in message


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "shards", "staircase"])
def test_partition_by_label_needs_labels(name):
    message = refused(PartitionSpec(name, 2), labels=None)
    assert message.startswith(f"data.partition: {name} shares out by label")
    assert "data.columns.label" in message


def test_natural_refuses_a_row_without_value():
    columns = {"site": ["north", None, "south", ""]}
    message = refused(PartitionSpec("natural", 0, column="site"), labels=None, columns=columns)
    assert message.startswith("data.partition.column: row 1 of column 'site' has no value")


def test_natural_refuses_values_that_name_nobody():
    columns = {"score": [0.5, 1.5, 0.5]}
    message = refused(PartitionSpec("natural", 0, column="score"), labels=None, columns=columns)
    assert message.startswith("data.partition.column: ")
    assert "texts or whole numbers" in message


def test_natural_with_too_small_clients_names_the_smallest():
    columns = {"site": ["north"] * 9 + ["south"]}
    message = refused(PartitionSpec("natural", 0, column="site", min_examples=2), labels=None, columns=columns)
    assert message.startswith("data.partition: natural over 2 clients gives client c01 too little")
    assert "1 examples" in message


def test_partition_without_anything_to_count_asks_for_a_number():
    message = refused(PartitionSpec("iid", 2), labels=None, columns={})
    assert message.startswith("data.partition: ")
    parts = partition(PartitionSpec("iid", 2), labels=None, columns={}, seed=0, num_examples=9).indices
    assert sorted(np.concatenate(list(parts.values()))) == list(range(9))


def test_partition_refuses_columns_of_another_length():
    message = refused(PartitionSpec("iid", 2), labels=np.zeros(3, dtype=int))
    assert "got [3, 40]" in message

"""Ranks by client and round: what was planned, what came back lower, and who took no part."""

import numpy as np
import pytest

from tasks.evaluation.rank_picture import RankTable, rank_picture, rank_table
from tasks.rounds.records import Acceptance, Collection, RoundRecord

DIGEST = "0" * 64


def acceptance(client, rank):
    return Acceptance(
        client_id=client,
        attempt=1,
        rank=rank,
        manifest_sha256=DIGEST,
        update_sha256=DIGEST,
        num_examples=1,
        update_norm=1.0,
        training_s=1.0,
        metrics={},
    )


def record(index, ranks, **came):
    collection = Collection(
        accepted=tuple(acceptance(client, rank) for client, rank in came.items()), refused=(), missing=(), ledger=()
    )
    return RoundRecord(
        run_id="r", round_index=index, outcome="committed", models={}, ranks=ranks, collection=collection
    )


RECORDS = [
    record(0, {"c1": 8, "c0": 4}),
    record(1, {"c0": 4, "c1": 4}, c0=4, c1=6),
    record(2, {"c0": 2, "c1": 2}, c1=4),
]


def test_a_round_shows_the_ranks_it_was_planned_with_or_what_came_back():
    table = rank_table(RECORDS)
    assert table.clients == ("c0", "c1")
    assert table.rounds == (1, 2)
    assert table.ranks.tolist() == [[4, 4], [6, 4]]
    assert table.took_part.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 60), (40, 5)])
def test_any_number_of_clients_and_rounds_is_drawn_the_same_twice(shape):
    ranks = 1 + np.arange(shape[0] * shape[1]).reshape(shape) % 7
    clients = tuple(f"c{i:02d}" for i in range(shape[0]))
    table = RankTable(clients, tuple(range(1, shape[1] + 1)), ranks, ranks % 2 == 0)
    drawn = rank_picture(table)
    assert drawn.startswith(b"\x89PNG")
    assert drawn == rank_picture(table)


def test_the_picture_tells_ranks_and_absence_apart():
    table = rank_table(RECORDS)
    other = RankTable(table.clients, table.rounds, table.ranks[::-1], table.took_part)
    absent = RankTable(table.clients, table.rounds, table.ranks, ~table.took_part)
    assert len({rank_picture(table), rank_picture(other), rank_picture(absent)}) == 3

"""What a round's models say together: one model speaks for itself, clusters by the examples behind them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.rounds.keys import GLOBAL
from tasks.rounds.records import Acceptance, Collection, GlobalModel
from tasks.rounds.steps import Candidate, Group, Judged, one_group, overall, with_version

DIGEST = "0" * 64


def acceptance(client, num_examples):
    return Acceptance(
        client_id=client,
        attempt=1,
        rank=4,
        manifest_sha256=DIGEST,
        update_sha256=DIGEST,
        num_examples=num_examples,
        update_norm=1.0,
        training_s=1.0,
        metrics={},
    )


def judged(model, examples, metrics, figures=(), version=1):
    accepted = tuple(acceptance(f"c{number:02d}", n) for number, n in enumerate(examples))
    group, adapter = Group(model, model, accepted), GlobalModel(sha256=DIGEST, round_index=3, folder=model)
    return Judged(Candidate(group, adapter, {}, 0.1, dict(figures), {}), metrics, version)


def test_figures_of_a_single_model_pass_through():
    one = judged(GLOBAL, [3, 5], {"accuracy": 0.25, "loss": 1.5}, {"aggregation_s": 0.125})
    assert overall([one]) == {"accuracy": 0.25, "loss": 1.5, "aggregation_s": 0.125}


def test_clusters_give_the_mean_by_examples_and_their_own_figures():
    small = judged("cluster-1", [10, 20], {"accuracy": 0.5}, {"coverage": 1.0})
    large = judged("cluster-2", [90], {"accuracy": 0.9}, {"coverage": 0.2})
    assert overall([small, large]) == {
        "clusters": 2.0,
        "accuracy": pytest.approx((30 * 0.5 + 90 * 0.9) / 120),
        "accuracy_cluster_1": 0.5,
        "accuracy_cluster_2": 0.9,
        "coverage": pytest.approx((30 * 1.0 + 90 * 0.2) / 120),
        "coverage_cluster_1": 1.0,
        "coverage_cluster_2": 0.2,
    }


def test_one_cluster_alone_is_still_named():
    figures = overall([judged("cluster-3", [7], {"loss": 2.0})])
    assert figures == {"clusters": 1.0, "loss": 2.0, "loss_cluster_3": 2.0}


def test_a_figure_that_one_cluster_lacks_is_the_others_mean():
    """A diverged cluster's perplexity is no number and is left out; it must not count as zero."""
    known = [judged("cluster-1", [10], {"loss": 1.0, "perplexity": 3.0}), judged("cluster-2", [30], {"loss": 2.0})]
    figures = overall(known)
    assert figures["perplexity"] == figures["perplexity_cluster_1"] == 3.0
    assert "perplexity_cluster_2" not in figures
    assert figures["loss"] == pytest.approx(1.75)


def test_the_evaluation_wins_over_a_figure_of_the_aggregation_with_its_name():
    assert overall([judged(GLOBAL, [1], {"loss": 1.0}, {"loss": 9.0})]) == {"loss": 1.0}


clusters = st.lists(
    st.tuples(st.lists(st.integers(1, 1000), min_size=1, max_size=4), st.floats(0.0, 1.0)), min_size=1, max_size=5
)


@given(clusters)
def test_mean_lies_between_the_clusters_and_their_order_does_not_matter(parts):
    models = [judged(f"cluster-{i + 1}", sizes, {"accuracy": value}) for i, (sizes, value) in enumerate(parts)]
    figures, values = overall(models), [value for _, value in parts]
    assert min(values) - 1e-9 <= figures["accuracy"] <= max(values) + 1e-9
    assert figures["clusters"] == len(parts)
    assert {name: figures[name] for name in sorted(figures)} == pytest.approx(overall(models[::-1]))


def test_all_updates_are_one_group_without_labels():
    accepted = (acceptance("c00", 1), acceptance("c01", 2))
    grouping = one_group(Collection(accepted=accepted, refused=(), missing=("c02",), ledger=()))
    assert grouping.groups == (Group(GLOBAL, GLOBAL, accepted),)
    assert grouping.labels == {}


def test_a_published_adapter_carries_its_version_and_nothing_else_changes():
    one = judged("cluster-2", [1], {}, version=7)
    before = one.candidate.adapter
    assert with_version(one) == GlobalModel(sha256=DIGEST, round_index=3, folder="cluster-2", version=7)
    assert before.version == 0

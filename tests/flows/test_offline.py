"""Weaving and resizing PEFT folders from the command line: worked numbers, ranks, robust rules, refusals."""

import json
import math

import numpy as np
import pytest
import torch

from tasks.adapters.core import frozen_b
from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.peft_files import read_adapter, write_adapter
from tasks.adapters.products import dense_product
from tasks.aggregators.robust.table import ROBUST_RULES
from tasks.aggregators.table import AGGREGATORS
from tests.flows.terminal import call
from tests.oracles.raflora import raflora_canonical

BASE = {
    "base_model_name_or_path": "base",
    "peft_type": "LORA",
    "task_type": None,
    "target_modules": ["fc"],
    "bias": "none",
}
# Fixture F1 of the method notes, clients counting 1 and 3: of ranks 1 and 2; cut to rank 1; on the rows of one a.
MIXED = (([[1, 2]], [[3], [4]]), ([[5, 6], [7, 8]], [[1, 0], [0, 2]]))
LEVEL = (([[1, 2]], [[3], [4]]), ([[5, 6]], [[1], [0]]))
SHARED = (([[1, 2]], [[3], [4]]), ([[1, 2], [3, 4]], [[1, 0], [0, 2]]))
# Cores 8 and (4 1, 2 3) between one a and the frozen matrix that belongs to it.
B0 = frozen_b(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 2)
CORES = (
    ([[1, 2]], (8 * B0[:, :1]).tolist()),
    ([[1, 2], [3, 4]], (B0 @ torch.tensor([[4.0, 1], [2, 3]]).double()).tolist()),
)
MEAN = [[4.5, 6], [11.5, 14]]
P1, P2 = 0.330487, 0.669513  # HetLoRA's shares: norms 11.180340 and 22.649503 of the two products
WORKED = {  # method -> clients, rank of the result, its product
    "fedavg": (LEVEL, 1, [[6, 7.5], [4, 5]]),  # (3/2, 1) x (4, 5)
    "fedex": (LEVEL, 2, [[4.5, 6], [1, 2]]),  # 1/4 (3, 4) x (1, 2) + 3/4 (1, 0) x (5, 6)
    "rbla": (MIXED, 2, [[6, 7.5], [18, 21]]),
    "zero_pad": (MIXED, 2, [[6, 7.5], [11.875, 14]]),
    "hetlora": (
        MIXED,
        2,
        np.outer([3 * P1 + P2, 4 * P1], [P1 + 5 * P2, 2 * P1 + 6 * P2]) + P2**2 * np.outer([0, 2], [7, 8]),
    ),
    "ffa": (SHARED, 2, [[1.5, 3], [5.5, 8]]),  # 1/4 (3, 4) x (1, 2) + 3/4 (1 2, 6 8)
    "fedsa": (MIXED, 2, [[0, 0], [0, 0]]),
    # 1/4 8 + 3/4 4 = 5 where both are, and (5 1, 2 3) (1 2, 3 4)
    "fed_sb": (CORES, 2, (B0 @ torch.tensor([[8.0, 14], [11, 16]]).double()).tolist()),
    "flexlora": (MIXED, 2, MEAN),
    "raflora": (MIXED, 2, [[4.5, 6], [15, 18]]),
    "raflora_canonical": (
        MIXED,
        2,
        raflora_canonical([([[1, 2]], [[3], [4]], 1), ([[5, 6], [7, 8]], [[1, 0], [0, 2]], 1)], [1, 3]),
    ),
    "delta_svd": (MIXED, 2, MEAN),
    "flora_stack": (MIXED, 3, MEAN),
}
# fedsa's product says nothing, and hetlora's own weights undo a rule that acts by weights.
HEED_WEIGHTS = [name for name, row in AGGREGATORS.items() if row.sends != "a" and row.weighs_by_examples]
RANK_ONE = [[4.719669, 5.821921], [11.409129, 14.073667]]  # FlexLoRA's, at an error of 0.306024


def folder(path, a, b, **changes):
    pair = LoraPair(torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))
    write_adapter(path, LoraAdapter({"fc": pair}), BASE | changes)
    return path


def pair_in(path):
    return read_adapter(path).adapter.pairs["fc"]


def product_in(path):
    return dense_product(pair_in(path)).float()


def assert_product(path, expected):
    torch.testing.assert_close(product_in(path), torch.as_tensor(expected).float(), rtol=1e-5, atol=1e-5)


@pytest.fixture
def rankweave(monkeypatch, capsys):
    return lambda *words: call(monkeypatch, capsys, *words)


@pytest.fixture
def weave(rankweave, tmp_path):
    """Aggregate clients that count 1 and 3 into the folder `out`, and return what was printed as JSON."""

    def run(clients, *words, out="out"):
        paths = [folder(tmp_path / f"{out}-client-{k}", *client) for k, client in enumerate(clients)]
        weighed = [f"{path}={weight}" for path, weight in zip(paths, (1, 3), strict=True)]
        code, text, err = rankweave("aggregate", "--out", tmp_path / out, *words, *weighed, "--json")
        return code, json.loads(text), err

    return run


def test_every_method_has_worked_numbers():
    assert set(WORKED) == set(AGGREGATORS)


@pytest.mark.parametrize("method", WORKED)
def test_a_method_gives_its_worked_numbers_at_its_rank(weave, tmp_path, method):
    clients, rank, product = WORKED[method]
    code, result, _ = weave(clients, "--method", method)
    assert (code, result["max_rank"], result["notes"]) == (0, rank, {})
    assert_product(tmp_path / "out", product)
    config = read_adapter(tmp_path / "out").config
    assert (config["base_model_name_or_path"], config["lora_alpha"], config["r"]) == ("base", rank, rank)


def test_fedsa_gives_the_shared_a_and_says_where_b_is(rankweave, weave, tmp_path):
    weave(MIXED, "--method", "fedsa")
    torch.testing.assert_close(pair_in(tmp_path / "out").a, torch.tensor([[4.0, 5.0], [7.0, 8.0]]))
    _, text, _ = rankweave(
        "aggregate", "--method", "fedsa", "--out", tmp_path / "again", f"{tmp_path / 'out-client-0'}=1"
    )
    assert "factor b stays with each adapter" in text


def test_ffa_keeps_the_shared_a_to_the_bit(weave, tmp_path):
    weave(SHARED, "--method", "ffa")
    assert pair_in(tmp_path / "out").a.tolist() == SHARED[1][0]


def test_scalings_of_the_folders_count(rankweave, weave, tmp_path):
    weave(MIXED, "--method", "flexlora")
    paths = [tmp_path / f"out-client-{k}" for k in (0, 1)]
    for path, scale in zip(paths, (2.0, 0.5), strict=True):
        file = path / "adapter_config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"lora_alpha": scale * config["r"]}))
    words = ("--method", "flexlora", "--out", tmp_path / "scaled", f"{paths[0]}=1", f"{paths[1]}=3")
    assert rankweave("aggregate", *words)[0] == 0
    assert_product(tmp_path / "scaled", [[3.375, 5.25], [7.25, 10]])


@pytest.mark.parametrize(
    ("words", "rank", "product"),
    [
        ("raflora --option coverage_exponent=0", 2, MEAN),
        ("raflora_canonical --option coverage_exponent=0", 2, MEAN),
        ("zero_pad --option coverage_exponent=1", 2, WORKED["rbla"][2]),
        ("flexlora --option energy=0.99", 1, RANK_ONE),  # 19.606283^2 is 0.99976 of the energy
        ("flexlora --option energy=0.9999", 2, MEAN),
        ("raflora --option coverage_exponent=0 --option energy=0.99", 1, RANK_ONE),
        ("flora_stack --option recompress_rank=1", 1, RANK_ONE),
        ("flexlora --rank 1", 1, RANK_ONE),
        ("flora_stack --rank 1", 1, RANK_ONE),
        ("flexlora --rank 5", 5, MEAN),
    ],
)
def test_options_and_ranks_reach_the_method(weave, tmp_path, words, rank, product):
    code, result, _ = weave(MIXED, "--method", *words.split())
    assert (code, result["max_rank"]) == (0, rank)
    assert_product(tmp_path / "out", product)


def test_aggregate_and_resize_cut_alike(rankweave, weave, tmp_path):
    weave(MIXED, "--method", "rbla", "--rank", 1, out="at-once")
    weave(MIXED, "--method", "rbla", out="whole")
    assert rankweave("resize", tmp_path / "whole", "--rank", 1, "--out", tmp_path / "later")[0] == 0
    left, sigma, right = torch.linalg.svd(torch.tensor([[6, 7.5], [18, 21]]))
    for name in ("at-once", "later"):
        assert_product(tmp_path / name, sigma[0] * torch.outer(left[:, 0], right[0]))


@pytest.mark.parametrize("method", AGGREGATORS)
def test_one_adapter_comes_back(rankweave, tmp_path, method):
    mine = folder(tmp_path / "mine", *MIXED[1])
    assert rankweave("aggregate", "--method", method, "--out", tmp_path / "same", f"{mine}=7")[0] == 0
    if AGGREGATORS[method].sends == "a":
        torch.testing.assert_close(pair_in(tmp_path / "same").a, pair_in(mine).a)
    else:
        assert_product(tmp_path / "same", product_in(mine))


@pytest.fixture
def crowd(tmp_path):
    """Five clients on a small circle around (3, 4) x (1, 2), and one that is a thousand times as large.

    Their b are square, so that each is a core's as well.
    """
    angles = [2 * math.pi * k / 5 for k in range(5)]
    around = [[[3 + 0.1 * math.cos(angle), 0], [4 + 0.1 * math.sin(angle), 0]] for angle in angles]
    a = [[1, 2], [2, -1]]
    near = [folder(tmp_path / f"near-{k}", a, b) for k, b in enumerate(around)]
    return [*near, folder(tmp_path / "scaled", a, [[3000, 0], [-4000, 0]])]


@pytest.mark.parametrize("method", HEED_WEIGHTS)
def test_a_robust_rule_holds_a_scaled_client_off_and_names_it(rankweave, tmp_path, crowd, method):
    words = ["--method", method, *(f"{path}=2" for path in crowd)]
    robust = ("--robust", "geometric_median", "--robust-option", "iterations=200")
    code, out, _ = rankweave("aggregate", *words, *robust, "--out", tmp_path / "guarded", "--json")
    assert code == 0
    notes = json.loads(out)["notes"]
    assert list(notes) == [str(crowd[-1])]
    assert notes[str(crowd[-1])].startswith("counts for ")
    honest = torch.tensor([[3.0, 6.0], [4.0, 8.0]])
    assert (product_in(tmp_path / "guarded") - honest).abs().max() < 1
    rankweave("aggregate", *words, "--out", tmp_path / "plain")
    assert (product_in(tmp_path / "plain") - honest).abs().max() > 100


def test_notes_of_a_robust_rule_are_printed_under_the_result(rankweave, tmp_path, crowd):
    words = ("--method", "flexlora", "--robust", "norm_clip", "--out", tmp_path / "out", *(f"{p}=2" for p in crowd))
    code, text, _ = rankweave("aggregate", *words)
    first, *notes = text.splitlines()
    assert code == 0
    assert first == f"flexlora of 6 adapters: 1 modules, rank 2, written to {tmp_path / 'out'}"
    assert [note.split(":")[0] for note in notes] == [f"  {crowd[-1]}"]


@pytest.mark.parametrize("rule", ROBUST_RULES)
def test_every_robust_rule_runs_offline(rankweave, tmp_path, crowd, rule):
    words = ("--method", "flexlora", "--robust", rule, "--out", tmp_path / "out", *(f"{path}=2" for path in crowd))
    assert rankweave("aggregate", *words)[0] == 0
    assert product_in(tmp_path / "out").isfinite().all()


RBLA = ("--method", "rbla")
FLEXLORA = ("--method", "flexlora", "{one}=1", "{two}=3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "rbal", "{one}=1"), "aggregator 'rbal': unknown name; expected one of"),
        ((*RBLA, "{one}"), "has no usable weight; expected DIR=NUM_EXAMPLES"),
        ((*RBLA, "{one}=0"), "has no usable weight"),
        ((*RBLA, "{one}=nan"), "has no usable weight"),
        ((*RBLA, "{one}=1", "{one}=2"), "the same folder is given twice"),
        ((*RBLA, "{one}=1", "{other}=3"), "base_model_name_or_path is not that of"),
        ((*RBLA, "{missing}=1"), "missing"),
        (
            ("--method", "fedavg", "{one}=1", "{two}=3"),
            "module fc: fedavg cannot average clients of different ranks; got ranks 1, 2; expected one rank for all "
            "clients; aggregate with rbla or zero_pad, or give every client the same rank",
        ),
        (
            ("--method", "fedex", "{one}=1", "{two}=3"),
            "a client that holds fewer slots would see the residual without the product it completes; got ranks 1, 2; "
            "expected one rank for all clients; aggregate with raflora or flora_stack, or give every client",
        ),
        (
            ("--method", "ffa", "{one}=1", "{two}=3"),
            "its factor a is not the one that the clients before it share; got 1 of the 1 shared rows differ; expected "
            "the same frozen a, or its first rows, at every client; train b alone on the a that the server sent",
        ),
        ((*FLEXLORA, "--option", "enrgy=0.9"), "option of flexlora 'enrgy': unknown name; expected one of energy"),
        ((*FLEXLORA, "--option", "energy"), "option 'energy': has no number; expected NAME=VALUE, e.g. energy=0.9"),
        ((*FLEXLORA, "--option", "energy=high"), "option 'energy=high': has no number; expected NAME=VALUE"),
        ((*FLEXLORA, "--option", "energy=2"), "option energy of flexlora: has no usable value; got 2.0; expected a"),
        ((*FLEXLORA, "--option", "energy=nan"), "has no usable value; got nan; expected a number from 0.01 to 1"),
        ((*FLEXLORA, "--option", "energy=0.9", "--option", "energy=0.5"), "energy is given twice; give every option"),
        ((*FLEXLORA, "--robust", "median"), "robust rule 'median': unknown name; expected one of"),
        ((*FLEXLORA, "--robust", "krum"), "num_attackers 1 need a larger cohort; got 2 updates; expected 5 or more"),
        ((*FLEXLORA, "--robust-option", "factor=2"), "--robust-option: there is no robust rule to take it; name one"),
        ((*FLEXLORA, "--robust", "krum", "--robust-option", "factor=2"), "option of krum 'factor': unknown name"),
        ((*FLEXLORA, "--robust", "krum", "--option", "factor=2"), "option of flexlora 'factor': unknown name"),
        (
            ("--method", "ffa", "{one}=1", "--robust", "coordinate_median"),
            "--robust coordinate_median: coordinate_median makes new factors, and ffa needs the shared one as it is",
        ),
        (
            ("--method", "fedsa", "{one}=1", "--rank", "1"),
            "--rank 1: fedsa gives a factor without a product, and a cut keeps the largest parts of a product; leave",
        ),
    ],
)
def test_bad_aggregations_end_in_one_sentence_and_write_nothing(rankweave, tmp_path, words, message):
    names = {name: tmp_path / name for name in ("one", "two", "other", "missing")}
    for name, client in zip(("one", "two"), MIXED, strict=True):
        folder(names[name], *client)
    folder(names["other"], *MIXED[0], base_model_name_or_path="another")
    code, out, err = rankweave("aggregate", "--out", tmp_path / "out", *(w.format(**names) for w in words), "--json")
    assert (code, json.loads(out)["exit_code"]) == (2, 2)
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_never_overwritten(rankweave, tmp_path):
    one, two = (folder(tmp_path / name, *client) for name, client in zip(("one", "two"), MIXED, strict=True))
    for words in (("resize", one, "--rank", 1, "--out", two), ("aggregate", *RBLA, "--out", two, f"{one}=1")):
        code, _, err = rankweave(*words)
        assert (code, "exists already" in err) == (2, True)
    assert_product(two, [[5, 6], [14, 16]])

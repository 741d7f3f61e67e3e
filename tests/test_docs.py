"""The pages in docs name every method with its options and their defaults, and promise what the tables promise."""

import re
import shlex
from pathlib import Path

import pytest

from configs.loading import load_config
from configs.sections.federation import ExchangeConfig
from tasks.aggregators.surrogates import SURROGATES
from tasks.aggregators.table import AGGREGATORS
from tasks.codecs.table import CODECS
from tasks.cohorts.selections.table import SELECTIONS
from tasks.lazy.table import LAZY_RULES
from tasks.local_methods.table import LOCAL_METHODS
from tasks.options import HasOptions, Option
from tasks.rank_schedulers.table import RANK_SCHEDULERS
from tasks.rounds.ledger import COUNTERFACTUALS

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "ranks-and-training.md").read_text(encoding="utf8")
BYTES = (DOCS / "fewer-bytes.md").read_text(encoding="utf8")
TRUST = (DOCS / "threat-model.md").read_text(encoding="utf8")

CODEC, LAZY, SELECTION, SETTING = "| codec |", "| lazy rule |", "| selection |", "| setting | what"
"""How the tables of methods on the page on bytes begin."""


def section(page: str, head: str) -> list[str]:
    """Return the rows of the table whose first line begins so."""
    lines = page.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(head)) + 2
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
    return lines[start:end]


def names(rows: list[str]) -> list[str]:
    """Return what stands in the first column, without its backticks."""
    return [row.split("|")[1].strip().strip("`") for row in rows]


def shown(option: Option) -> str:
    """Return an option as a table shows it, up to its default; of choices the default comes first."""
    if option.kind == "choice":
        assert option.choices[0] == option.default
        return rf"`{option.name}` \({', '.join(option.choices)}\)"
    return rf"`{option.name}` \({option.default:g}[):]"


@pytest.mark.parametrize("row", [*RANK_SCHEDULERS.values(), *LOCAL_METHODS.values()], ids=lambda row: row.name)
def test_every_row_stands_in_its_table_with_its_options(row):
    lines = [line for line in PAGE.splitlines() if line.startswith(f"| `{row.name}` |")]
    assert any(all(f"`{option.name}`" in line for option in row.options) for line in lines)
    if row.paper:
        assert any(row.paper in line for line in lines)


@pytest.mark.parametrize(
    ("head", "table"),
    [(CODEC, CODECS), (LAZY, LAZY_RULES), (SELECTION, SELECTIONS), (SETTING, {"surrogates": SURROGATES})],
)
def test_a_table_on_bytes_is_the_table_in_the_code(head, table):
    rows = section(BYTES, head)
    assert names(rows) == list(table)
    for name, line in zip(table, rows, strict=True):
        row: HasOptions = table[name]
        for option in row.options:
            assert re.search(shown(option), line), f"{name}: {option.name}"
        told = re.findall(r"`(\w+)` \(", line.split("|")[-5 if head == CODEC else -3])
        assert not set(told) - {option.name for option in row.options}


@pytest.mark.parametrize(("head", "table"), [(LAZY, LAZY_RULES), (SELECTION, SELECTIONS)])
def test_papers_on_bytes_are_those_of_the_rows(head, table):
    for row, line in zip(table.values(), section(BYTES, head), strict=True):
        assert row.paper in line, row.name


@pytest.mark.parametrize("name", CODECS)
def test_codecs_that_send_changes_are_said_to(name):
    line = next(row for row in section(BYTES, CODEC) if row.startswith(f"| `{name}` |"))
    assert line.split("|")[-4].strip() == ("yes" if CODECS[name].needs_reference else "no")


def test_exchanges_of_one_factor_are_on_the_page():
    thin = [name for name, row in AGGREGATORS.items() if row.sends != "both"]
    frozen = [name for name, row in LOCAL_METHODS.items() if row.trains != "both"]
    rows = section(BYTES, "| with | up | down |")
    for kind, found in (("aggregator", thin), ("local method", frozen)):
        for name in found:
            assert any(row.startswith(f"| {kind} `{name}` |") for row in rows), name


def test_lazy_clients_are_promised_where_they_are_allowed():
    allowed = [name for name, row in AGGREGATORS.items() if row.averages == "slots" and row.downlink == "slice"]
    line = next(line for line in BYTES.splitlines() if line.startswith("- **Where.**"))
    assert sorted(re.findall(r"`(\w+)`", line)) == sorted(allowed)


def test_the_switches_and_the_counterfactuals_are_named():
    switches = [f"exchange.{name}" for name in ExchangeConfig.model_fields if not name.endswith("_options")]
    others = ["cohort.selection", "cohort.byte_budget_mb", "dispatch.simulated_loss", "aggregation.surrogates"]
    for name in [*switches, *others, *COUNTERFACTUALS]:
        assert f"`{name}`" in BYTES, name


def test_methods_that_hidden_sums_suffice_for_are_named():
    able = [name for name, row in AGGREGATORS.items() if row.needs == "sums"]
    line = next(line for line in TRUST.splitlines() if line.startswith("- **Methods for which sums suffice**"))
    assert sorted(set(re.findall(r"`(\w+)`", line)) - {"needs", "sums"}) == sorted(able)


def test_the_command_on_bytes_is_one_that_can_be_run():
    command = re.search(r"```\n(rankweave run .*?)```", BYTES, flags=re.S)
    assert command is not None
    _, _, preset, *words = shlex.split(command.group(1).replace("\\\n", ""))
    config = load_config(preset, [word for word in words if word != "--set"])
    assert (config.exchange.uplink_codec, config.cohort.byte_budget_mb) == ("compact", 5)


def test_the_refusal_of_secure_aggregation_has_its_page():
    assert "`privacy.secure_aggregation" in TRUST

"""The README tells the truth: every method, command and table name stands in it, and its commands exist."""

import re
from pathlib import Path

import pytest

import flows.cli
from configs.loading import load_config
from tasks.aggregators.table import AGGREGATORS
from tasks.aggregators.weightings import WEIGHTINGS
from tasks.codecs.table import CODECS
from tasks.cohorts.selections.table import SELECTIONS
from tasks.data.partitions import PARTITIONS
from tasks.lazy.table import LAZY_RULES
from tasks.local_methods.table import LOCAL_METHODS
from tasks.rank_schedulers.table import RANK_SCHEDULERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")
TABLES = (AGGREGATORS, WEIGHTINGS, CODECS, PARTITIONS, LOCAL_METHODS, RANK_SCHEDULERS, LAZY_RULES, SELECTIONS)


@pytest.mark.parametrize("name", [name for table in TABLES for name in table])
def test_every_method_is_named(name):
    assert f"`{name}`" in README


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_aggregator_has_a_row_with_its_paper_and_file(name):
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
    assert AGGREGATORS[name].paper in row
    assert (ROOT / re.search(r"`(tasks/aggregators/\w+\.py)`", row).group(1)).is_file()


def test_every_command_is_in_the_table_and_every_command_in_the_table_exists():
    told = set(re.findall(r"^\| `rankweave (\w+)", README, flags=re.M))
    assert told == set(flows.cli.cli.commands)


def test_make_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf8")
    for target in re.findall(r"\bmake ([a-z0-9-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_the_yaml_example_is_a_valid_config(tmp_path):
    example = re.search(r"```yaml\n(.*?)```", README, flags=re.S).group(1)
    path = tmp_path / "example.yaml"
    path.write_text(example, encoding="utf8")
    assert load_config(str(path)).model.kind == "sequence_classification"


def test_files_and_pictures_that_are_named_exist():
    for name in re.findall(r"\]\((docs/[^)]+)\)|`((?:configs|tests|infra)/[\w./-]+\.\w+)`", README):
        assert (ROOT / next(filter(None, name))).is_file(), name


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_every_page_of_the_docs_is_pointed_to(page):
    assert f"`docs/{page.name}`" in README


def test_readme_is_short():
    assert len(README.splitlines()) <= 250

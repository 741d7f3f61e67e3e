"""The page on ranks and training names every scheduler, every local method and every option of theirs."""

from pathlib import Path

import pytest

from tasks.local_methods.table import LOCAL_METHODS
from tasks.rank_schedulers.table import RANK_SCHEDULERS

PAGE = (Path(__file__).parent.parent / "docs" / "ranks-and-training.md").read_text(encoding="utf8")


@pytest.mark.parametrize("row", [*RANK_SCHEDULERS.values(), *LOCAL_METHODS.values()], ids=lambda row: row.name)
def test_every_row_stands_in_its_table_with_its_options(row):
    lines = [line for line in PAGE.splitlines() if line.startswith(f"| `{row.name}` |")]
    assert any(all(f"`{option.name}`" in line for option in row.options) for line in lines)
    if row.paper:
        assert any(row.paper in line for line in lines)

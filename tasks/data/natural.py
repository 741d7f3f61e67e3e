"""The partition that the data bring along: every distinct value of a column is a client."""

import numpy as np

from tasks.data.deals import Deal, Pool
from tasks.errors import DataError


def natural(pool: Pool, *, num_clients: int, column: str) -> Deal:
    """Make every distinct value of a column a client: a speaker, a site, a domain.

    Args:
        pool: What there is to share out.
        num_clients: Keep the clients with the most rows, ties by value; 0 keeps all.
        column: Name of the column.

    Returns:
        Clients in ascending order of their values, and the values as origins.

    Raises:
        DataError: No such column, a row without a value, or fewer values than clients asked for.
    """
    values = _column_values(pool, column)
    distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    if num_clients > len(distinct):
        raise DataError(
            "data.partition.num_clients",
            f"column {column!r} has fewer distinct values",
            got=num_clients,
            expected=f"at most {len(distinct)}, or 0 for all",
        )
    largest = np.argsort(-counts, kind="stable")[: num_clients or None]
    rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(counts)[:-1])
    kept = np.sort(largest)
    return Deal([rows[value] for value in kept], [str(distinct[value]) for value in kept])


def _column_values(pool: Pool, column: str) -> np.ndarray:
    if column not in pool.columns:
        raise DataError(
            "data.partition.column",
            "no such column to share out by",
            got=repr(column),
            expected=f"one of {', '.join(sorted(pool.columns)) or 'none: these data have no columns'}",
        )
    values = list(pool.columns[column])
    for row, value in enumerate(values):
        if value is None or value == "":
            raise DataError(
                "data.partition.column",
                f"row {row} of column {column!r} has no value",
                remedy="fill in or remove such rows, or name another column",
            )
    kinds = {type(value) for value in values}
    if not kinds <= {str} and any(isinstance(value, list | dict | float) for value in values):
        raise DataError(
            "data.partition.column",
            f"column {column!r} does not name clients",
            got=", ".join(sorted(kind.__name__ for kind in kinds)),
            expected="texts or whole numbers",
        )
    return np.asarray(values)

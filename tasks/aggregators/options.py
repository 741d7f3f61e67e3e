"""Options that several aggregators share: two methods that mean the same by a word have the one option of that word."""

from tasks.options import Option

COVERAGE_EXPONENT = Option(
    name="coverage_exponent",
    description="0 dilutes slots that few clients own as zero-padding does, 1 averages them over their owners only",
    default=1.0,
)
ENERGY = Option(
    name="energy",
    description="drop a module's last slots while the rest holds this share of its energy [fraction]",
    default=1.0,
    least=0.01,
)
BANK_FACTOR = Option(
    name="bank_factor",
    description="slots that the server keeps per module [multiples of the largest client rank]",
    default=2.0,
    least=1.0,
    most=64.0,
    kind="count",
)
RECOMPRESS_RANK = Option(
    name="recompress_rank",
    description="cut each round's stack to this rank by SVD before clients receive it, 0 sends it exact [slots]",
    default=0.0,
    most=4096.0,
    kind="count",
)

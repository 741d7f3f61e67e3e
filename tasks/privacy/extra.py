"""The optional library behind the accountants and the per-example gradients."""

from importlib.util import find_spec

from tasks.errors import ConfigError


def check_installed(subject: str) -> None:
    """Raise unless Opacus can be imported.

    Args:
        subject: What needs it.

    Raises:
        ConfigError: It is not installed.
    """
    if find_spec("opacus") is None:
        raise ConfigError(subject, "needs Opacus, which is not installed", remedy="pip install 'rankweave[privacy]'")

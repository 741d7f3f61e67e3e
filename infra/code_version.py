"""Which code a run was made by."""

import subprocess
from importlib.metadata import version
from pathlib import Path

GIT_S = 5.0


def code_version() -> str:
    """Return Rankweave's version, and the commit where it runs from its own checkout ("0.1.0+g1a2b3c4")."""
    released = version("rankweave")
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # not the checkout of somebody who installed a wheel
        return f"{released}+g{_git('describe', '--always', '--dirty', '--exclude', '*')}"
    except (OSError, subprocess.SubprocessError):
        return released


def _git(*words: str) -> str:
    done = subprocess.run(  # noqa: S603  # fixed words
        ["git", *words],  # noqa: S607  # the user's own git
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=GIT_S,
        check=True,
    )
    return done.stdout.strip()

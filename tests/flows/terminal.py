"""The command line as a user meets it: what it prints, and the code it ends with."""

import sys

import pytest

import flows.cli


def call(monkeypatch, capsys, *words):
    """Run `rankweave WORDS` in this process and return its exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["rankweave", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        flows.cli.main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err

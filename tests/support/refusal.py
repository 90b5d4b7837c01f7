"""How the command line refuses."""

import pytest

from benchmarks import __main__ as cli


def refused(capsys, *words):
    """The one-line message with which the command line is refused."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    assert stop.value.code == 2
    out, said = capsys.readouterr()
    assert out == "" and said.count("\n") == 1, said
    return said

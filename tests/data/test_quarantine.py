"""The list of undecodable samples: a file that a crash may have torn, and that several ranks append to."""

from __future__ import annotations

import numpy as np
import pytest

from fastfgssl.data.quarantine import Quarantine
from fastfgssl.runtime.errors import UserError

WHOLE = "sample,id,reason\n17,a/b.png,truncated\n"


@pytest.mark.parametrize("torn", ["3", '"3', "3,a", '3,"a, b', "\0\0\0", "3,\0", "x,y,z\n", "3\n"])
def test_a_torn_line_names_no_sample(tmp_path, torn):
    file = tmp_path / "quarantine.csv"
    file.write_text(WHOLE + torn)
    quarantine = Quarantine(100, file)
    assert quarantine.samples == {17}
    # nor does it swallow, or change, the line after it
    quarantine.add(21, "a, b\nc.png", "a\nreason")
    quarantine.add(22, "d.png", "reason")
    assert Quarantine(100, file).samples == {17, 21, 22}


def test_ranks_share_the_file(tmp_path):
    first, second = (Quarantine(4, tmp_path / "quarantine.csv") for _ in range(2))
    first.add(1, "b", "broken")
    second.add(2, "c", "broken")
    assert second.substitute(np.array([0, 1, 2, 3])).tolist() == [0, 3, 3, 3]
    assert (tmp_path / "quarantine.csv").read_text() == "sample,id,reason\n1,b,broken\n2,c,broken\n"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        Quarantine(4, tmp_path)

"""Damaged files of every format, a small choice of what `tools/faults.py` tries, and that the script sees what is wrong."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import faults


def test_damaged_files_are_refused_in_one_line_or_read_as_they_were():
    counts, bad = faults.run(8, seed=1, progress=False)
    assert not bad, "\n".join(bad)
    for name, count in counts.items():
        assert count["refused"] > 40 and count["refused"] + count["unchanged"] + count["other"] == count.total(), name
    assert sum(count.total() for count in counts.values()) > 500


def raises(error):
    def read():
        raise error

    return read


def warns():
    warnings.warn("damaged", stacklevel=1)
    return 1


def takes_memory():
    return len(bytearray(b"x") * (2 * faults.MEMORY)) // (2 * faults.MEMORY)


READERS = {
    "refused": [raises(ValueError("{path}: expected a file")), raises(FileNotFoundError("{path}"))],
    "unchanged": [lambda: 1],
    "BAD": [
        *(raises(ValueError(text)) for text in ("expected a file", "{path}: expected\na file", "{path}" + "x" * 2000)),
        *(raises(kind("{path}: expected a file")) for kind in (KeyError, OSError, MemoryError, RuntimeError, EOFError)),
        *(lambda: 2, lambda: 1.0, lambda: None, warns),
        *([takes_memory] if faults.largest() else []),
    ],
}


@pytest.mark.parametrize(("expected", "read"), [(name, read) for name, readers in READERS.items() for read in readers])
def test_the_script_sees_what_is_wrong(tmp_path, expected, read):
    def named():
        try:
            return read()
        except Exception as error:
            raise type(error)(error.args[0].format(path=tmp_path / "x")) from None

    assert faults.verdict(faults.Format("x", tmp_path / "x", named), 1, tmp_path / "mark")[0] == expected


def test_the_script_sees_code_that_ran(tmp_path):
    def read():
        (tmp_path / "mark").touch()
        raise ValueError(f"{tmp_path / 'x'}: expected a file")

    assert faults.verdict(faults.Format("x", tmp_path / "x", read), 1, tmp_path / "mark") == ("BAD", "ran the code of a pickle")


def test_what_is_the_same():
    pairs = [(1, 1.0), (torch.zeros(2), torch.zeros(2).double()), (np.zeros(2), -np.zeros(2)), ([1], (1,)), ({"a": 1}, {"a": 2})]
    for a, b in pairs:
        assert faults.same(a, a) and faults.same(b, b) and not faults.same(a, b) and not faults.same([a], [b])
    assert faults.same({"a": [float("nan")]}, {"a": [float("nan")]})

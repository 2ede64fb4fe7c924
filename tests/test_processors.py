"""The second pass of the continuous integration: what it switches off, on which processor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import processors as tool  # noqa: E402


@pytest.mark.parametrize(
    "features, capability, expected",
    [
        ("X86_V3 X86_V4 AVX512F", "AVX512", {"without AVX2": "AVX512F X86_V3 X86_V4", "without AVX-512": "AVX512F X86_V4"}),
        ("AVX2 FMA3 AVX512F", "AVX512", {"without AVX2": "AVX2 AVX512F FMA3", "without AVX-512": "AVX512F"}),  # numpy 2.0's names
        ("X86_V3", "AVX2", {"without AVX2": "X86_V3"}),
        ("", "DEFAULT", {}),
    ],
)
def test_what_is_switched_off(features, capability, expected):
    found = tool.passes(set(features.split()), capability)
    assert {name: environment["NPY_DISABLE_CPU_FEATURES"] for name, environment, _ in found} == expected
    for _, environment, (left, lower) in found:
        assert left == set(features.split()) - set(environment["NPY_DISABLE_CPU_FEATURES"].split())
        assert environment["ATEN_CPU_CAPABILITY"] == lower.lower() != capability.lower()


def test_the_settings_take_effect_here():
    for _, environment, expected in tool.passes(*tool.probe({})):
        assert tool.probe(environment) == expected


def test_a_processor_without_the_instructions_is_passed_over(monkeypatch, capsys):
    monkeypatch.setattr(tool.platform, "machine", lambda: "aarch64")
    assert tool.main() == 0
    assert capsys.readouterr().out == "other processors: nothing to switch off on this one\n"


def test_settings_without_effect_are_an_error(monkeypatch, capsys):
    monkeypatch.setattr(tool, "probe", lambda environment: ({"X86_V3"}, "AVX2"))
    monkeypatch.setattr(tool.platform, "machine", lambda: "x86_64")
    assert tool.main() == 1
    assert "expected (set(), 'DEFAULT')" in capsys.readouterr().err


def test_every_file_exists():
    chapters, tests = tool.SEARCHES
    assert set(tests.split()) < set(tool.NUMERIC.split())
    assert all((ROOT / "tests" / f"test_{name}.py").exists() for name in tool.NUMERIC.split())
    assert all(len(list((ROOT / "book").glob(f"{start}*.ipynb"))) == 1 for start in chapters.split())

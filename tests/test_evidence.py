"""Searches beside the ground truth: what a figure of rows shows is what it was given."""

from __future__ import annotations

import numpy as np
import pytest

from dcpnas_lite.evaluation import microbench as mb
from dcpnas_lite.report import evidence


@pytest.fixture(scope="module")
def bench():
    return mb.MicroBench.load("digits")


def test_readings_hold_every_search_once():
    """The same supernets under each name, and the finals of a table that has them."""
    usual = evidence.readings("default-digits")
    assert {reading for _, reading in usual} == {"perturbation", "strength"} and len(usual) == 8
    assert all(sorted(cells) == list(range(20)) for cells in usual.values())
    assert {reading for _, reading in evidence.readings("final-fashion_mnist")} == {"strength", "perturbation", "final"}
    assert sum(map(len, usual.values())) == len(mb.searches_found("default-digits"))


def test_points_are_differences_on_the_same_seed(bench):
    mine, theirs = {3: 5, 1: 7}, {1: 5, 3: 7, 2: 9}
    difference = 100 * (bench.accuracy(5) - bench.accuracy(7))
    assert evidence.ahead(bench, {"mine": mine}, theirs) == {"mine": pytest.approx([difference, -difference])}
    assert evidence.percentiles(bench, {"mine": mine.values()}) == {"mine": [bench.percentile(5), bench.percentile(7)]}
    with pytest.raises(KeyError):
        evidence.ahead(bench, {"mine": {4: 5}}, theirs)


def test_intervals_and_their_text():
    shown = evidence.intervals({"a": [1.0, 2.0, 6.0]}, np.mean)
    middle, low, high = shown["a"]
    assert middle == 3 and 1 <= low < middle < high <= 6
    assert evidence.text((1.26, -0.5, 3.0), "+.1f") == "+1.3 [-0.5, +3.0]"


def test_rows_show_values_intervals_and_names():
    values = {"few": [1.0, 2.0, 2.0], "many": np.arange(1000.0)}
    figure = evidence.rows(values, {"few": (2.0, 1.0, 2.0), "many": (500.0, 480.0, 520.0)}, "points", zero=True)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == list(values) and axis.get_xlabel() == "points"
    dots = [line.get_xdata() for line in axis.lines if line.get_marker() == "o"]
    assert dots[0].tolist() == [1.0, 2.0, 2.0]
    assert len(dots[1]) == evidence.SHOWN and dots[1].min() > 0 and dots[1].max() < 999
    assert [line.get_xdata().tolist() for line in axis.lines if line.get_marker() == "D"] == [[2.0], [500.0]]
    heights = [line.get_ydata() for line in axis.lines if line.get_marker() == "o"]
    assert heights[0][1] != heights[0][2], "equal values do not hide each other"
    low, high = axis.get_xlim()
    assert low <= 0 and high >= dots[1].max()

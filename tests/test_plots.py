"""Pictures: they show what they were given. Figures are read back artist by artist, not pixel by pixel."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch

from dcpnas_lite.network.genotype import PUBLISHED, Genotype
from dcpnas_lite.network.operations import OPERATIONS, REGISTRY
from dcpnas_lite.network.supernet import MICRO, PAPER, Space
from dcpnas_lite.report import plots


def texts(axis) -> list[str]:
    return [t.get_text().replace("\n", " ") for t in axis.texts if t.get_text()]


def history(space: Space, steps: int = 12) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shape = (steps, len(space.edges), len(space.operations))
    child = np.arange(steps) // 3 % 2 == 1
    return {
        "network": child.astype(float),
        "alpha/normal": generator.normal(size=shape),
        "psi/normal": generator.random(shape),
        "weight_loss": generator.random(steps),
        "alpha_loss": generator.random(steps),
        "distance": np.where(child, generator.random(steps), np.nan),
    }


def test_the_published_cells_are_drawn_edge_by_edge():
    axes = plots.cell(PUBLISHED).axes
    assert [axis.get_title() for axis in axes] == ["normal cell", "reduction cell"]
    for axis, nodes in zip(axes, PUBLISHED.cells.values(), strict=True):
        arrows = [p for p in axis.patches if isinstance(p, FancyArrowPatch)]
        wanted = [(REGISTRY[name].colour, source, target) for target, edges in enumerate(nodes, 2) for name, source in edges]
        drawn = [(to_hex(a.get_edgecolor()).upper(), *(int(x) for x, _ in a._posA_posB)) for a in arrows]
        assert drawn == wanted
        names = [plots.label(name) for edges in nodes for name, _ in edges]
        assert texts(axis)[: len(names)] == names
        assert [t for t in texts(axis) if t.isdigit()] == list("012345")


@pytest.mark.parametrize(
    "genotype",
    [
        PUBLISHED,
        Genotype.from_operations(PAPER, {t: ["sep_conv_5x5"] * 14 for t in PAPER.cell_types}),  # all 14 edges
        Genotype(1, ((("none", 0),), (("sep_conv_3x3", 0), ("dil_conv_3x3", 0)))),  # twice the same two nodes
    ],
)
def test_no_two_labels_of_a_cell_overlap_and_all_are_inside(genotype):
    figure = plots.cell(genotype)
    figure.canvas.draw()
    for axis in figure.axes:
        boxes = [t.get_window_extent() for t in axis.texts]
        boxes = [b for b, t in zip(boxes, axis.texts, strict=True) if not t.get_text().isdigit()]
        for i, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_nodes_without_edges_are_drawn_too():
    (axis,) = plots.cell(Genotype(1, ((), ()))).axes
    assert texts(axis) == ["0", "input", "1", "2", "concatenated output"]


@pytest.mark.parametrize("space", [MICRO, PAPER], ids=lambda space: space.name)
def test_trajectories_show_the_softmax_of_every_edge_and_operation(space):
    given = history(space)
    figure = plots.trajectories(given, space)
    axes = [axis for axis in figure.axes if axis.lines]
    assert [axis.get_title() for axis in axes] == [f"edge {i} → {j}" for i, j in space.edges]
    for e, axis in enumerate(axes):
        exp = np.exp(given["alpha/normal"][:, e])
        for m, line in enumerate(axis.lines):
            np.testing.assert_allclose(line.get_ydata(), exp[:, m] / exp.sum(1))
        grey = [(p.get_x(), p.get_x() + p.get_width()) for p in axis.patches]
        assert grey == [(2.5, 5.5), (8.5, 11.5)]  # steps 3-5 and 9-11 are the Child's
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == [*map(plots.label, OPERATIONS), "Child's phases"]
    assert axes[0].get_ylabel() == "softmax(α)" and axes[len(space.edges) - 1].get_xlabel() == "architecture step"


def test_softmax_of_large_alpha_is_finite():
    given = {"alpha/normal": np.full((2, 3, 8), 1e4), "network": np.zeros(2)}
    np.testing.assert_allclose(plots.trajectories(given, MICRO).axes[0].lines[0].get_ydata(), 1 / 8)


def test_psi_shows_the_steps_of_one_network():
    given = history(MICRO)
    for network, mine in (("parent", given["network"] == 0), ("child", given["network"] == 1)):
        axis = plots.psi(given, MICRO, network=network).axes[1]
        np.testing.assert_array_equal(axis.lines[6].get_ydata(), given["psi/normal"][mine][:, 1, 6])
    with pytest.raises(ValueError, match="network: expected one that was searched, 'parent' or 'child', got 'teacher'"):
        plots.psi(given, MICRO, network="teacher")
    with pytest.raises(ValueError, match="got 'child'"):
        plots.psi(given | {"network": np.zeros(12)}, MICRO, network="child")


def test_losses_keep_the_networks_apart_and_show_d():
    given = history(MICRO)
    weights, alpha, distance = plots.losses(given).axes
    for axis, key in ((weights, "weight_loss"), (alpha, "alpha_loss")):
        for line, name, mine in zip(axis.lines, ("Parent", "Child"), (given["network"] == 0, given["network"] == 1), strict=True):
            assert line.get_label() == name
            np.testing.assert_array_equal(line.get_xdata(), np.flatnonzero(mine))
            np.testing.assert_array_equal(line.get_ydata(), given[key][mine])
    np.testing.assert_array_equal(distance.lines[0].get_ydata(), given["distance"][given["network"] == 1])
    alone = given | {"network": np.zeros(12), "distance": np.full(12, np.nan)}
    weights, _, distance = plots.losses(alone).axes
    assert [line.get_label() for line in weights.lines] == ["Parent"] and texts(distance) == ["not used"]


def test_pictures_need_no_pyplot_and_show_themselves():
    program = (
        "import sys; from dcpnas_lite import PUBLISHED, plots; png = plots.cell(PUBLISHED)._repr_png_();"
        "assert png.startswith(b'\\x89PNG'); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pictures_do_not_depend_on_the_readers_style():
    """The same bytes under a style with white text that asks for a TeX which may not be there."""
    def pictures():
        given = history(MICRO)
        yield plots.cell(PUBLISHED)._repr_png_()
        for figure in (plots.losses(given), plots.mix({"normal": given["alpha/normal"][-1]}, MICRO)):
            shown = BytesIO()  # as IPython shows a figure
            figure.canvas.print_figure(shown, format="png", facecolor=figure.get_facecolor(), bbox_inches="tight")
            yield shown.getvalue()

    expected = list(pictures())
    with matplotlib.style.context(["dark_background", {"text.usetex": True, "savefig.facecolor": "black"}]):
        before = dict(matplotlib.rcParams)
        assert list(pictures()) == expected
        assert dict(matplotlib.rcParams) == before

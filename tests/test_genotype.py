"""Genotypes: JSON round trip and its errors, discretization by hand, the published cell, the network of a cell."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections import Counter, namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcpnas_lite.network.discrete import DiscreteNetwork
from dcpnas_lite.network.genotype import PUBLISHED, Genotype, discretize, random_cell
from dcpnas_lite.network.operations import OPERATIONS
from dcpnas_lite.network.supernet import MICRO, PAPER, Space, Supernet


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def genotypes() -> st.SearchStrategy[Genotype]:
    """Any cell: 1 or 2 input nodes, up to 4 intermediate nodes with any incoming edges, one or two cell types."""

    def cell(inputs, nodes):
        names = st.sampled_from(OPERATIONS)
        return st.tuples(
            *(st.lists(st.tuples(names, st.integers(0, j - 1)), max_size=4).map(tuple) for j in range(inputs, inputs + nodes))
        )

    def build(sizes):
        inputs, nodes, both = sizes
        return st.builds(Genotype, st.just(inputs), cell(inputs, nodes), cell(inputs, nodes) if both else st.none())

    return st.tuples(st.integers(1, 2), st.integers(1, 4), st.booleans()).flatmap(build)


# -- JSON -------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(genotypes())
def test_json_round_trip(genotype):
    again = Genotype.from_json(genotype.to_json())
    assert again == genotype and hash(again) == hash(genotype)
    json.loads(genotype.to_json(), parse_constant=pytest.fail)


@settings(deadline=None)
@given(st.tuples(*[st.sampled_from(OPERATIONS)] * 3))
def test_every_micro_cell_is_its_three_operations(names):
    genotype = Genotype.from_operations(MICRO, names)
    assert genotype == Genotype(1, (((names[0], 0),), ((names[1], 0), (names[2], 1))))
    assert Genotype.from_json(genotype.to_json()) == genotype
    alpha = torch.full((3, 8), -1.0)
    for e, name in enumerate(names):
        alpha[e, OPERATIONS.index(name)] = 1.0
    if "none" not in names:
        assert discretize(MICRO, {"normal": alpha}) == genotype


def test_the_512_micro_cells_are_distinct():
    cells = {Genotype.from_operations(MICRO, names) for names in itertools.product(OPERATIONS, repeat=3)}
    assert len(cells) == 512


def test_a_genotype_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PUBLISHED.inputs = 1


GOOD = {"inputs": 1, "normal": [[["skip_connect", 0]], [["none", 0], ["sep_conv_3x3", 1]]]}


@pytest.mark.parametrize("text, message", [
    ("", "genotype: expected JSON"),
    ("{", "genotype: expected JSON"),
    ("{\n\n'inputs': 1}", "genotype: expected JSON"),
    ("[]", "genotype: expected a JSON object"),
    ("null", "genotype: expected a JSON object"),
    ('"normal"', "genotype: expected a JSON object"),
    ("{}", "genotype: expected a JSON object"),
    (GOOD | {"extra": 1}, "genotype: expected a JSON object"),
    ({"inputs": 1}, "genotype: expected a JSON object"),
    (GOOD | {"inputs": 3}, "inputs: expected 1 or 2 input nodes, got 3"),
    (GOOD | {"inputs": "1"}, "inputs: expected 1 or 2 input nodes, got '1'"),
    (GOOD | {"inputs": 1.0}, r"inputs: expected 1 or 2 input nodes, got 1\.0"),
    (GOOD | {"inputs": True}, "inputs: expected 1 or 2 input nodes, got True"),
    (GOOD | {"inputs": None}, "inputs: expected 1 or 2 input nodes, got None"),
    (GOOD | {"normal": 7}, "genotype: expected nodes as lists"),
    (GOOD | {"normal": [7]}, "genotype: expected nodes as lists"),
    (GOOD | {"normal": [[7]]}, "genotype: expected nodes as lists"),
    (GOOD | {"normal": [[["skip_connect"]]]}, "genotype: expected nodes as lists"),
    (GOOD | {"normal": [[["skip_connect", 0, 0]]]}, "genotype: expected nodes as lists"),
    (GOOD | {"normal": []}, "normal: expected at least one intermediate node"),
    (GOOD | {"normal": None}, "genotype: expected nodes as lists"),
    (GOOD | {"normal": [[["conv_9x9", 0]]]}, "normal, node 1: expected an operation of none, .*got 'conv_9x9'"),
    (GOOD | {"normal": [[[None, 0]]]}, "normal, node 1: expected an operation"),
    (GOOD | {"normal": [[["none", 1]]]}, "normal, node 1: expected a source node in 0 … 0, got 1"),
    (GOOD | {"normal": [[["none", 0]], [["none", -1]]]}, "normal, node 2: expected a source node in 0 … 1, got -1"),
    (GOOD | {"normal": [[["none", 0.0]]]}, r"normal, node 1: expected a source node in 0 … 0, got 0\.0"),
    (GOOD | {"normal": [[["none", False]]]}, "normal, node 1: expected a source node in 0 … 0, got False"),
    (GOOD | {"normal": [[["none", "0"]]]}, "normal, node 1: expected a source node in 0 … 0, got '0'"),
    (GOOD | {"reduce": [[["none", 0]]]}, "reduce: expected 2 nodes as in normal, got 1"),
    (GOOD | {"normal": [""]}, "genotype: expected nodes as lists"),
    (GOOD | {"normal": {}}, "genotype: expected nodes as lists"),
    (GOOD | {"normal": [{}]}, "genotype: expected nodes as lists"),
    (GOOD | {"normal": ["ab"]}, "genotype: expected nodes as lists"),
    (GOOD | {"reduce": []}, "reduce: expected at least one intermediate node"),
    (GOOD | {"normal": [[["none", math.nan]]]}, "normal, node 1: expected a source node in 0 … 0, got nan"),
    (GOOD | {"normal": [[["none", -math.inf]]]}, "normal, node 1: expected a source node in 0 … 0, got -inf"),
    (GOOD | {"normal": [[["none", 10**4000]]]}, "normal, node 1: expected a source node in 0 … 0, got 10{59}$"),
    (GOOD | {"normal": [[["x" * 10**6, 0]]]}, "normal, node 1: expected an operation of .*, got 'x{59}$"),
    (GOOD | {"normal": [[[["none"], 0]]]}, r"normal, node 1: expected an operation of .*, got \['none'\]"),
    ('{"inputs": 1' + "0" * 5000 + "}", "genotype: expected JSON, got text that is not \\(Exceeds the limit"),
    ("[" * 100_000, "genotype: expected JSON, got text that is not \\(maximum recursion depth"),
    ('{"inputs": 1, "normal": ' + "[" * 100_000, "genotype: expected JSON, got text that is not \\(maximum recursion depth"),
    ('{"inputs": 2, "inputs": 1, "normal": [[["none", 0]]]}', r"genotype: expected JSON, .* \(a key stands twice in an object\)"),
])  # fmt: skip
def test_bad_json_gives_one_clear_line(text, message):
    Genotype.from_json(json.dumps(GOOD))
    with pytest.raises(ValueError) as caught:
        Genotype.from_json(text if isinstance(text, str) else json.dumps(text))
    assert re.match(message, str(caught.value)) and "\n" not in str(caught.value), str(caught.value)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.sampled_from(["normal", *OPERATIONS]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["inputs", "normal", "reduce"]), inner),
        max_leaves=8,
    )
)
def test_any_json_gives_a_genotype_or_a_value_error(content):
    for value in (content, GOOD | {"normal": content}):
        try:
            genotype = Genotype.from_json(json.dumps(value))
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert Genotype.from_json(genotype.to_json()) == genotype


# -- the text form of DARTS -------------------------------------------------------------------------------------------

DARTS_V2 = """Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
    ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5],
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0),
    ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])
"""
SMALL = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('none', 0)], normal_concat=range(2, 3), "
    "reduce=[('none', 0), ('none', 0)], reduce_concat=[2])"
)


def darts(genotype: Genotype) -> str:
    cell = namedtuple("Genotype", "normal normal_concat reduce reduce_concat")
    concat = range(2, 2 + len(genotype.normal))
    return repr(cell(*(part for nodes in genotype.cells.values() for part in ([e for edges in nodes for e in edges], concat))))


def test_the_text_form_of_darts():
    assert Genotype.from_darts(darts(PUBLISHED)) == PUBLISHED
    for seed in range(20):
        cell = random_cell(PAPER, seed)
        assert Genotype.from_darts(darts(cell)) == cell
    found = Genotype.from_darts(DARTS_V2)
    assert str(found) == (
        "normal: sep_conv_3x3←0, sep_conv_3x3←1 | sep_conv_3x3←0, sep_conv_3x3←1 | sep_conv_3x3←1, skip_connect←0 | "
        "skip_connect←0, dil_conv_3x3←2\n"
        "reduce: max_pool_3x3←0, max_pool_3x3←1 | skip_connect←2, max_pool_3x3←1 | max_pool_3x3←0, skip_connect←2 | "
        "skip_connect←2, max_pool_3x3←1"
    )
    assert Genotype.from_darts(SMALL) == Genotype(2, ((("sep_conv_3x3", 1), ("none", 0)),), ((("none", 0), ("none", 0)),))


@pytest.mark.parametrize("old, new, message", [
    ("range(2, 3)", "range(2, 4)", r"normal_concat: expected all intermediate nodes, range\(2, 3\), got range\(2, 4\)"),
    ("range(2, 3)", "range(2, 10**9)", "genotype: expected the text form"),
    ("range(2, 3)", "range(2, 999999999999)", "normal_concat: expected all"),
    ("range(2, 3)", "range()", "genotype: expected the text form"),
    ("range(2, 3)", "range('2')", "genotype: expected the text form"),
    ("range(2, 3)", "print(2, 3)", "genotype: expected the text form"),
    ("range(2, 3)", "[]", r"normal_concat: expected all intermediate nodes, range\(2, 3\), got \[\]"),
    ("range(2, 3)", "2", "normal_concat: expected all"),
    ("Genotype(", "", "genotype: expected the text form"),
    ("Genotype(", "Other(", "genotype: expected the text form of DARTS"),
    ("Genotype(", "g.Genotype(", "genotype: expected the text form of DARTS"),
    ("Genotype(", "Genotype(1, ", "genotype: expected the text form of DARTS"),
    ("Genotype(", "Genotype(more=1, ", "genotype: expected the text form of DARTS"),
    ("Genotype(", "Genotype(**{}, ", "genotype: expected the text form of DARTS"),
    ("Genotype(", "Genotype(normal=[], ", "genotype: expected the text form of DARTS, .*each once"),
    ("Genotype(", "Genotype(" + "(" * 10_000, "genotype: expected the text form of DARTS"),
    ("Genotype(", "Genotype(normal=" + "-" * 90_000 + "1, ", "genotype: expected the text form of DARTS"),
    ("reduce=", "reduces=", "genotype: expected the text form of DARTS"),
    ("('sep_conv_3x3', 1)", "__import__('os').abort()", "genotype: expected the text form of DARTS"),
    ("('sep_conv_3x3', 1)", "(name, 1)", "genotype: expected the text form of DARTS"),
    ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 1" + "0" * 5000 + ")", "genotype: expected the text form of DARTS"),
    ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 1), ('none', 0)", "normal: expected a list of .* two for each node"),
    ("('sep_conv_3x3', 1)", "'ab'", "normal: expected a list of"),
    ("('sep_conv_3x3', 1)", "('sep_conv_3x3',)", "normal: expected a list of"),
    ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 2)", "normal, node 2: expected a source node in 0 … 1, got 2"),
    ("('sep_conv_3x3', 1)", "('sep_conv_3x3', True)", "normal, node 2: expected a source node in 0 … 1, got True"),
    ("('sep_conv_3x3', 1)", "('sep_conv_7x7', 1)", "normal, node 2: expected an operation of none, .*, got 'sep_conv_7x7'"),
    ("('sep_conv_3x3', 1)", "([], 1)", r"normal, node 2: expected an operation of none, .*, got \[\]"),
    ("[('none', 0), ('none', 0)]", "[]", "reduce_concat: expected all intermediate nodes"),
    ("[('none', 0), ('none', 0)]", "None", "reduce: expected a list of"),
    (SMALL, "Genotype(normal=[], normal_concat=[], reduce=[], reduce_concat=[])", "normal: expected at least one intermediate"),
    (SMALL, "", "genotype: expected the text form of DARTS"),
    (SMALL, "Genotype", "genotype: expected the text form of DARTS"),
    (SMALL, SMALL + " or exit()", "genotype: expected the text form of DARTS"),
    (SMALL, "Genotype(\0)", "genotype: expected the text form of DARTS"),
    (SMALL, SMALL + " " * 10**6 + "!", "genotype: expected the text form of DARTS"),
])  # fmt: skip
def test_other_text_gives_one_clear_line(old, new, message):
    assert old in SMALL
    with pytest.raises(ValueError) as caught:
        Genotype.from_darts(SMALL.replace(old, new))
    assert re.match(message, str(caught.value)) and "\n" not in str(caught.value), str(caught.value)


@pytest.mark.parametrize("operations, message", [
    (["none"] * 2, "operations: expected 3 names, one per edge, got 2"),
    ({"reduce": ["none"] * 3}, r"operations: expected cell types \('normal',\), got \('reduce',\)"),
    (["none", "none", "wrong"], "normal, node 2: expected an operation"),
])  # fmt: skip
def test_from_operations_refuses_what_does_not_fit(operations, message):
    with pytest.raises(ValueError, match=message):
        Genotype.from_operations(MICRO, operations)


# -- discretization ---------------------------------------------------------------------------------------------------


def test_discretize_micro_by_hand():
    alpha = torch.zeros(3, 8)
    alpha[0, OPERATIONS.index("none")] = 9.0  # the strongest, yet never kept
    alpha[0, OPERATIONS.index("max_pool_3x3")] = 0.1
    alpha[1, OPERATIONS.index("sep_conv_5x5")] = 2.0
    alpha[1, OPERATIONS.index("skip_connect")] = 1.9
    alpha[2] = -1.0
    alpha[2, OPERATIONS.index("dil_conv_3x3")] = -0.9
    assert discretize(MICRO, {"normal": alpha}) == Genotype(
        1, ((("max_pool_3x3", 0),), (("sep_conv_5x5", 0), ("dil_conv_3x3", 1)))
    )


def test_ties_go_to_the_lower_index():
    tied = discretize(PAPER, {"normal": torch.zeros(14, 8), "reduce": torch.zeros(14, 8)})
    assert tied.normal == tied.reduce == ((("skip_connect", 0), ("skip_connect", 1)),) * 4


def test_paper_keeps_the_two_strongest_edges_by_softmax_weight():
    """Strength is the softmax weight of the best operation other than none, not the logit itself."""
    alpha = torch.zeros(14, 8)
    edges = {edge: e for e, edge in enumerate(PAPER.edges)}
    sep3, dil5, avg = (OPERATIONS.index(n) for n in ("sep_conv_3x3", "dil_conv_5x5", "avg_pool_3x3"))
    # node 3: edges from 0, 1, 2; the one from 1 is the weakest
    alpha[edges[0, 3], sep3], alpha[edges[1, 3], dil5], alpha[edges[2, 3], avg] = 1.0, 0.5, 2.0
    # node 4: the edge from 3 has the largest logit, but its none takes most of the softmax
    alpha[edges[3, 4], sep3], alpha[edges[3, 4], 0] = 5.0, 9.0
    alpha[edges[0, 4], dil5], alpha[edges[2, 4], sep3] = 2.0, 1.0
    # node 5: the logits of the edge from 4 are the largest, but all alike
    alpha[edges[4, 5]] = 7.0
    alpha[edges[1, 5], avg], alpha[edges[3, 5], dil5] = 0.4, 0.3
    genotype = discretize(PAPER, {"normal": alpha, "reduce": alpha.flip(0)})
    assert genotype.normal == (
        (("skip_connect", 0), ("skip_connect", 1)),
        (("sep_conv_3x3", 0), ("avg_pool_3x3", 2)),
        (("dil_conv_5x5", 0), ("sep_conv_3x3", 2)),
        (("avg_pool_3x3", 1), ("dil_conv_5x5", 3)),
    )
    assert genotype.reduce != genotype.normal


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_discretize_against_brute_force(seed, keep):
    space = Space("mine", 2, 3, ("normal",), keep=keep)
    alpha = torch.randn(len(space.edges), 8, generator=torch.Generator().manual_seed(seed))
    nodes = []
    for j in range(2, 5):
        best = []
        for e, (source, target) in enumerate(space.edges):
            if target == j:
                share = {n: (alpha[e, m].exp() / alpha[e].exp().sum()).item() for m, n in enumerate(OPERATIONS) if n != "none"}
                name = max(share, key=share.get)
                best.append((share[name], source, name))
        kept = sorted(best, reverse=True)[:keep]
        nodes.append(tuple((name, source) for _, source, name in sorted(kept, key=lambda b: b[1])))
    assert discretize(space, {"normal": alpha}).normal == tuple(nodes)


def test_discretize_refuses_another_shape():
    with pytest.raises(ValueError, match=r"alpha\['normal'\]: expected shape \(3, 8\), got \(8, 3\)"):
        discretize(MICRO, {"normal": torch.zeros(8, 3)})
    with pytest.raises(ValueError, match=r"alphas: expected cell types \('normal', 'reduce'\), got none for 'reduce'"):
        discretize(PAPER, {"normal": torch.zeros(14, 8)})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_discretize_refuses_what_is_not_finite(value):
    alpha = torch.zeros(14, 8)
    alpha[13, 7] = float(value)
    with pytest.raises(ValueError, match=rf"^alpha\['reduce'\]: expected finite numbers, got {value}$"):
        discretize(PAPER, {"normal": torch.zeros(14, 8), "reduce": alpha})


# -- the published cell and discrete networks -------------------------------------------------------------------------


def test_published_cell_in_the_short_form_of_the_source():
    short = {"sep": "sep_conv", "dil": "dil_conv", "max": "max_pool", "avg": "avg_pool"}
    source = {
        "normal": "sep5 1 max3 0 | dil3 2 skip 0 | sep3 3 avg3 1 | dil3 4 avg3 3",
        "reduce": "max3 0 sep3 1 | dil3 1 sep3 0 | max3 1 dil5 2 | dil5 2 sep5 1",
    }
    for cell_type, text in source.items():
        nodes = []
        for node in text.split(" | "):
            words = node.split()
            full = ["skip_connect" if w == "skip" else f"{short[w[:3]]}_{w[3]}x{w[3]}" for w in words[::2]]
            nodes.append(tuple(zip(full, map(int, words[1::2]), strict=True)))
        assert PUBLISHED.cells[cell_type] == tuple(nodes)
    assert PUBLISHED.inputs == PAPER.inputs and len(PUBLISHED.normal) == PAPER.nodes


def test_text_shows_every_edge():
    text = str(PUBLISHED)
    assert text.splitlines()[0].startswith("normal: sep_conv_5x5←1, max_pool_3x3←0 | ")
    assert text.splitlines()[1].startswith("reduce: ") and text.count("←") == 16


@pytest.mark.parametrize("binary", [False, True])
def test_published_cell_makes_a_network_that_learns(binary):
    torch.manual_seed(0)
    network = DiscreteNetwork(PUBLISHED, channels=4, layers=3, binary=binary)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(network(x), torch.arange(4))
    gradients = torch.autograd.grad(loss, network.parameters())
    missing = [name for (name, _), g in zip(network.named_parameters(), gradients, strict=True) if not g.any()]
    assert not missing


@pytest.mark.parametrize("binary", [False, True])
def test_a_cell_of_none_alone_is_zero(binary):
    torch.manual_seed(0)
    network = DiscreteNetwork(Genotype.from_operations(MICRO, ["none"] * 3), channels=4, layers=2, binary=binary)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(network(x), network.classifier.bias.expand(3, -1))


def test_an_unfinished_node_is_zero_and_none_costs_nothing():
    genotype = Genotype(2, ((), (("none", 0), ("skip_connect", 1))), ((("none", 1),), (("none", 2),)))
    network = DiscreteNetwork(genotype, channels=2, layers=2)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert not [p for n, p in network.named_parameters() if ".operations." in n]


def test_discretized_supernet_and_discrete_network_have_the_same_skeleton():
    torch.manual_seed(0)
    for space in (MICRO, PAPER):
        net = Supernet(space, channels=2, layers=3)
        discrete = DiscreteNetwork(discretize(space, dict(net.alpha)), channels=2, layers=3)
        assert discrete.cell_types == net.cell_types
        assert [len(c.nodes) for c in discrete.cells] == [space.nodes] * 3
        assert all(len(edges) <= space.keep for cell in discrete.genotype.cells.values() for edges in cell)


# -- random cells ---------------------------------------------------------------------------------------------------


def test_random_cells_choose_edges_and_operations_with_equal_probability():
    n = 1000
    cells = [random_cell(PAPER, seed) for seed in range(n)]
    assert random_cell(PAPER, 5) == cells[5] and len(set(cells)) == n
    for t in PAPER.cell_types:
        edges = [(source, target, name) for c in cells for target, into in enumerate(c.cells[t], 2) for name, source in into]
        counts, names = Counter(edge[:2] for edge in edges), Counter(edge[2] for edge in edges)
        for i, j in PAPER.edges:
            p = 2 / j  # two of the j edges into node j
            assert abs(counts[i, j] - n * p) <= 5 * (n * p * (1 - p)) ** 0.5
        assert set(names) == set(OPERATIONS) - {"none"}
        for count in names.values():
            assert abs(count - 8 * n / 7) <= 5 * (8 * n / 7 * 6 / 7) ** 0.5

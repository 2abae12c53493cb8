"""Sizes: their algebra is that of polynomials, and what is printed computes what is meant."""

from hypothesis import given
from hypothesis import strategies as st

from dsc.compiler.graph.dim import Blocks, Dim, Int, Symbol, product, total

RUNTIME = {"b": 3, "s": 7, "c": 10}
CONSTANTS = {"HEADS": 4, "RANK": 6, "WIDTH": 5}
DERIVED = {"BOTH": Symbol("HEADS", size=4) + Symbol("RANK", size=6)}
LEAVES = (
    [Int(number) for number in (0, 1, 2, 5)]
    + [Symbol(name) for name in RUNTIME]
    + [Symbol(name, size=size) for name, size in CONSTANTS.items()]
    + [Symbol(name, definition=definition) for name, definition in DERIVED.items()]
)
ENVIRONMENT = {**RUNTIME, **CONSTANTS, "BOTH": 10}


def grown(dims: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
    divisors = st.sampled_from([Int(2), Symbol("HEADS", size=4), Symbol("BOTH", definition=DERIVED["BOTH"])])
    return st.one_of(
        st.builds(lambda a, b: a + b, dims, dims),
        st.builds(lambda a, b: a - b, dims, dims),
        st.builds(lambda a, b: a * b, dims, dims),
        st.builds(lambda a, by: (a * by) // by, dims, divisors),
        st.builds(lambda a, by: (by * a) // by, dims, divisors),
        st.builds(lambda a, b, by: (a * by + b * by) // by, dims, dims, divisors),
    )


DIMS = st.recursive(st.sampled_from(LEAVES), grown, max_leaves=8)


@given(DIMS)
def test_what_is_printed_computes_the_value(dim: Dim) -> None:
    assert eval(str(dim), {}, dict(ENVIRONMENT)) == dim.value(RUNTIME)


@given(DIMS, DIMS, DIMS)
def test_polynomial_identities(a: Dim, b: Dim, c: Dim) -> None:
    assert (a + b).same(b + a) and (a * b).same(b * a)
    assert ((a + b) + c).same(a + (b + c)) and ((a * b) * c).same(a * (b * c))
    assert (a * (b + c)).same(a * b + a * c)
    assert (a - a).same(0) and (a + 0).same(a) and (a * 1).same(a) and (a * 0).same(0)
    assert ((a * 6) // 6).same(a) and (2 * a + 1).same(a + 1 + a)


@given(DIMS, DIMS)
def test_same_is_equality_of_the_numbers(a: Dim, b: Dim) -> None:
    """Sampled at points that no two of these small polynomials share by accident."""
    points = [{"b": 10**3, "s": 10**9, "c": 10**27}, {"b": 10**9 + 7, "s": 10**27 + 1, "c": 10**3 + 3}]
    assert a.same(b) == all(a.value(point) == b.value(point) for point in points)


@given(DIMS, DIMS, DIMS)
def test_substitution_commutes_with_evaluation(dim: Dim, b: Dim, s: Dim) -> None:
    replaced = dim.substitute({"b": b, "s": s})
    inner = {**RUNTIME, "b": b.value(RUNTIME), "s": s.value(RUNTIME)}
    assert replaced.value(RUNTIME) == dim.value(inner)


@given(DIMS)
def test_substitution_of_nothing_keeps_the_writing(dim: Dim) -> None:
    assert str(dim.substitute({"nobody": Int(9)})) == str(dim)


@given(st.lists(DIMS, max_size=4))
def test_sums_and_products_of_several(dims: list[Dim]) -> None:
    values = [dim.value(RUNTIME) for dim in dims]
    assert total(dims).value(RUNTIME) == sum(values)
    result = 1
    for value in values:
        result *= value
    assert product(tuple(dims)).value(RUNTIME) == result


def test_a_definition_is_substituted_through() -> None:
    batch, length = Symbol("b"), Symbol("s")
    tokens = Symbol("t", definition=batch * length)
    assert tokens.substitute({"s": length - 1}).same(batch * length - batch)
    assert str(tokens.substitute({"c": length})) == "t"


@given(DIMS)
def test_blocks_hold_all_elements(dim: Dim) -> None:
    """The last one may hold fewer."""
    count = dim.value(RUNTIME)
    blocks = Blocks(dim, Int(4))
    assert 4 * (blocks.value(RUNTIME) - 1) < count <= 4 * blocks.value(RUNTIME)
    assert blocks.substitute({"b": Int(5)}).value(RUNTIME) == -(-dim.substitute({"b": Int(5)}).value(RUNTIME) // 4)
    assert (Blocks(dim * 4, Int(4))).same(dim)

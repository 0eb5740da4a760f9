"""Trees worked out by hand: what is computed, what it costs, and how they are made smaller."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.methods.dymu.tree import Limit, Tree
from gatesearch.methods.dymu.tree import merged as merged_by

# Three streams, three blocks. Heads read streams 0, 1, 1; block 2 of stream 1 reads stream 0, and
# so does that of stream 0; nothing reads stream 2.
TREE = Tree(((0, 1, 2), (0, 0, 2), (0, 1, 1)))


def merged(tree: Tree, scores, limits, preference: tuple[float, ...] = ()) -> Tree:
    """The merged tree, by equal preferences unless others are given."""
    equal = (1 / tree.tasks,) * tree.tasks
    return merged_by(tree, scores, limits, preference=preference or equal)


def edges(*rows: tuple[float, ...]) -> list[list[list[float]]]:
    """Scores of one block behind another: every reader's row."""
    return [[list(row) for row in rows]]


def test_only_what_a_head_depends_on_is_computed() -> None:
    # last block in streams 0 and 1; both read block 1 of stream 0, which reads block 0 of stream 0
    assert TREE.nodes == ((0,), (0,), (0, 1))
    assert [TREE.path(task) for task in range(3)] == [(0, 0, 0), (0, 0, 1), (0, 0, 1)]


def test_a_block_is_a_task_s_own_where_it_serves_no_other() -> None:
    assert [TREE.alone(task) for task in range(3)] == [
        (False, False, True), (False, False, False), (False, False, False),
    ]  # fmt: skip
    separate = Tree(((0, 1), (0, 1)))
    assert separate.alone(0) == separate.alone(1) == (True, True)


def test_the_cost_of_a_branching_is_the_sum_over_its_blocks() -> None:
    # 100 + 10 + 2 x 1, and heads of 1000
    assert Limit((100, 10, 1), heads=1000, most=2224).cost(TREE) == 1112
    assert Limit((100, 10, 1), heads=1000, most=2224).share(TREE) == 0.5


def test_the_best_tree_follows_the_highest_score_and_the_first_of_equal_ones() -> None:
    assert Tree.best(edges((1.0, 2.0), (3.0, 3.0))) == Tree(((1, 0),))


def test_readers_of_one_stream_are_led_to_another() -> None:
    assert TREE.redirected(2, 1, 0).parents[2] == (0, 0, 0)
    assert TREE.redirected(2, 1, 0).nodes == ((0,), (0,), (0,))


def test_merging_gives_up_the_least_important_edge() -> None:
    # One block; heads 0, 1, 2 read their own streams. Head 1 loses least, by reading stream 2.
    scores = edges((5.0, 0.0, 1.0), (1.0, 4.0, 3.5), (0.0, 2.0, 6.0))
    own = Tree(((0, 1, 2),))
    assert merged(own, scores, [Limit((1,), heads=0, most=3)]) == own
    assert merged(own, scores, [Limit((1,), heads=0, most=2)]) == Tree(((0, 2, 2),))
    # Then streams 0 and 2 are left. Head 0 would lose 4 by reading 2; heads 1, 2 2.5 + 6 by 0.
    assert merged(own, scores, [Limit((1,), heads=0, most=1)]) == Tree(((2, 2, 2),))


def test_merging_weighs_a_loss_against_what_it_saves() -> None:
    # Both blocks can be merged in turn, the second only once the first is.
    first, second = [[2.5, 0.0], [0.0, 2.0]], [[0.6, 0.0], [0.0, 0.5]]
    own = Tree(((0, 1), (0, 1)))
    some = merged(own, [first, second], [Limit((10, 1), heads=0, most=21)])
    assert some.nodes == ((0,), (0, 1)), "streams that read different features cannot be merged"
    assert merged(own, [first, second], [Limit((10, 1), heads=0, most=11)]).nodes == ((0,), (0,))


def test_merging_spares_the_streams_of_preferred_tasks() -> None:
    # Head 1 would lose least, but its task matters most; head 2 loses 4 x 0.1 by reading stream 1.
    scores = edges((5.0, 0.0, 1.0), (1.0, 4.0, 3.5), (0.0, 2.0, 6.0))
    own, two, one = Tree(((0, 1, 2),)), *(Limit((1,), heads=0, most=n) for n in (2, 1))
    assert merged(own, scores, [two], (0.1, 0.85, 0.05)) == Tree(((0, 1, 1),))
    assert merged(own, scores, [one], (0.1, 0.85, 0.05)) == Tree(((1, 1, 1),))
    # Without any preference for tasks 1 and 2, the least loss of score decides between them.
    assert merged(own, scores, [two], (1.0, 0.0, 0.0)) == Tree(((0, 2, 2),))


def test_a_shared_block_matters_by_all_tasks_that_depend_on_it() -> None:
    # Streams 0 and 1 have heads 0 and (1, 2). Blocks 1 are read by these heads, blocks 0 by them.
    shared = Tree(((0, 1, 0), (0, 1, 1)))
    scores = [[[1.0, 0.0, 0.0], [0.0, 0.9, 0.0], [0.0] * 3]] * 2
    limit = [Limit((1, 1), heads=0, most=3)]
    assert merged(shared, scores, limit).path(0) == (1, 0), "0.9 x 2 / 3 is more than 1 x 1 / 3"


def test_of_several_limits_the_exceeded_ones_count() -> None:
    scores = [[[1.5, 0.0], [0.0, 1.0]]] * 2
    own = Tree(((0, 1), (0, 1)))
    macs, params = Limit((10, 1), heads=0, most=100), Limit((1, 10), heads=0, most=21)
    assert merged(own, scores, [macs, params]).nodes == ((0,), (0, 1))


def test_a_limit_below_one_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="must allow one stream"):
        merged(Tree(((0, 1),)), edges((1.0, 0.0), (0.0, 1.0)), [Limit((10,), heads=5, most=14)])


@st.composite
def scored(draw: st.DrawFn) -> tuple[list[list[list[float]]], tuple[int, ...], float]:
    tasks, blocks = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    score = st.floats(-3, 3, width=16)
    row = st.lists(score, min_size=tasks, max_size=tasks)
    rows = st.lists(row, min_size=tasks, max_size=tasks)
    scores = draw(st.lists(rows, min_size=blocks, max_size=blocks))
    costs = tuple(draw(st.lists(st.integers(1, 50), min_size=blocks, max_size=blocks)))
    return scores, costs, draw(st.floats(0, 1))


@given(scored())
@settings(max_examples=100, deadline=None)
def test_a_merged_tree_is_within_any_limit_and_less_than_a_block_too_small(case) -> None:
    scores, costs, share = case
    tree = Tree.best(scores)
    most = sum(costs) + share * (len(scores[0]) - 1) * sum(costs)
    limit = Limit(costs, heads=0, most=most)
    smaller = merged(tree, scores, [limit])
    assert limit.share(smaller) <= 1
    if limit.share(tree) > 1:
        assert limit.cost(smaller) > most - max(costs)
    else:
        assert smaller == tree

from lmseg_jax import state


def test_leaves_are_dealt_out_to_where_they_live():
    trees = ({"a": {"w": 1}, "b": 2}, {"a": {"mean": 3}})
    values = {"a": {"w": 10, "mean": 30}, "b": 20}
    assert state.split_like(trees, values) == ({"a": {"w": 10}, "b": 20}, {"a": {"mean": 30}})

import json

from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.packed import Packed

leaves = st.none() | st.booleans() | st.integers() | st.text()
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(values)
def test_a_value_comes_back_as_it_was(value):
    assert Packed.of(value).value == value


@given(st.dictionaries(st.text(), values), st.randoms())
def test_equal_values_are_equal_in_any_order_of_their_fields(value, random):
    names = list(value)
    random.shuffle(names)
    assert Packed.of({name: value[name] for name in names}) == Packed.of(value)


@given(values, values)
def test_other_values_are_other(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # 1 is not True
    assert (Packed.of(one) == Packed.of(other)) == same

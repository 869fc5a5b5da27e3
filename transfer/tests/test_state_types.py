"""The open registry: what an entry says, and how somebody else's gets in."""

import math
import os
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_transfer import contract, registry
from disagg_transfer.contract import Stage
from disagg_transfer.deadlines import Timeouts
from disagg_transfer.errors import StateTypeError, UnknownStateTypeError
from disagg_transfer.registry import Resharding, StateType
from disagg_transfer.selection import Request, Selection, indices, transferred_tokens
from disagg_transfer.settings import from_environment

PAGE = (Path(__file__).parents[2] / "docs" / "state-types.md").read_text()
OWN = {"selection": Selection.PAGES, "resharding": Resharding.REPLICATED}


def test_the_contract_names_what_the_registry_has():
    assert tuple(sorted(entry.name for entry in registry.BUILT_IN)) == contract.STATE_TYPES
    for alias, name in contract.STATE_TYPE_ALIASES.items():
        assert registry.lookup(alias).name == name


@pytest.mark.parametrize("entry", registry.BUILT_IN, ids=lambda entry: entry.name)
def test_the_docs_say_what_the_entry_says(entry):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{entry.name}`"))
    assert f"| `{entry.selection}`" in row
    assert f"| `{entry.resharding}` |" in row
    assert all(f"alias `{alias}`" in row for alias in entry.aliases)
    assert not entry.block_tokens or f"multiple of {entry.block_tokens}" in row


def test_a_refusal_to_reshard_always_has_a_source():
    for entry in registry.BUILT_IN:
        assert bool(entry.rule) == (entry.resharding is Resharding.REFUSED)


def test_a_type_that_cannot_be_resharded_says_so_with_both_sides_and_the_source():
    swa = registry.lookup("swa")
    told = swa.why_not(prefill_ranks=1, decode_ranks=4)
    assert re.search(r"'swa' .* 1 \(prefill\) to 4 \(decode\): .*llm-d#2433.*same", told)
    assert swa.why_not(prefill_ranks=4, decode_ranks=4) is None
    assert registry.lookup("kv").why_not(prefill_ranks=1, decode_ranks=4) is None


def test_an_unknown_state_type_is_refused_naming_the_known():
    with pytest.raises(UnknownStateTypeError, match=r"kv, mamba, .*none, nsa \(alias dsa\), .*swa"):
        registry.lookup("dsa_tail")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"version": 0}, "version 0"),
        ({"block_tokens": -1}, "block_tokens -1"),
        ({"block_tokens": 128}, "for slots only"),
        ({"may_differ": frozenset({"state_type"})}, r"\['state_type'\]; allowed are dtype"),
        ({"may_differ": frozenset({"items"})}, r"\['items'\]; allowed are dtype"),
        ({"deadline_s": 0.0}, "deadline_s 0.0"),
        ({"deadline_s": math.inf}, "deadline_s inf"),
        ({"resharding": Resharding.REFUSED}, "rule is empty"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_by_its_field(wrong, told):
    with pytest.raises(StateTypeError, match=told):
        StateType(name="a.b/c", **{**OWN, **wrong})


# -- which items


@pytest.mark.parametrize(
    ("tokens", "pages", "window_pages"),
    [
        (0, [], []),
        (1, [0], [0]),
        (64, [0], [0]),
        (65, [0, 1], [0, 1]),
        (128, [0, 1], [0, 1]),
        (192, [0, 1, 2], [1, 2]),  # the window begins where a page does
        (193, [0, 1, 2, 3], [1, 2, 3]),  # one token later it straddles three pages
    ],
)
def test_pages_end_with_the_sequence_and_a_window_is_floored_to_its_page(
    tokens, pages, window_pages
):
    request = Request(tokens=tokens, page_size=64, window=128)
    assert list(indices(Selection.PAGES, request)) == pages
    assert list(indices(Selection.WINDOW_PAGES, request)) == window_pages


def test_the_sampled_token_is_not_counted():
    assert transferred_tokens(filled=65, prompt=64) == 64
    assert transferred_tokens(filled=40, prompt=64) == 40


@given(tokens=st.integers(0, 5000), page_size=st.integers(1, 300), window=st.integers(1, 2000))
def test_the_window_s_pages_are_the_fewest_whole_pages_that_hold_it(tokens, page_size, window):
    request = Request(tokens=tokens, page_size=page_size, window=window)
    held = {position // page_size for position in range(max(0, tokens - window), tokens)}
    assert set(indices(Selection.WINDOW_PAGES, request)) == held
    every = {position // page_size for position in range(tokens)}
    assert set(indices(Selection.PAGES, request)) == every


@given(
    tokens=st.integers(0, 500),
    window=st.integers(1, 64),
    spare=st.integers(0, 16),
    slot=st.integers(0, 9),
)
def test_a_ring_s_rows_are_the_window_s_in_token_order_and_of_this_request_only(
    tokens, window, spare, slot
):
    stride = window + spare
    request = Request(tokens=tokens, window=window, stride=stride, slot=slot)
    rows = indices(Selection.RING_ROWS, request)
    assert [row - slot * stride for row in rows] == [
        position % stride for position in range(max(0, tokens - window), tokens)
    ]
    assert len(set(rows)) == len(rows) == min(tokens, window)


@pytest.mark.parametrize(("tokens", "rows"), [(0, []), (127, [5]), (128, []), (129, [5])])
def test_the_state_of_an_unfinished_block_is_there_only_while_one_is(tokens, rows):
    entry = registry.lookup("c128_state")
    assert list(entry.indices(Request(tokens=tokens, slot=5))) == rows
    assert list(registry.lookup("mamba").indices(Request(tokens=tokens, slot=5))) == [5]


def test_nothing_is_nothing():
    assert list(registry.lookup("none").indices(Request(tokens=99))) == []


@pytest.mark.parametrize(
    ("selection", "request_", "told"),
    [
        ("pages", Request(tokens=1), "page_size: 0"),
        ("windowPages", Request(tokens=1, page_size=1), "window: 0"),
        ("ringRows", Request(tokens=1, window=8, stride=4), "ring of 4 rows cannot hold .* 8"),
        ("slot", Request(tokens=-1), "tokens: -1"),
    ],
)
def test_a_request_that_lacks_what_the_shape_needs_is_refused_by_field(selection, request_, told):
    with pytest.raises(ValueError, match=told):
        indices(Selection(selection), request_)


# -- somebody else's


def code(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def install(folder, *, module, text, points):
    """What pip leaves of a distribution in a folder of the path."""
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[disagg.state_types]", *lines, ""]))
    (folder / f"{module}.py").write_text(text)
    return folder


@pytest.fixture
def fresh_registry(monkeypatch):
    """The registry as a new process reads it, with more folders on the path."""

    def read(*folders):
        for folder in folders:
            monkeypatch.syspath_prepend(folder)
        registry.entries.cache_clear()
        return registry.entries()

    yield read
    monkeypatch.undo()
    registry.entries.cache_clear()


@pytest.fixture
def example(tmp_path):
    """The distribution of docs/state-types.md."""
    project = tomllib.loads(code("toml"))
    points = project["project"]["entry-points"][registry.ENTRY_POINTS]
    (module,) = project["tool"]["setuptools"]["py-modules"]
    return install(tmp_path / "site", module=module, text=code("python"), points=points)


def test_the_example_of_the_docs_moves_between_two_agents(example, tmp_path, kit, monkeypatch):
    inherited = os.environ.get("PYTHONPATH", "")  # make's environment needs none, a shell's has one
    monkeypatch.setenv("PYTHONPATH", f"{example}{os.pathsep}{inherited}")
    own = replace(kit.part("kv", name="sketch"), state_type="acme.example/sketch")
    with kit.agents(tmp_path, parts=(own,), both={"state_types": ["acme.example/sketch"]}) as pair:
        pair.items = {"sketch": 3}
        pair.round_trip(11)
        (row,) = kit.until(
            lambda: [row for row in pair.decode.report().state_types if row.transfers]
        )
    assert (row.type, row.transfers) == ("acme.example/sketch", 1)


def test_a_default_deadline_of_an_entry_loses_to_what_the_user_sets(example, fresh_registry):
    assert "acme.example/sketch" in fresh_registry(example)
    plain = Timeouts(default_s=30, stages={}, state_types={})
    assert plain.limit(Stage.WIRE, "acme.example/sketch") == 5
    staged = Timeouts(default_s=30, stages={Stage.WIRE: 9}, state_types={})
    assert staged.limit(Stage.WIRE, "acme.example/sketch") == 9
    assert plain.limit(Stage.WIRE, "kv") == 30


ENTRY = (
    "from disagg_transfer.registry import Resharding, StateType\n"
    "from disagg_transfer.selection import Selection\n"
    "ONE = StateType(name={name!r}, selection=Selection.PAGES, resharding=Resharding.REPLICATED)\n"
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ENTRY.format(name="acme.example/sketch"), "'acme.example/sketch' .* by"),
        (ENTRY.format(name="ring"), "'ring' of entry point .* vendor/name"),
        (ENTRY.format(name="Acme/ring"), "'Acme/ring' .* lower case"),
        ("ONE = 1\n", "is a int, not a StateType"),
        ("", "'rival:ONE' of rival cannot be loaded"),
        ("import no_such_module_anywhere\n", "cannot be loaded: No module"),
    ],
)
def test_an_installed_type_that_cannot_stand_is_refused_by_where_it_comes_from(
    example, tmp_path, fresh_registry, monkeypatch, text, told
):
    rival = install(tmp_path / "rival", module="rival", text=text, points={"ring": "rival:ONE"})
    monkeypatch.delitem(sys.modules, "rival", raising=False)
    with pytest.raises(StateTypeError, match=told):
        fresh_registry(example, rival)
    with pytest.raises(StateTypeError, match=told):
        from_environment({})  # so an agent does not even start

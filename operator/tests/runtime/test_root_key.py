import asyncio
import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.errors import AlreadyExistsError, ApiNotFoundError, SettingsError
from disagg_operator.root_key import RootKey, root_key
from disagg_transfer.contract import key_id, report_token

ROOT = RootKey(b"r" * 32)
WHERE = {"namespace": "operators", "name": "disagg-root-key"}


class OneSecret:
    """A server that has one name; `between` runs after an answer that there is nothing."""

    def __init__(self, secret=None):
        self.secret, self.calls = secret, []

    async def read(self, kind, *, namespace, name):
        self.calls.append("read")
        found = self.secret
        await asyncio.sleep(0)  # the other process may be served meanwhile
        if found is None:
            raise ApiNotFoundError("none", code=404)
        return found

    async def create(self, kind, body):
        self.calls.append("create")
        if self.secret is not None:
            raise AlreadyExistsError("taken", code=409)
        self.secret = body
        return body


def keys(root, uid="service", *, generation=7):
    return [
        bytes.fromhex(line) for line in root.key_file(uid, generation=generation).decode().split()
    ]


async def test_the_root_is_made_once_and_read_ever_after():
    server = OneSecret()
    made = await root_key(server, **WHERE)
    again = await root_key(server, **WHERE)
    assert server.calls == ["read", "create", "read"]
    assert keys(made) == keys(again)
    assert server.secret["immutable"]
    assert {k: server.secret["metadata"][k] for k in WHERE} == WHERE


async def test_two_replicas_that_make_it_at_once_end_with_the_same():
    server = OneSecret()
    one, other = await asyncio.gather(root_key(server, **WHERE), root_key(server, **WHERE))
    assert server.calls.count("create") == 2, "no race"
    assert keys(one) == keys(other)


@pytest.mark.parametrize(
    "data", [None, {}, {"root": "!"}, {"root": base64.b64encode(b"short").decode()}]
)
async def test_a_secret_that_holds_no_root_is_refused_with_what_to_do(data):
    with pytest.raises(SettingsError, match=r"operators/disagg-root-key .* delete it"):
        await root_key(OneSecret({"data": data}), **WHERE)


@given(st.integers(1, 10**6))
def test_each_key_file_shares_a_key_with_the_next(generation):
    newest, before = keys(ROOT, generation=generation)
    assert newest != before
    assert keys(ROOT, generation=generation + 1)[1] == newest


@given(st.integers(1, 10**6))
def test_the_report_token_opens_before_and_after_the_new_file_is_read(generation):
    token = ROOT.report_token("service", generation=generation + 1)
    for mounted in (generation, generation + 1):
        assert token in {report_token(key) for key in keys(ROOT, generation=mounted)}


def test_keys_of_other_services_and_roots_are_others():
    found = [
        *keys(ROOT),
        *keys(ROOT, "another"),
        *keys(RootKey(b"s" * 32)),
        *keys(ROOT, generation=9),
    ]
    assert len(set(found)) == len(found)


def test_the_newest_key_is_named_as_agents_name_it():
    assert ROOT.key_id("service", generation=7) == key_id(keys(ROOT)[0]).hex()


def test_the_root_is_not_shown():
    assert "r" * 32 not in repr(ROOT)
    assert repr(b"r" * 32) not in repr(ROOT)

"""A report is for whoever shows a token of the deployment's key; nobody else learns anything."""

import secrets
import urllib.error
import urllib.request

import pytest

from disagg_transfer.agent.http import authorized
from disagg_transfer.contract import report_token
from disagg_transfer.local import LocalAgent

KEY, OTHER = secrets.token_bytes(32), secrets.token_bytes(32)
REFUSED = 'disagg_agent_http_refusals_total{reason="authentication"}'


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    key = b"\n".join(each.hex().encode() for each in (OTHER, KEY))
    with LocalAgent(tmp_path_factory.mktemp("agent"), role="prefill", key=key) as found:
        yield found


def ask(agent, header, path="/v1/report?cursor=-1"):
    headers = {} if header is None else {"Authorization": header}
    request = urllib.request.Request(f"http://127.0.0.1:{agent.http_port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def refusals(agent):
    lines = ask(agent, None, "/metrics")[2].decode().splitlines()
    (found,) = (line for line in lines if line.startswith(REFUSED))
    return int(float(found.rpartition(" ")[2]))


WRONG = {
    "none": None,
    "empty": "",
    "no scheme": report_token(KEY),
    "another scheme": f"Basic {report_token(KEY)}",
    "a part of it": f"Bearer {report_token(KEY)[:-1]}",
    "more than it": f"Bearer {report_token(KEY)}0",
    "another key's": f"Bearer {report_token(secrets.token_bytes(32))}",
    "the key itself": f"Bearer {KEY.hex()}",
    "no ASCII": "Bearer \xff\xfe",
    "long": "Bearer " + "0" * 4000,
}


@pytest.mark.parametrize("header", WRONG.values(), ids=WRONG.keys())
def test_a_request_without_the_token_is_refused_counted_and_changes_nothing(agent, header):
    before, cursor = refusals(agent), agent.report().cursor
    code, headers, body = ask(agent, header)
    assert (code, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert b"incarnation" not in body
    assert refusals(agent) == before + 1
    assert agent.report().cursor == cursor


@pytest.mark.parametrize("key", [KEY, OTHER], ids=["old", "new"])
def test_the_token_of_any_key_in_the_file_opens_the_report(agent, key):
    before = refusals(agent)
    code, _, body = ask(agent, f"Bearer {report_token(key)}")
    assert (code, b"incarnation" in body) == (200, True)
    assert refusals(agent) == before


def test_strangers_are_counted_in_the_report(agent):
    before = agent.report().strangers_refused
    ask(agent, None)
    assert agent.report().strangers_refused == before + 1


@pytest.mark.parametrize("path", ["/livez", "/startupz", "/metrics"])
def test_probes_and_metrics_need_no_token(agent, path):
    assert ask(agent, None, path)[0] == 200


def test_the_command_in_the_pod_needs_no_token(agent):
    assert agent.status().pod == "prefill"


def test_no_key_and_no_token_is_logged(agent):
    ask(agent, "Bearer " + "0" * 64)
    log = agent.log
    assert "no report without a token" in log
    for secret in (KEY, OTHER):
        assert secret.hex() not in log
        assert report_token(secret) not in log


def test_nobody_is_let_in_without_any_key():
    assert not authorized("Bearer ", keys=())
    assert not authorized("", keys=(KEY,))

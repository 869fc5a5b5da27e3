"""What `disagg-agent` prints from what the agent answers."""

import pytest

from disagg_transfer import tables

FAILURE = {"time": 90.0, "stage": "notify", "cause": "Timeout"}
REPORT = {
    "time": 100.0,
    "pod": "d-0",
    "role": "decode",
    "revision": "r1",
    "ready": False,
    "notReadyReason": "NoPeers",
    "notReadyMessage": "none yet",
    "engine": {
        "connected": True,
        "components": [
            {"name": "kv", "stateType": "kv"},
            {"name": "mamba.conv", "stateType": "mamba"},
        ],
    },
    "transport": "tcp",
    "transportReason": "no RDMA device",
    "peers": [
        {"pod": "p-0", "state": "up", "detail": ""},
        {"pod": "10.0.0.1:8998", "state": "connecting", "detail": "refused"},
        {"pod": "p-1", "state": "up", "detail": ""},
    ],
    "preflight": [
        {
            "pod": "p-0",
            "state": "failed",
            "gbps": 1.234,
            "latencyMs": None,
            "transport": "tcp",
            "detail": "late",
            "cause": "Timeout",
            "at": 40.0,
        }
    ],
    "arena": {"used": 1536, "bytes": 1 << 28, "unsettled": 5},
    "inflight": 2,
    "strangersRefused": 3,
    "faults": ["withhold:kv"],
    "stateTypes": [
        {
            "type": "kv",
            "transfers": 7,
            "bytes": 3 << 30,
            "timeouts": 1,
            "failures": 1,
            "pairs": [
                {"lastSuccess": 99.0, "lastFailure": None},
                {"lastSuccess": None, "lastFailure": FAILURE},
            ],
        },
        {
            "type": "none",
            "transfers": 0,
            "bytes": 0,
            "timeouts": 0,
            "failures": 0,
            "pairs": [],
        },
    ],
}


def test_the_status_is_one_screen():
    assert tables.status(REPORT) == (
        "pod        d-0, decode of revision r1\n"
        "ready      no, NoPeers: none yet\n"
        "engine     kv, mamba.conv (mamba)\n"
        "peers      1 connecting, 2 up\n"
        "transport  tcp (no RDMA device)\n"
        "arena      1.5 KiB of 256.0 MiB used, 5 B unsettled\n"
        "requests   2 in flight\n"
        "strangers  3 connections turned away\n"
        "faults     withhold:kv\n"
        "\n"
        "STATE TYPE  TRANSFERS  BYTES    TIMEOUTS  FAILURES  MOVED  LAST FAILURE\n"
        "kv          7          3.0 GiB  1         1         1s     Timeout in notify 10s ago\n"
        "none        0          0 B      0         0         -      -"
    )


def test_a_peer_s_row_has_what_preflight_found():
    assert tables.peers(REPORT).splitlines()[1:] == [
        "p-0            up          failed     1.23  -        tcp        60s      Timeout: late",
        "10.0.0.1:8998  connecting  -          -     -        -          -        refused",
        "p-1            up          -          -     -        -          -",
    ]
    assert tables.peers({**REPORT, "peers": []}) == "no peers"


def test_requests_are_shown_oldest_first():
    rows = [
        {"room": 1, "rank": 0, "state": "NEW", "peer_pod": "", "age_s": 0.5, "components": ""},
        {
            "room": 2,
            "rank": 1,
            "state": "OFFERED",
            "peer_pod": "d",
            "age_s": 2.0,
            "components": "kv",
        },
    ]
    assert [line.split() for line in tables.transfers(rows).splitlines()[1:]] == [
        ["2", "1", "OFFERED", "d", "2.000", "s", "kv"],
        ["1", "0", "NEW", "-", "0.500", "s", "-"],
    ]
    assert tables.transfers([]) == "no request in flight"


@pytest.mark.parametrize(
    ("nbytes", "told"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 40, "5.0 TiB"),
        (1 << 60, "1048576.0 TiB"),
    ],
)
def test_sizes_are_short(nbytes, told):
    assert tables.size(nbytes) == told


@pytest.mark.parametrize(
    ("at", "told"),
    [(None, "-"), (100, "0s"), (101, "0s"), (-19, "119s"), (-20, "2m"), (-7100, "2h")],
)
def test_ages_are_short(at, told):
    assert tables.age(at, now=100.0) == told

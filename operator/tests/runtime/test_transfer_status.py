import pytest

from disagg_operator import names
from disagg_operator.observe import AgentView
from disagg_transfer.contract import MismatchReport


def tell(world, reported, *, decode=(), prefill=(), **fields):
    world.tell(
        reported.report(world.decode, rows=decode, **fields),
        reported.report(world.prefill, role="prefill", rows=prefill),
    )


def row_of(world, state_type):
    return next(r for r in world.status().transfer.state_types if r.type == state_type)


def health(world):
    return world.condition(names.TRANSFER_HEALTHY)


@pytest.fixture
def moved(world, reported):
    """A row of one success, `after` seconds from now."""

    def moved(state_type, *, after=0.0, transfers=1):
        pair = reported.pair(world.prefill, world.decode, success=world.now + after)
        return reported.row(state_type, pair, transfers=transfers)

    return moved


@pytest.fixture
def failed(world, reported):
    """A row of one failure, between the world's pods unless said otherwise."""

    def failed(state_type, *, after=0.0, success=None, prefill=None, **fields):
        failure = reported.failure(time=world.now + after, **fields)
        prefill = world.prefill if prefill is None else prefill
        pair = reported.pair(prefill, world.decode, success=success, failure=failure)
        timeouts = int(failure.cause == "Timeout")
        return reported.row(state_type, pair, timeouts=timeouts, failures=1)

    return failed


@pytest.fixture
def timed_out(failed):
    return failed("mamba")


def test_rows_are_there_at_zero_before_any_report(world):
    rows = world.status().transfer.state_types
    assert [(row.type, row.transfers, row.bytes) for row in rows] == [
        ("kv", 0, 0),
        ("mamba", 0, 0),
    ]


def test_no_data_is_unknown_and_does_not_make_it_unready(world, reported):
    tell(world, reported, decode=[reported.row("kv")])
    assert (health(world).status, health(world).reason) == ("Unknown", "NoData")
    assert world.condition(names.READY).status == "True"


def test_success_is_healthy_and_counts_what_decode_received(world, reported, moved):
    row = moved("kv", transfers=3)
    tell(world, reported, decode=[row], prefill=[row])
    assert (health(world).status, health(world).reason) == ("True", "TransfersSucceeding")
    assert (row_of(world, "kv").transfers, row_of(world, "kv").bytes) == (3, 30)


def test_timeout_names_type_pods_stage_and_cause_and_makes_it_unready(
    world, reported, moved, timed_out
):
    tell(world, reported, decode=[moved("kv"), timed_out])
    status = world.status()
    condition = health(world)
    assert (condition.status, condition.reason) == ("False", "StateTransferTimeout")
    assert condition.message == (
        f"mamba from pod {world.prefill} to pod {world.decode}: Timeout in stage notify: 5 s"
    )
    assert (status.phase, status.reason, status.message) == (
        "Degraded",
        condition.reason,
        condition.message,
    )
    failure = row_of(world, "mamba").last_failure
    assert (failure.stage, failure.cause, failure.prefill_pod, failure.decode_pod) == (
        "notify",
        "Timeout",
        world.prefill,
        world.decode,
    )
    assert row_of(world, "mamba").timeouts == 1


def test_other_causes_are_failures(world, reported, failed):
    tell(world, reported, decode=[failed("kv", cause="DigestMismatch", stage="wire")])
    assert health(world).reason == "StateTransferFailed"
    assert "DigestMismatch in stage wire" in health(world).message


def test_newer_success_heals_and_the_row_keeps_the_failure(world, reported, failed, timed_out):
    tell(world, reported, decode=[timed_out])
    assert health(world).status == "False"
    tell(world, reported, decode=[failed("mamba", success=world.now + 1)])
    assert (health(world).status, world.status().phase) == ("True", "Ready")
    assert row_of(world, "mamba").last_failure.cause == "Timeout"


def test_success_of_another_type_heals_nothing(world, reported, moved, timed_out):
    tell(world, reported, decode=[moved("kv", after=9), timed_out])
    assert health(world).status == "False"


def test_failure_known_to_prefill_alone_counts(world, reported, timed_out):
    tell(world, reported, prefill=[timed_out])
    assert health(world).reason == "StateTransferTimeout"


def test_decodes_word_goes_when_both_tell_of_one_request(world, reported, failed, timed_out):
    other = failed("mamba", after=0.1, cause="Aborted")
    tell(world, reported, decode=[timed_out], prefill=[other])
    assert health(world).reason == "StateTransferTimeout"
    assert row_of(world, "mamba").last_failure.cause == "Timeout"


def test_decodes_word_replaces_prefills_that_came_first(world, reported, failed, timed_out):
    tell(world, reported, prefill=[failed("mamba", after=0.1, cause="Aborted")])
    assert row_of(world, "mamba").last_failure.cause == "Aborted"
    tell(world, reported, decode=[timed_out])
    assert row_of(world, "mamba").last_failure.cause == "Timeout"


def test_last_failure_outlives_the_agent_that_told_it(world, reported, timed_out):
    tell(world, reported, decode=[timed_out])
    world.status()
    tell(world, reported, decode=[reported.row("mamba")], incarnation="b")
    assert row_of(world, "mamba").last_failure.cause == "Timeout"


@pytest.mark.parametrize("container", ["transfer-agent", "engine"])
def test_failure_of_processes_that_were_restarted_since_is_history(
    world, reported, timed_out, pod_statuses, container
):
    tell(world, reported, decode=[timed_out])
    assert health(world).status == "False"
    kind = "containerStatuses" if container == "engine" else "initContainerStatuses"
    restarted = {"running": {"startedAt": "2036-01-01T00:00:00Z"}}
    world.pod(world.prefill)["status"][kind] = [
        pod_statuses["container"](container, state=restarted, restartCount=1)
    ]
    assert health(world).status == "Unknown"
    assert row_of(world, "mamba").failures == 1


@pytest.mark.parametrize("pod", ["pod-of-old", "10.9.9.9:8998", "pod-of-old.role.ns.svc:8998"])
def test_failure_of_a_pod_that_is_gone_is_history(world, reported, failed, pod):
    tell(world, reported, decode=[failed("kv", prefill=pod)])
    assert health(world).status == "Unknown"


def test_failure_without_a_peers_name_counts_until_any_success_of_the_other(
    world, reported, failed, moved
):
    unnamed = failed("kv", prefill="", stage="bootstrap")
    tell(world, reported, decode=[unnamed])
    assert "from pod unknown" in health(world).message
    tell(world, reported, decode=[unnamed], prefill=[moved("kv", after=-1)])
    assert health(world).status == "False"
    tell(world, reported, decode=[unnamed], prefill=[moved("kv", after=1)])
    assert health(world).status == "True"


@pytest.mark.parametrize("address", ["10.7.7.7:8998", "{pod}.some-service.default.svc:8998"])
def test_failure_of_a_peer_known_by_its_address_names_its_pod_and_heals(
    world, reported, failed, moved, address
):
    world.pod(world.prefill)["status"]["podIP"] = "10.7.7.7"
    address = address.format(pod=world.prefill)
    failure = failed("kv", prefill=address, stage="bootstrap", cause="PeerUnreachable")
    tell(world, reported, decode=[failure])
    assert f"kv from pod {world.prefill} to pod" in health(world).message
    assert row_of(world, "kv").last_failure.prefill_pod == world.prefill
    tell(world, reported, decode=[failure], prefill=[moved("kv", after=1)])
    assert health(world).status == "True"


@pytest.fixture
def two_prefills(world, cluster, deployment):
    """The world with two prefill pods; each test row is (prefill's number, success, failure)."""
    model = {"stateTypes": ["kv", "mamba"]}
    world.deployment = deployment(model=model, roles={"prefill": {"replicas": 2}}, generation=2)
    cluster.converge(world.deployment)


PAIRS = [
    # What became of each prefill pod: (success, failure), in seconds from now.
    ([(None, 1), (2, None)], ("False", 0, 0)),
    ([(None, 1), (2, 1)], ("False", 0, 0)),
    ([(3, 1), (2, None)], ("True", None, 0)),
    ([(1, 2), (3, None)], ("False", 0, 0)),
    ([(None, 1), (None, 2)], ("False", 1, 1)),
    ([(None, 2), (None, 1)], ("False", 0, 1)),
    ([(None, 2), (None, 2)], ("False", 0, 1)),
    ([(3, 2), (3, 2)], ("True", None, 0)),
]


@pytest.mark.parametrize(("outcomes", "expected"), PAIRS)
@pytest.mark.parametrize("teller", ["decode", "prefill"])
def test_health_is_decided_by_pair_and_names_the_newest_that_fails(
    world, two_prefills, reported, pods_of, outcomes, expected, teller
):
    prefills = pods_of(world.cluster, "prefill")
    pairs = [
        reported.pair(
            prefill,
            world.decode,
            success=None if success is None else world.now + success,
            failure=None if failure is None else reported.failure(time=world.now + failure),
        )
        for prefill, (success, failure) in zip(prefills, outcomes, strict=True)
    ]
    if teller == "decode":
        tell(world, reported, decode=[reported.row("mamba", *pairs)])
    else:
        for prefill, pair in zip(prefills, pairs, strict=True):
            rows = [reported.row("mamba", pair)]
            world.tell(reported.report(prefill, role="prefill", rows=rows))
    truth, named, further = expected
    found = health(world)
    assert found.status == truth
    if named is not None:
        assert found.message == (
            f"mamba from pod {prefills[named]} to pod {world.decode}: Timeout in stage notify: 5 s"
            + ("; 1 further pair of pods fails" if further else "")
        )


def test_one_failing_pair_is_counted_once_however_many_types_it_fails(world, reported, failed):
    unnamed = failed("kv", prefill="", after=-1)
    tell(world, reported, decode=[failed("kv"), failed("mamba")], prefill=[unnamed])
    assert health(world).message.endswith("in stage notify: 5 s")


def test_layout_mismatch_is_told_before_any_request_and_goes_before_unready_agents(
    world, reported, pod_statuses
):
    mismatch = MismatchReport(
        field="dtype", prefill="bfloat16", decode="float32",
        prefill_pod=world.prefill, decode_pod=world.decode,
    )  # fmt: skip
    pod = world.pod(world.decode)
    pod["status"]["conditions"][1]["status"] = "False"
    pod["status"]["initContainerStatuses"] = [
        pod_statuses["container"]("transfer-agent", ready=False)
    ]
    tell(
        world, reported, layout_mismatch=(mismatch,), ready=False,
        not_ready_reason="LayoutMismatch", not_ready_message="dtype",
    )  # fmt: skip
    assert health(world).reason == "LayoutMismatch"
    status = world.status()
    assert status.reason == "LayoutMismatch"
    for word in ("dtype", "bfloat16", "float32", world.prefill, world.decode):
        assert word in status.message


def test_silent_agent_is_told_after_a_while(world, reported):
    tell(world, reported)
    world.views[world.decode] = AgentView(error="refused", failing_since=world.now - 9)
    assert health(world).status == "Unknown"
    world.now += 2
    assert health(world).reason == "AgentUnreachable"
    assert world.decode in health(world).message
    assert "refused" in health(world).message
    assert world.status().transfer.reporting_agents == 1
    assert world.status().transfer.expected_agents == 2


def test_agent_that_does_not_take_the_token_is_told_apart(world, reported):
    tell(world, reported)
    refused = AgentView(error="HTTP 401", failing_since=world.now - 99, refused=True)
    world.views[world.decode] = refused
    assert health(world).reason == "ReportRefused"
    for words in (world.decode, "HTTP 401", "token"):
        assert words in health(world).message


def test_agent_that_is_down_is_not_called_unreachable(world, pod_statuses):
    world.pod(world.decode)["status"]["initContainerStatuses"] = [
        pod_statuses["container"]("transfer-agent", ready=False)
    ]
    world.views[world.decode] = AgentView(error="refused", failing_since=world.now - 99)
    assert health(world).status == "Unknown"


@pytest.mark.parametrize(
    ("transports", "expected"),
    [
        (("tcp", "tcp"), "tcp"),
        (("rdma", "tcp"), "mixed"),
        (("unknown", "rdma"), "rdma"),
        (("unknown", "unknown"), "unknown"),
    ],
)
def test_transport_of_all_agents_becomes_one_word(world, reported, transports, expected):
    for pod, transport in zip((world.prefill, world.decode), transports, strict=True):
        world.tell(reported.report(pod, transport=transport))
    assert world.status().transport == expected


def test_active_faults_are_in_the_status(world, reported):
    tell(world, reported, faults=("withhold:mamba",))
    assert world.status().transfer.active_faults == ("withhold:mamba",)


def test_alias_of_a_state_type_has_no_row_of_its_own(world, deployment, reported):
    world.deployment = deployment(model={"stateTypes": ["kv", "dsa"]})
    world.cluster.converge(world.deployment)
    tell(world, reported, decode=[reported.row("nsa", transfers=1)])
    assert [row.type for row in world.status().transfer.state_types] == ["kv", "nsa"]


def test_totals_survive_a_restarted_agent(world, reported):
    tell(world, reported, decode=[reported.row("kv", transfers=5)], incarnation="a")
    assert row_of(world, "kv").transfers == 5
    tell(world, reported, decode=[reported.row("kv", transfers=1)], incarnation="b")
    assert row_of(world, "kv").transfers == 6


def test_totals_survive_a_pod_that_is_gone(world, reported):
    tell(world, reported, decode=[reported.row("kv", transfers=5)])
    world.status()
    world.views.clear()
    assert row_of(world, "kv").transfers == 5


def test_totals_survive_a_restarted_operator(world, reported):
    tell(world, reported, decode=[reported.row("kv", transfers=5)])
    world.status()
    world.tally = type(world.tally)()
    tell(world, reported, decode=[reported.row("kv", transfers=7)])
    assert row_of(world, "kv").transfers == 7
    world.tally = type(world.tally)()
    tell(world, reported, decode=[reported.row("kv", transfers=2)], incarnation="b")
    assert row_of(world, "kv").transfers == 7, "never back"
    tell(world, reported, decode=[reported.row("kv", transfers=3)], incarnation="b")
    assert row_of(world, "kv").transfers == 8

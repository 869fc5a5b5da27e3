"""A deployment's key is replaced while requests go on; a withdrawn key ends what it alone holds."""

import threading

import pytest

from disagg_fuzz.examples import example
from disagg_transfer.bond import Bond
from disagg_transfer.client import TransferFailed
from disagg_transfer.contract import key_id
from disagg_transfer.errors import AuthenticationError
from disagg_transfer.local import LocalAgent
from disagg_transfer.protocol import Hello, Holds, Transcript, Welcome

OLD, NEW = b"the old key, 16+", b"the new key, 16+"


def mount(agent, *keys):
    """As kubelet does: the whole file at once."""
    fresh = agent.folder / "fresh"
    fresh.write_bytes(b"\n".join(keys) + b"\n")
    fresh.rename(agent.folder / "key")


def reads(agent, count):
    """Whether the agent has said that it has read its file, so often."""
    return agent.log.count("keys now: ") == count


def requests(pair, rooms):
    """One after the other in a thread of their own until `stop` is set; what each came to."""
    stop, outcomes = threading.Event(), []

    def run():
        while not stop.is_set():
            try:
                pair.round_trip(next(rooms))
                outcomes.append("")
            except TransferFailed as failure:
                outcomes.append(str(failure))

    traffic = threading.Thread(target=run)
    traffic.start()
    return stop, outcomes, traffic


def await_grace(kit):
    grace_is_over = threading.Event()
    threading.Timer(7, grace_is_over.set).start()  # GRACE_S, and a second to read
    kit.until(grace_is_over.is_set)


def test_a_key_is_rotated_under_traffic_and_nothing_fails(tmp_path, rooms, kit):
    with kit.agents(tmp_path, both={"key": OLD}) as pair:
        stop, outcomes, traffic = requests(pair, rooms)
        for count, (agent, keys) in enumerate(
            [
                (pair.decode, (NEW, OLD)),
                (pair.prefill, (NEW, OLD)),
                (pair.prefill, (NEW,)),
                (pair.decode, (NEW,)),
            ]
        ):
            mount(agent, *keys)
            kit.until(lambda agent=agent, count=count: reads(agent, 1 + count // 2))
        before = len(outcomes)
        await_grace(kit)
        kit.until(lambda: len(outcomes) > before + 2)
        stop.set()
        traffic.join(10)
        assert not any(outcomes), outcomes
        assert "lost" not in pair.decode.log  # the session of before

        with LocalAgent(
            tmp_path / "n", role="decode", pod="late", key=NEW, peers=[pair.peer]
        ) as late:
            kit.until(lambda: [peer.state for peer in late.report().peers] == ["up"])
        with LocalAgent(
            tmp_path / "o", role="decode", pod="thief", key=OLD, peers=[pair.peer]
        ) as thief:
            told = "does not hold this deployment's key"
            kit.until(lambda: any(told in peer.detail for peer in thief.report().peers))


@pytest.mark.parametrize("first", ["prefill", "decode"])
def test_generations_follow_under_traffic_and_nothing_fails(tmp_path, rooms, kit, first):
    """As the operator rotates: each file has the new key and the one before, each agent reads it
    at its own time, and the report is asked for with a token of the key before.
    """
    keys = [f"key of generation {number}".encode() for number in range(5)]
    with kit.agents(tmp_path, both={"key": b"\n".join((keys[1], keys[0]))}) as pair:
        stop, outcomes, traffic = requests(pair, rooms)
        order = [pair.prefill, pair.decode] if first == "prefill" else [pair.decode, pair.prefill]
        for generation in (2, 3, 4):
            for agent in order:
                mount(agent, keys[generation], keys[generation - 1])
                agent.report()  # with a token of the key before, which it holds either way
                kit.until(lambda agent=agent, n=generation: reads(agent, n - 1))
                agent.report()
                before = len(outcomes)
                kit.until(lambda before=before: len(outcomes) > before + 2)
        await_grace(kit)
        stop.set()
        traffic.join(10)
        assert not any(outcomes), outcomes
        assert "lost" not in pair.decode.log  # the session that began with generation 1
        refused = b'http_refusals_total{reason="authentication"} 0.0'
        assert refused in pair.decode.get("/metrics")


def test_a_session_of_a_withdrawn_key_alone_ends(tmp_path, kit):
    with kit.agents(tmp_path, both={"key": OLD}) as pair:
        mount(pair.prefill, NEW)
        kit.until(lambda: [p.state for p in pair.prefill.status().peers] == ["down"])
        (peer,) = pair.prefill.status().peers
        assert "the key it began with is withdrawn" in peer.detail


def test_a_file_that_is_no_key_changes_nothing(tmp_path, rooms, kit):
    with kit.agents(tmp_path, both={"key": OLD}) as pair:
        mount(pair.decode, b"short")
        kit.until(lambda: "the keys stay as they are: DISAGG_KEY_FILE" in pair.decode.log)
        pair.round_trip(next(rooms))


def script():
    return Transcript(hello=example(Hello), welcome=example(Welcome))


def bonds():
    return (
        Bond(script(), key=OLD, ours=b"dialer", theirs=b"listener"),
        Bond(script(), key=OLD, ours=b"listener", theirs=b"dialer"),
    )


def named(*keys):
    return {key_id(key): key for key in keys}


def test_a_key_shown_before_this_side_has_read_it_counts_once_it_has():
    dialer, listener = bonds()
    for message in dialer.news(named(NEW, OLD)):
        listener.claim(message)
    assert not list(dialer.news(named(NEW, OLD)))  # once is enough
    assert listener.stands(named(OLD))
    assert listener.stands(named(NEW))
    assert not dialer.stands(named(NEW))  # the listener has shown nothing


def test_a_proof_is_not_the_other_side_s_nor_of_another_key():
    dialer, listener = bonds()
    (own,) = dialer.news(named(NEW, OLD))
    for false in (own, Holds(key=key_id(NEW), proof=bytes(32))):
        dialer.claim(false)
        with pytest.raises(AuthenticationError):
            dialer.stands(named(NEW))
    assert not listener.stands(named(NEW))


def test_claims_of_unknown_keys_are_few():
    dialer, _ = bonds()
    for number in range(1000):
        dialer.claim(Holds(key=number.to_bytes(8, "big"), proof=bytes(32)))
    assert len(dialer._claims) == 4

"""One socket, no reader thread: whoever waits for an answer reads it, and those of the others."""

import contextlib
import random
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from disagg_transfer.client.conversation import Ask
from disagg_transfer.client.line import Answers, Line
from disagg_transfer.codec import frame
from disagg_transfer.contract import Cause
from disagg_transfer.engine_messages import ANSWERS, Done
from disagg_transfer.errors import TransferFailed

CALL = struct.Struct("!I")
WITHIN_S = 10  # of a machine that does a dozen other things
pytestmark = pytest.mark.timeout(60)


def ask(call):
    return Ask(call=call, frame=CALL.pack(call), read=lambda answer: answer.call)


class FakeAgent:
    """Its end of the socket; answers calls when and in which order the test says."""

    def __init__(self, plain):
        self.plain = plain

    def asked(self, calls):
        """Return once so many have come, in their order."""
        data = b""
        while len(data) < CALL.size * calls:
            data += self.plain.recv(4096)
        return [number for (number,) in CALL.iter_unpack(data)]

    def answer(self, *calls):
        self.plain.sendall(b"".join(frame(ANSWERS.encode(Done(call=call))) for call in calls))


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    theirs.settimeout(WITHIN_S)
    line = Line(ours)
    with contextlib.closing(theirs), contextlib.closing(line):
        yield line, FakeAgent(theirs)


def test_each_caller_gets_its_own_answer_in_whatever_order_they_come(ends):
    line, agent = ends
    order = random.Random(7)
    with ThreadPoolExecutor(16) as callers:
        for first in range(0, 480, 16):
            calls = [callers.submit(line.ask, ask(call)) for call in range(first, first + 16)]
            asked = agent.asked(16)
            order.shuffle(asked)
            cut = order.randrange(17)
            agent.answer(*asked[:cut])
            agent.answer(*asked[cut:])
            assert [call.result(WITHIN_S) for call in calls] == list(range(first, first + 16))


def test_who_has_its_answer_leaves_the_reading_to_one_that_still_waits(ends):
    line, agent = ends
    with ThreadPoolExecutor(3) as callers:
        waiting = {}
        for call in (1, 2, 3):
            waiting[call] = callers.submit(line.ask, ask(call))
            agent.asked(1)  # so the first one reads
        for call in (1, 3, 2):
            agent.answer(call)
            assert waiting.pop(call).result(WITHIN_S) == call


def test_answers_of_one_call_wait_for_it_in_their_order(ends):
    line, agent = ends
    words = Answers()
    line.open(1, CALL.pack(1), words)
    agent.asked(1)
    agent.answer(1)
    assert line.take(words).call == 1


def test_a_caller_that_is_interrupted_as_it_reads_leaves_the_others_a_reader(ends):
    line, agent = ends

    class Interrupted:
        """Stands for a signal that arrives in recv."""

        def recv(self, size):
            agent.asked(2)  # both are waiting now, this one reads
            line._socket = plain
            raise KeyboardInterrupt

        def __getattr__(self, name):
            return getattr(plain, name)

    plain, line._socket = line._socket, Interrupted()
    with ThreadPoolExecutor(2) as callers:
        interrupted = callers.submit(line.ask, ask(1))
        other = callers.submit(line.ask, ask(2))
        with pytest.raises(KeyboardInterrupt):
            interrupted.result(WITHIN_S)
        agent.answer(2)
        assert other.result(WITHIN_S) == 2


def test_the_end_is_told_to_all_who_wait_after_what_the_agent_said_before_it(ends):
    line, agent = ends
    with ThreadPoolExecutor(3) as callers:
        calls = [callers.submit(line.ask, ask(call)) for call in (1, 2, 3)]
        agent.asked(3)
        agent.answer(2)
        agent.plain.shutdown(socket.SHUT_RDWR)
        assert calls[1].result(WITHIN_S) == 2
        for call in (calls[0], calls[2]):
            with pytest.raises(TransferFailed) as raised:
                call.result(WITHIN_S)
            assert raised.value.cause is Cause.ENGINE_LOST
    assert line.lost.wait(WITHIN_S)


def test_the_end_is_noticed_while_nobody_waits(ends):
    line, agent = ends
    assert not line.lost.is_set()
    agent.plain.shutdown(socket.SHUT_RDWR)
    assert line.lost.wait(WITHIN_S)
    with pytest.raises(TransferFailed):
        line.ask(ask(1))


def test_an_answer_that_is_none_ends_the_line(ends):
    line, agent = ends
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(line.ask, ask(1))
        agent.asked(1)
        agent.plain.sendall(frame(b"nonsense"))
        with pytest.raises(TransferFailed):
            call.result(WITHIN_S)
    assert line.lost.wait(WITHIN_S)

"""Only what `up` started is ever signalled, and a program runs as it is wanted now."""

import dataclasses
import os
import time

import pytest

from disagg_cluster import processes
from disagg_cluster.errors import ComponentError
from disagg_cluster.processes import Program

SLEEPER = Program(name="sleeper", argv=("sleep", "60"))


@pytest.fixture
def run(tmp_path):
    yield tmp_path
    processes.stop(processes.records(tmp_path), run=tmp_path, grace_s=0)


def test_a_running_program_is_left_alone(run):
    assert processes.ensure(SLEEPER, run=run, logs=run)
    first = processes.read_record(run, "sleeper")
    assert not processes.ensure(SLEEPER, run=run, logs=run)
    assert processes.read_record(run, "sleeper") == first


def test_a_killed_program_is_started_again(run):
    processes.ensure(SLEEPER, run=run, logs=run)
    record = processes.read_record(run, "sleeper")
    os.kill(record.pid, 9)
    _wait_until(lambda: not processes.is_alive(record))
    assert processes.ensure(SLEEPER, run=run, logs=run)
    assert processes.is_alive(processes.read_record(run, "sleeper"))


def test_other_arguments_restart_it(run):
    processes.ensure(SLEEPER, run=run, logs=run)
    before = processes.read_record(run, "sleeper")
    assert processes.ensure(dataclasses.replace(SLEEPER, argv=("sleep", "61")), run=run, logs=run)
    assert not processes.is_alive(before)


def test_a_changed_configuration_file_restarts_it(run):
    config = run / "config"
    config.write_text("one")
    program = dataclasses.replace(SLEEPER, files=(config,))
    processes.ensure(program, run=run, logs=run)
    assert not processes.ensure(program, run=run, logs=run)
    config.write_text("two")
    assert processes.ensure(program, run=run, logs=run)


def test_stop_ends_it_and_forgets_it(run):
    record = processes.start(SLEEPER, run=run, logs=run)
    processes.stop([record], run=run, grace_s=0)
    assert not processes.is_alive(record)
    assert processes.records(run) == []


@pytest.mark.parametrize("stale", [{"start_tick": 1}, {"boot": "another"}])
def test_a_pid_that_was_used_again_is_never_signalled(run, stale):
    record = processes.start(SLEEPER, run=run, logs=run)
    processes.stop([dataclasses.replace(record, **stale)], run=run, grace_s=0)
    assert processes.is_alive(record)
    processes.stop([record], run=run, grace_s=0)


def test_its_output_is_in_its_log(run):
    talker = Program(name="talker", argv=("sh", "-c", "echo so it is; exec sleep 60"))
    processes.ensure(talker, run=run, logs=run)
    _wait_until(lambda: "so it is" in processes.log_tail(run, "talker"))


def test_a_program_that_is_not_there_says_which(run):
    with pytest.raises((ComponentError, FileNotFoundError), match="no-such-program"):
        processes.start(Program(name="x", argv=("no-such-program",)), run=run, logs=run)


def _wait_until(is_so, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)

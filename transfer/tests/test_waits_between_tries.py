"""Back-off, with chance as a number."""

from disagg_transfer.agent.backoff import BackOff


def test_waits_double_up_to_a_ceiling_and_start_again_after_a_success():
    backoff = BackOff(first_s=0.5, ceiling_s=3, chance=lambda: 0.5)
    assert [backoff.failed() for _ in range(5)] == [0.5, 1, 2, 3, 3]
    assert backoff.failures == 5
    backoff.succeeded()
    assert backoff.failed() == 0.5


def test_chance_moves_a_wait_by_a_quarter_either_way():
    assert BackOff(first_s=1, ceiling_s=9, chance=lambda: 0).failed() == 0.75
    assert BackOff(first_s=1, ceiling_s=9, chance=lambda: 1).failed() == 1.25


def test_a_thousand_failures_wait_for_the_ceiling():
    backoff = BackOff(ceiling_s=10, chance=lambda: 0.5)
    assert [backoff.failed() for _ in range(1000)][-1] == 10

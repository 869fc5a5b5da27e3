"""How much a new status differs from the one that is there: pure."""

from enum import Enum

from disagg_operator.api.status import DisaggDeploymentStatus, StateTypeStatus

# Traffic alone changes the status at most this often for one resource, and WRITES_PER_S times a
# second for all of them together; raw numbers are in the agents' metrics.
COUNTER_FLOOR_S = 2.0
WRITES_PER_S = 50.0


class Change(Enum):
    NONE = 0
    COUNTERS = 1  # may wait for the floor
    NEWS = 2  # somebody may be waiting for it


def change_of(before: DisaggDeploymentStatus, after: DisaggDeploymentStatus) -> Change:
    if before == after:
        return Change.NONE
    return Change.COUNTERS if _muted(before) == _muted(after) else Change.NEWS


def counter_floor_s(resources: int) -> float:
    return max(COUNTER_FLOOR_S, resources / WRITES_PER_S)


def _muted(status: DisaggDeploymentStatus) -> DisaggDeploymentStatus:
    if status.transfer is None:
        return status
    rows = tuple(_muted_row(row) for row in status.transfer.state_types)
    transfer = status.transfer.model_copy(update={"state_types": rows})
    return status.model_copy(update={"transfer": transfer})


def _muted_row(row: StateTypeStatus) -> StateTypeStatus:
    """Without numbers and times: one more failure of the same pair in the same stage for the same
    cause is a number, another pair or stage is news.
    """
    failure = row.last_failure
    if failure is not None:
        failure = failure.model_copy(update={"time": "", "message": ""})
    return StateTypeStatus(type=row.type, last_failure=failure)

"""Failures as values: made here, said to the peer, heard from the peer."""

from disagg_transfer.agent.session import Session
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.errors import TransferFailed
from disagg_transfer.protocol import Failed

_MAX_DETAIL = 2048


def tell(session: Session, *, room: int, request: bytes | None, failure: TransferFailed) -> None:
    session.send(
        Failed(
            room=room,
            request=request,
            cause=failure.cause,
            stage=failure.stage,
            state_type=failure.state_type,
            component=failure.component,
            detail=failure.detail[:_MAX_DETAIL],
        )
    )


def heard(message: Failed, *, pod: str) -> TransferFailed:
    return TransferFailed(
        message.cause,
        stage=message.stage,
        state_type=message.state_type,
        component=message.component,
        detail=message.detail,
        peer_pod=pod,
    )


def restaged(failure: TransferFailed, stage: Stage) -> TransferFailed:
    """The same failure as one request met it."""
    return TransferFailed(
        failure.cause, stage=stage, detail=failure.detail, peer_pod=failure.peer_pod
    )


def misuse(detail: str, *, stage: Stage = Stage.QUEUE) -> TransferFailed:
    return TransferFailed(Cause.PROTOCOL_ERROR, stage=stage, detail=detail)


def refused(detail: str) -> TransferFailed:
    """An engine never took its copy of the request up; the other copy ends with its words."""
    return TransferFailed(Cause.ABORTED, stage=Stage.QUEUE, detail=detail)


def told_differences(session: Session) -> TransferFailed:
    told = "; ".join(str(difference) for difference in session.differences)
    return TransferFailed(
        Cause.LAYOUT_MISMATCH, stage=Stage.BOOTSTRAP, detail=told, peer_pod=session.peer.pod
    )

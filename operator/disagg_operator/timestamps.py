"""Unix seconds and RFC 3339 text, both ways."""

from datetime import UTC, datetime


def timestamp(seconds_since_epoch: float) -> str:
    """Milliseconds tell two failures of one second apart."""
    moment = datetime.fromtimestamp(seconds_since_epoch, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def timestamp_s(seconds_since_epoch: float) -> str:
    """Whole seconds, as metav1.Time has them: conditions."""
    moment = datetime.fromtimestamp(seconds_since_epoch, tz=UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def timestamp_us(seconds_since_epoch: float) -> str:
    """Microseconds, as metav1.MicroTime demands: Events."""
    moment = datetime.fromtimestamp(seconds_since_epoch, tz=UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()

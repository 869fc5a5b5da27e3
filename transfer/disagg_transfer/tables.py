"""What a human reads of an agent: tables from the JSON that the agent answers. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from disagg_transfer.contract import PeerState

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP: Final = 1024
_NOTHING: Final = "-"

Json = Mapping[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they must be; the last one is not padded."""
    lines = [header, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    return "\n".join(
        "  ".join(
            cell if place == len(header) - 1 else cell.ljust(widths[place])
            for place, cell in enumerate(line)
        ).rstrip()
        for line in lines
    )


def size(nbytes: float) -> str:
    power = 0
    while nbytes >= _STEP and power < len(_UNITS) - 1:
        nbytes, power = nbytes / _STEP, power + 1
    return f"{nbytes:.1f} {_UNITS[power]}" if power else f"{nbytes:.0f} B"


def age(at: float | None, *, now: float) -> str:
    if at is None:
        return _NOTHING
    seconds = max(0, round(now - at))
    for length, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def status(report: Json) -> str:
    """The report in one screen: how the agent is, then a row for each state type."""
    facts = [
        ("pod", f"{report['pod']}, {report['role']} of revision {report['revision']}"),
        ("ready", _ready(report)),
        ("engine", _engine(report["engine"])),
        ("peers", _peers_summary(report["peers"])),
        ("transport", _because(report["transport"], report["transportReason"])),
        ("arena", _arena(report["arena"])),
        ("requests", f"{report['inflight']} in flight"),
        ("strangers", f"{report['strangersRefused']} connections turned away"),
        ("faults", ", ".join(report["faults"]) or "none"),
    ]
    rows = [_state_type(row, now=report["time"]) for row in report["stateTypes"]]
    header = ("STATE TYPE", "TRANSFERS", "BYTES", "TIMEOUTS", "FAILURES", "MOVED", "LAST FAILURE")
    told = "\n".join(f"{name:<10} {value}" for name, value in facts)
    return f"{told}\n\n{table(header, rows)}" if rows else told


def peers(report: Json) -> str:
    """A row for each peer, with what preflight found of it."""
    found = {row["pod"]: row for row in report["preflight"]}
    header = ("POD", "STATE", "PREFLIGHT", "GB/S", "LATENCY", "TRANSPORT", "CHECKED", "DETAIL")
    rows = []
    for peer in report["peers"]:
        row = found.get(peer["pod"])
        seen = _sampled(row) if row else (_NOTHING,) * 4
        at = age(row["at"], now=report["time"]) if row else _NOTHING
        detail = peer["detail"] or (_cause(row) if row else "")
        rows.append((peer["pod"], peer["state"], *seen, at, detail))
    return table(header, rows) if rows else "no peers"


def probes(rows: Sequence[Json]) -> str:
    header = ("POD", "RESULT", "GB/S", "LATENCY", "TRANSPORT", "DETAIL")
    return table(
        header, [(row["pod"], *_sampled(row), _cause(row) or row["detail"]) for row in rows]
    )


def transfers(rows: Sequence[Json]) -> str:
    """A row for each request in flight, oldest first."""
    header = ("ROOM", "RANK", "STATE", "PEER", "AGE", "COMPONENTS")
    ordered = sorted(rows, key=lambda row: -row["age_s"])
    cells = [
        (
            str(row["room"]),
            str(row["rank"]),
            row["state"],
            row["peer_pod"] or _NOTHING,
            f"{row['age_s']:.3f} s",
            row["components"] or _NOTHING,
        )
        for row in ordered
    ]
    return table(header, cells) if cells else "no request in flight"


def _ready(report: Json) -> str:
    if report["ready"]:
        return "yes"
    return f"no, {report['notReadyReason']}: {report['notReadyMessage']}"


def _because(what: str, reason: str) -> str:
    return f"{what} ({reason})" if reason else what


def _engine(engine: Json) -> str:
    if not engine["connected"]:
        return "not registered"
    return ", ".join(
        part["name"]
        if part["name"] == part["stateType"]
        else f"{part['name']} ({part['stateType']})"
        for part in engine["components"]
    )


def _peers_summary(found: Sequence[Json]) -> str:
    counts = dict.fromkeys(PeerState, 0)
    for peer in found:
        counts[peer["state"]] += 1
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return told or "none"


def _arena(arena: Json) -> str:
    unsettled = f", {size(arena['unsettled'])} unsettled" if arena["unsettled"] else ""
    return f"{size(arena['used'])} of {size(arena['bytes'])} used{unsettled}"


def _state_type(row: Json, *, now: float) -> tuple[str, ...]:
    pairs = row["pairs"]
    moved = max((pair["lastSuccess"] or 0.0 for pair in pairs), default=0.0)
    failures = [pair["lastFailure"] for pair in pairs if pair["lastFailure"]]
    last = max(failures, key=lambda failure: failure["time"], default=None)
    told = _NOTHING
    if last is not None:
        told = f"{last['cause']} in {last['stage']} {age(last['time'], now=now)} ago"
    counts = (str(row["transfers"]), size(row["bytes"]), str(row["timeouts"]), str(row["failures"]))
    return (row["type"], *counts, age(moved or None, now=now), told)


def _sampled(row: Json) -> tuple[str, str, str, str]:
    gbps, latency = row["gbps"], row["latencyMs"]
    return (
        row["state"],
        _NOTHING if gbps is None else f"{gbps:.2f}",
        _NOTHING if latency is None else f"{latency:.2f} ms",
        row["transport"],
    )


def _cause(row: Json) -> str:
    return f"{row['cause']}: {row['detail']}" if row["cause"] else ""

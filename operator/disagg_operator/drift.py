"""Whether an object still is as it was meant, and the intent that makes it so: pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from disagg_operator import names
from disagg_operator.intents import Apply, Intent
from disagg_operator.kinds import Json, Kind
from disagg_operator.observe import GuardRecord, RouterRecord, ServiceRecord


def applied(
    kind: Kind,
    body: Json,
    known: Mapping[str, ServiceRecord] | Mapping[str, RouterRecord] | Mapping[str, GuardRecord],
) -> Iterator[Intent]:
    name = body["metadata"]["name"]
    record = known.get(name)
    if record is None:
        yield Apply(kind=kind, name=name, body=body, reason="missing")
    elif record.intent != body["metadata"]["annotations"][names.ANNOTATION_INTENT]:
        yield Apply(kind=kind, name=name, body=body, reason="the intent changed")
    elif not holds(record.spec.value, body["spec"]):
        yield Apply(kind=kind, name=name, body=body, reason="somebody changed it")


def holds(live: Any, wanted: Any) -> bool:
    """Whether everything wanted is there; what the server or others added does not matter.

    Lists of named entries are compared by name, other lists in full: that is how server-side
    apply merges the lists that we send.
    """
    if isinstance(wanted, Mapping):
        # The server leaves empty values out when it answers.
        return isinstance(live, Mapping) and all(
            holds(live[key], item) if key in live else not item for key, item in wanted.items()
        )
    if isinstance(wanted, list):
        if not isinstance(live, list):
            return False
        if wanted and all(isinstance(item, Mapping) and "name" in item for item in wanted):
            named = {item.get("name"): item for item in live}
            return all(
                item["name"] in named and holds(named[item["name"]], item) for item in wanted
            )
        return len(live) == len(wanted) and all(map(holds, live, wanted))
    return bool(live == wanted)

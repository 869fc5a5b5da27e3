"""Whether this process still does its work, and all of it: what the kubelet's probes ask."""

from dataclasses import dataclass, field

from disagg_operator.runtime import Runtime

# Longer than all attempts of one request together: a pass this old hangs.
STUCK_AFTER_S = 300.0
# Kopf breaks a silent watch off after 40 s, and tries again.
LEFT_ALONE_AFTER_S = 150.0


@dataclass(slots=True)
class Health:
    runtime: Runtime
    _alone_since: dict[str, float] = field(default_factory=dict)  # by uid

    def shortcomings(self) -> list[str]:
        """Of readiness: the complaints, and what a new process would not do better either."""
        return self.complaints() + [
            f"not let in: {refusal}" for refusal in self.runtime.watches.refusals
        ]

    def complaints(self) -> list[str]:
        """Of liveness: one line for each thing that is wrong, with the names of what it is about."""
        found = {
            "passes that do not end": self._stuck_passes(),
            "watches that bring nothing": self.runtime.watches.stuck,
            "resources that no loop looks after": self._left_alone(),
        }
        return [f"{what}: {', '.join(whose)}" for what, whose in found.items() if whose]

    def _stuck_passes(self) -> list[str]:
        limit = self.runtime.clock() - STUCK_AFTER_S
        return sorted(
            f"{resource.namespace}/{resource.name}"
            for resource, started in self.runtime.running.items()
            if started < limit
        )

    def _left_alone(self) -> list[str]:
        """Resources that our watch has brought, and kopf's has not."""
        now = self.runtime.clock()
        alone = {
            record.uid: f"{record.namespace}/{record.name}"
            for record in self.runtime.store.resources()
            if (record.namespace, record.name) not in self.runtime.wakeups
            # One that is being deleted is no business of ours once our finalizer is off.
            and (record.held or not record.deleting)
        }
        self._alone_since = {uid: self._alone_since.get(uid, now) for uid in alone}
        limit = now - LEFT_ALONE_AFTER_S
        return sorted(alone[uid] for uid, since in self._alone_since.items() if since < limit)

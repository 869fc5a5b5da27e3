"""What pods of a revision share: the headless Service of a role, and the key."""

import base64
from typing import Any

from disagg_operator import names
from disagg_operator.api.resource import Deployment
from disagg_operator.render.metadata import labels, metadata, stamped
from disagg_transfer import contract

Object = dict[str, Any]


def peer_service(deployment: Deployment, *, role: str, revision: str) -> Object:
    """Headless Service of one role and revision: stable names, also of pods not ready yet."""
    own = labels(deployment, component=role, revision=revision)
    name = names.role_service_name(deployment.name, role=role, revision=revision)
    ports = {
        "http": deployment.spec.engine.port,
        "control": contract.CONTROL_PORT,
        "agent-http": contract.HTTP_PORT,
    }
    return stamped(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(deployment, name=name, labels=own),
            "spec": {
                "clusterIP": "None",
                # Agents meet before their pods are ready: readiness is that they have met.
                "publishNotReadyAddresses": True,
                "selector": selector(deployment, role=role, revision=revision),
                "ports": [service_port(name, port) for name, port in ports.items()],
            },
        }
    )


def selector(deployment: Deployment, *, role: str, revision: str) -> dict[str, str]:
    return {
        names.LABEL_DEPLOYMENT: deployment.name,
        names.LABEL_ROLE: role,
        names.LABEL_REVISION: revision,
    }


def service_port(name: str, port: int) -> Object:
    return {"name": name, "port": port, "targetPort": port, "protocol": "TCP"}


def key_secret(deployment: Deployment, *, revision: str, keys: bytes) -> Object:
    """Secret with the keys, one a line, by which agents of one revision know one another.

    Not immutable: a rotation changes it, and each agent reads its file again.
    """
    own = labels(deployment, component="key", revision=revision)
    name = names.key_secret_name(deployment.name, revision=revision)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(deployment, name=name, labels=own),
        "type": "Opaque",
        "data": {contract.KEY_PATH.rpartition("/")[2]: base64.b64encode(keys).decode()},
    }

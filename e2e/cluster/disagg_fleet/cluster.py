"""A control plane with simulated H200 nodes that serves our kinds."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kubernetes import client, config, utils

from disagg_cluster import control_plane
from disagg_operator import names
from disagg_operator.api import crd

_ESTABLISHED_S: Final = 30.0
_POLL_S: Final = 0.05


@contextlib.contextmanager
def fleet(*, nodes: int) -> Iterator[Path]:
    """Yields the path of an admin kubeconfig; without nodes every pod stays Pending."""
    with control_plane(kwok_nodes=nodes) as kubeconfig:
        with config.new_client_from_config(str(kubeconfig)) as api:
            install_crds(api)
        yield kubeconfig


def install_crds(api: client.ApiClient) -> None:
    """Returns once they are served."""
    deadline = time.monotonic() + _ESTABLISHED_S
    extensions = client.ApiextensionsV1Api(api)
    for document in crd.crds():
        utils.create_from_dict(api, document)
        name = document["metadata"]["name"]
        while not _established(extensions.read_custom_resource_definition(name)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} was not established within {_ESTABLISHED_S:g} s")
            time.sleep(_POLL_S)
    for document in crd.crds():
        while not _served(api, document["spec"]["names"]["plural"]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{document['metadata']['name']} cannot be listed")
            time.sleep(_POLL_S)


def _served(api: client.ApiClient, plural: str) -> bool:
    """A server that has just established a kind still says 429 for a moment: its storage begins."""
    try:
        client.CustomObjectsApi(api).list_cluster_custom_object(names.GROUP, names.VERSION, plural)
    except client.ApiException as refused:
        if refused.status in {404, 429}:
            return False
        raise
    return True


def _established(found: client.V1CustomResourceDefinition) -> bool:
    conditions = found.status.conditions if found.status else None
    return any(item.type == "Established" and item.status == "True" for item in conditions or ())

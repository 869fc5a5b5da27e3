"""The revision: a name for what the pods are made from."""

from disagg_operator.api.resource import Deployment
from disagg_operator.render.images import Images


def revision(deployment: Deployment, *, images: Images) -> str:
    """Five characters; the same for the same pods, whatever else of the spec changes.

    Not part of it: replicas, paused, the router (it has a Deployment of its own), and fields left
    at their defaults, so that a new field of a newer operator restarts nothing.
    """
    raise NotImplementedError

"""Images: the spec's, else the operator's defaults."""

from dataclasses import dataclass

from disagg_operator.api.resource import Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    agent: str
    engine: str  # the reference engine
    router: str


def agent_image(deployment: Deployment, images: Images) -> str:
    return deployment.spec.transfer.agent.image or images.agent


def engine_image(deployment: Deployment, images: Images) -> str:
    return deployment.spec.engine.image or images.engine


def router_image(deployment: Deployment, images: Images) -> str:
    return deployment.spec.router.image or images.router

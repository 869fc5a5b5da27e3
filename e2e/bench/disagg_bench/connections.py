"""A shape's engine, registered with its agent."""

from disagg_bench.shapes import Shape
from disagg_transfer.client import AgentClient


def connect(socket_path: str, *, role: str, shape: Shape) -> AgentClient:
    return AgentClient.connect(
        socket_path,
        role=role,
        model=shape.name,
        components=[block.component for block in shape.blocks],
        page_size=shape.blocks[0].page_size,
        timeout_s=30,
    )

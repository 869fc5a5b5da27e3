"""What the operator writes into pods itself, so a manifest may not."""

from typing import Literal

EngineType = Literal["reference", "sglang", "custom"]

# Flags of the engines' command lines that follow from the rest of the spec.
OWNED_FLAGS: dict[str, tuple[str, ...]] = {
    "reference": (
        "--role",
        "--model",
        "--model-id",
        "--host",
        "--port",
        "--socket",
        "--bootstrap-port",
    ),
    "sglang": (
        "--disaggregation-mode",
        "--disaggregation-transfer-backend",
        "--disaggregation-bootstrap-port",
        "--host",
        "--port",
        "--model-path",
        "--model",
        "--served-model-name",
        "--nnodes",
        "--node-rank",
        "--dist-init-addr",
        "--nccl-init-addr",
        "--enable-dp-attention",
        "--tp-size",
        "--tensor-parallel-size",
        "--tp",
        "--dp-size",
        "--data-parallel-size",
        "--dp",
        "--ep-size",
        "--expert-parallel-size",
        "--ep",
        "--pp-size",
        "--pipeline-parallel-size",
        "--pp",
    ),
    "custom": (),
}
# Flags of sglang-router's command line that follow from the rest of the spec.
OWNED_ROUTER_FLAGS = ("--pd-disaggregation", "--prefill", "--decode", "--host", "--port")

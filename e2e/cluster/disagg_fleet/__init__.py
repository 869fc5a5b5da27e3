"""A fleet without machines: an API server that serves our kinds, H200 nodes by kwok, the operator."""

from disagg_fleet.cluster import fleet, install_crds
from disagg_fleet.fake_pods import FakeAgent, FakeKubelet
from disagg_fleet.faulty_api import Asked, Fault, FaultyApi
from disagg_fleet.operator_process import OperatorProcess

__all__ = [
    "Asked",
    "FakeAgent",
    "FakeKubelet",
    "Fault",
    "FaultyApi",
    "OperatorProcess",
    "fleet",
    "install_crds",
]

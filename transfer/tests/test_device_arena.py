"""The device arena without a GPU: a driver made of host memory, and what is refused.

What only a GPU can show is in test_device_arena_on_a_gpu.py.
"""

# ruff: noqa: N802  (the driver's own names)

import contextlib
import ctypes
import gc
import os
import re
import socket
import struct
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import xxhash

from disagg_transfer import cuda_driver
from disagg_transfer.agent import memory as agent_memory
from disagg_transfer.agent.memory import open_memory, shown
from disagg_transfer.arena import ALIGNMENT, ArenaMemory, Span
from disagg_transfer.client import AgentClient, Component, RegistrationError
from disagg_transfer.codec import frame
from disagg_transfer.contract import ENV_ARENA_MEMORY, MemoryKind
from disagg_transfer.cuda_driver import Driver, _IpcHandle, _Uuid
from disagg_transfer.device_arena import STAGING_BYTES, DeviceMemory
from disagg_transfer.engine_messages import ANSWERS, GpuMemory, Registered
from disagg_transfer.engines import cuda
from disagg_transfer.errors import (
    AgentUnavailableError,
    ArenaError,
    DeviceError,
    FabricError,
    SettingsError,
)
from disagg_transfer.local import LocalAgent
from disagg_transfer.nixl_fabric import Fabric
from disagg_transfer.settings import from_environment
from disagg_transfer.ucx import UcxSettings

NO_GPU = pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="this machine has a GPU")
UUID = bytes(range(16))
NAMED = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"


class HostDriver:
    """libcuda's calls over host memory: real C functions, so that arguments cross as they would."""

    def __init__(self, *, uuids=(UUID,), failing=None):
        self.uuids, self.failing = uuids, failing or {}
        self.blocks, self.pinned, self.opened, self.depth = {}, set(), [], 0
        library = SimpleNamespace()
        for name, arguments in cuda_driver._CALLS.items():
            prototype = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)
            setattr(library, name, prototype(self.call(name)))
        self.library = library

    def call(self, name):
        def answer(*arguments):
            if name in self.failing:
                return self.failing[name]
            needs_context = re.match("cuMem|cuIpc", name)
            if needs_context and not self.depth:
                return 201  # CUDA_ERROR_INVALID_CONTEXT
            return getattr(self, name)(*arguments) or 0

        return answer

    def cuInit(self, flags):
        pass

    def cuGetErrorString(self, result, words):
        words[0] = b"out of memory" if result == 2 else b"no CUDA-capable device is detected"

    def cuDeviceGetCount(self, count):
        count[0] = len(self.uuids)

    def cuDeviceGet(self, device, ordinal):
        device[0] = ordinal

    def cuDeviceGetUuid_v2(self, found, device):
        found[0] = _Uuid.from_buffer_copy(self.uuids[device])

    def cuDevicePrimaryCtxRetain(self, context, device):
        context[0] = 1000 + device

    def cuCtxPushCurrent_v2(self, context):
        self.depth += 1

    def cuCtxPopCurrent_v2(self, context):
        self.depth -= 1

    def cuMemAlloc_v2(self, pointer, nbytes):
        block = ctypes.create_string_buffer(nbytes)
        self.blocks[ctypes.addressof(block)] = block
        pointer[0] = ctypes.addressof(block)

    def cuMemFree_v2(self, address):
        del self.blocks[address]

    def cuMemcpyDtoH_v2(self, into, address, nbytes):
        assert any(start <= into < start + size for start, size in self.pinned)
        ctypes.memmove(into, address, nbytes)

    def cuMemcpyHtoD_v2(self, address, data, nbytes):
        ctypes.memmove(address, data, nbytes)

    def cuMemsetD8_v2(self, address, value, nbytes):
        ctypes.memset(address, value, nbytes)

    def cuMemHostRegister_v2(self, address, nbytes, flags):
        self.pinned.add((address, nbytes))

    def cuMemHostUnregister(self, address):
        self.pinned = {each for each in self.pinned if each[0] != address}

    def cuIpcGetMemHandle(self, handle, address):
        handle[0] = _IpcHandle.from_buffer_copy(address.to_bytes(64, "little"))

    def cuIpcOpenMemHandle_v2(self, pointer, handle, flags):
        pointer[0] = int.from_bytes(bytes(handle), "little")
        self.opened.append(pointer[0])

    def cuIpcCloseMemHandle(self, address):
        self.opened.remove(address)


@pytest.fixture
def host():
    return HostDriver()


@pytest.fixture
def memory(host):
    driver = Driver(host.library)
    return DeviceMemory(2 * STAGING_BYTES + ALIGNMENT, gpu=driver.gpus[0], driver=driver)


def fill(memory, span, payload):
    ctypes.memmove(memory.base + span.offset, payload, len(payload))


@pytest.mark.parametrize("nbytes", [0, 1, 12_345, STAGING_BYTES, STAGING_BYTES + 1])
def test_a_digest_is_that_of_the_bytes_on_the_device(memory, nbytes):
    span, payload = Span(number=1, offset=ALIGNMENT, nbytes=nbytes), os.urandom(nbytes)
    fill(memory, span, payload)
    assert memory.digest(span) == xxhash.xxh3_128_digest(payload)


def test_a_span_is_zeroed_and_nothing_beside_it(memory):
    whole = Span(number=1, offset=0, nbytes=3 * ALIGNMENT)
    fill(memory, whole, b"x" * whole.nbytes)
    memory.zero(Span(number=2, offset=ALIGNMENT, nbytes=100))
    memory.zero(Span(number=3, offset=0, nbytes=0))
    expected = b"x" * ALIGNMENT + bytes(100) + b"x" * (2 * ALIGNMENT - 100)
    assert ctypes.string_at(memory.base, whole.nbytes) == expected


def test_bytes_are_written_to_their_span_whatever_the_memory(memory):
    for place in (memory, ArenaMemory(4 * ALIGNMENT)):
        span, data = Span(number=1, offset=ALIGNMENT, nbytes=300), os.urandom(300)
        place.write(span, data)
        assert place.digest(span) == xxhash.xxh3_128_digest(data)
        place.write(Span(number=2, offset=0, nbytes=0), b"")
        with pytest.raises(ArenaError, match="301 bytes for extent 1 of 300"):
            place.write(span, data + b"x")


def test_an_exported_arena_opens_where_it_was_allocated(host, memory):
    engine = Driver(host.library)
    assert len(memory.handle) == cuda_driver.IPC_HANDLE_BYTES
    address = engine.open(engine.gpu(NAMED), memory.handle)
    assert (address, host.opened) == (memory.base, [memory.base])
    engine.close(engine.gpu(NAMED), address)
    assert (host.opened, host.depth) == ([], 0)


def test_a_gpu_is_found_by_its_uuid_whatever_its_number():
    driver = Driver(HostDriver(uuids=(bytes(16), UUID)).library)
    assert driver.gpu(NAMED).ordinal == 1
    with pytest.raises(DeviceError, match=f"GPU-1 .* sees .*{NAMED}.*one resource claim"):
        driver.gpu("GPU-1")


@pytest.mark.parametrize(
    ("failing", "told"),
    [
        ({"cuInit": 100}, r"cuInit: no CUDA-capable device is detected \(CUDA error 100\)"),
        ({"cuMemAlloc_v2": 2}, r"cuMemAlloc_v2: out of memory \(CUDA error 2\)"),
    ],
)
def test_what_the_driver_refuses_is_told_in_its_words(failing, told):
    host = HostDriver(failing=failing)

    def allocate():
        driver = Driver(host.library)
        driver.allocate(driver.gpus[0], 4096)

    with pytest.raises(DeviceError, match=told):
        allocate()
    assert host.depth == 0


def test_a_driver_without_a_call_is_too_old(host):
    del host.library.cuIpcOpenMemHandle_v2
    with pytest.raises(DeviceError, match=r"no cuIpcOpenMemHandle_v2: .* too old"):
        Driver(host.library)


@pytest.mark.parametrize("size", [0, -ALIGNMENT, ALIGNMENT + 1])
def test_a_device_arena_of_a_bad_size_is_refused(host, size):
    driver = Driver(host.library)
    with pytest.raises(ArenaError, match=f"arena size {size} "):
        DeviceMemory(size, gpu=driver.gpus[0], driver=driver)


# -- what a machine without a GPU says


@NO_GPU
def test_an_agent_without_a_gpu_says_what_its_setting_needs_and_ends(tmp_path):
    env = {ENV_ARENA_MEMORY: "device"}
    with (
        pytest.raises(AgentUnavailableError) as ended,
        LocalAgent(tmp_path, role="prefill", env=env),
    ):
        pass
    told = r"disagg-agent: DISAGG_ARENA_MEMORY=device: .*(no NVIDIA driver|cuInit).*"
    assert re.search(told, str(ended.value)), ended.value


@NO_GPU
def test_nixl_does_not_take_host_memory_for_a_gpu_s():
    memory = ArenaMemory(ALIGNMENT)
    place = {"base": memory.base, "size": memory.size, "gpu": 0}
    with pytest.raises(FabricError, match="create the NIXL agent"):
        Fabric("n/p/1", ucx=UcxSettings(), passive=True, **place)


def test_a_peer_s_memory_is_read_as_what_it_said_it_is():
    """A region of the peer's GPU is no region of its host memory, and the other way round."""
    memory = ArenaMemory(4 * ALIGNMENT)
    there = {"base": memory.base, "size": memory.size, "ucx": UcxSettings(), "passive": True}
    ours = Fabric("n/d/1", **there)
    for name, gpu in (("n/p/1", None), ("n/p/2", 3)):
        theirs = Fabric(name, **there)
        said = struct.pack("!h", -1 if gpu is None else gpu)
        assert theirs.metadata[:2] == struct.pack("!h", -1)
        ours.add_peer(name, said + theirs.metadata[2:])
    ours.read("n/p/1", local=memory.base, remote=memory.base, nbytes=64)
    with pytest.raises(FabricError, match="prepare a read from n/p/2"):
        ours.read("n/p/2", local=memory.base, remote=memory.base, nbytes=64)
    with pytest.raises(FabricError, match="is 1 bytes"):
        ours.add_peer("n/p/3", b"x")


@pytest.mark.parametrize(("kind", "told"), [("gpu", "'gpu' is not one of host, device")])
def test_another_kind_of_memory_is_refused_by_name(tmp_path, kind, told):
    (tmp_path / "key").write_bytes(b"0" * 32)
    with pytest.raises(SettingsError, match=f"^{ENV_ARENA_MEMORY}: {told}"):
        from_environment(
            {
                "DISAGG_NAMESPACE": "a",
                "DISAGG_DEPLOYMENT": "b",
                "DISAGG_REVISION": "c",
                "DISAGG_ROLE": "prefill",
                "DISAGG_POD": "d",
                "DISAGG_KEY_FILE": str(tmp_path / "key"),
                ENV_ARENA_MEMORY: kind,
            }
        )


def test_a_rank_without_a_gpu_of_its_own_is_named(host, monkeypatch):
    driver = Driver(host.library)
    monkeypatch.setattr(agent_memory, "load", lambda: driver)
    found = open_memory(MemoryKind.DEVICE, ALIGNMENT, local_rank=0)
    assert (found.gpu.uuid, shown(found)) == (
        NAMED,
        ((), GpuMemory(uuid=NAMED, handle=found.handle)),
    )
    with pytest.raises(DeviceError, match=r"=device: engine rank 1 .* container sees 1"):
        open_memory(MemoryKind.DEVICE, ALIGNMENT, local_rank=1)


# -- the engine's side


class Opened:
    """In place of a tensor over device memory."""

    def __init__(self, *, handle, gpu, nbytes):
        self.told, self.bytes, self.closed = (
            (handle, gpu),
            bytes(range(256)) * (nbytes // 256),
            False,
        )

    def close(self):
        self.closed = True


def test_the_handle_reaches_the_engine_and_the_lifeline_ends_with_the_opened_arena(tmp_path):
    path, handle = str(tmp_path / "agent.sock"), bytes(range(64))
    ours, theirs = os.pipe()
    with serving(path, GpuMemory(uuid=NAMED, handle=handle), theirs):
        client = AgentClient.connect(path, **ENGINE, on_gpu=Opened)
    opened = client._conversation.arena._on_gpu
    assert opened.told == (handle, NAMED)
    chunk = client._conversation.arena.gpu(4096, 3)
    assert (chunk, bytes(client._conversation.arena.host(4096, 3))) == (b"\x00\x01\x02", b"")
    os.close(theirs)
    client.close()
    assert opened.closed
    del opened, chunk, client
    gc.collect()
    os.set_blocking(ours, False)
    assert os.read(ours, 1) == b""  # the agent's end: nothing of this engine writes there now
    os.close(ours)


def test_an_engine_that_cannot_open_a_gpu_s_arena_is_told_how(tmp_path):
    path = str(tmp_path / "agent.sock")
    ours, theirs = os.pipe()
    told = f"on GPU {NAMED}: connect with on_gpu="
    with (
        serving(path, GpuMemory(uuid=NAMED, handle=bytes(64)), theirs),
        pytest.raises(RegistrationError, match=told),
    ):
        AgentClient.connect(path, **ENGINE)
    os.close(ours)
    os.close(theirs)


def test_an_engine_on_the_cpu_has_nothing_to_pin():
    before = bytes(8)
    view = memoryview(bytearray(before))
    with cuda.pinned(view, device=torch.device("cpu")):
        assert bytes(view) == before


@NO_GPU
def test_pinning_without_a_driver_says_so():
    with (
        pytest.raises(DeviceError),
        cuda.pinned(memoryview(bytearray(8)), device=torch.device("cuda", 0)),
    ):
        pass


def test_an_engine_that_does_not_see_the_agent_s_gpu_is_told_which_it_sees(host, monkeypatch):
    monkeypatch.setattr(cuda, "load", lambda: Driver(host.library))
    with pytest.raises(DeviceError, match=f"GPU-elsewhere is not one .* sees .{NAMED}.*claim"):
        cuda.DeviceArena(handle=bytes(64), gpu="GPU-elsewhere", nbytes=ALIGNMENT)
    assert host.opened == []


ENGINE = {
    "role": "prefill",
    "model": "m",
    "page_size": 16,
    "timeout_s": 5,
    "components": (
        Component(name="kv", state_type="kv", item_bytes=8, layers=1, dtype="uint8", page_size=16),
    ),
}


@contextlib.contextmanager
def serving(path, gpu, lifeline):
    """An agent's answer to one registration."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def answer():
        plain, _ = listener.accept()
        with plain:
            plain.recv(1 << 16)
            registered = Registered(call=0, arena_bytes=2 * ALIGNMENT, epoch=1, gpu=gpu)
            socket.send_fds(plain, [frame(ANSWERS.encode(registered))], [lifeline])
            plain.recv(1)

    threading.Thread(target=answer, daemon=True).start()
    try:
        yield
    finally:
        listener.close()

"""The part of the CUDA driver that an arena needs, by ctypes: the agent's image has no torch.

Calls run in a device's primary context, which is also the one of torch and of UCX in the same
process. A GPU is named by its UUID: two containers may number the same ones differently.
"""

import contextlib
import ctypes
import functools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from disagg_transfer.errors import DeviceError

LIBRARY: Final = "libcuda.so.1"
IPC_HANDLE_BYTES: Final = 64
_PEER_ACCESS: Final = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
_PORTABLE: Final = 1  # CU_MEMHOSTREGISTER_PORTABLE: pinned for every GPU

_Pointer = ctypes.c_uint64  # CUdeviceptr


class _IpcHandle(ctypes.Structure):
    """CUipcMemHandle; passed by value."""

    _fields_ = (("reserved", ctypes.c_ubyte * IPC_HANDLE_BYTES),)


class _Uuid(ctypes.Structure):
    _fields_ = (("octets", ctypes.c_ubyte * 16),)


# What each call takes; every one returns a CUresult.
_CALLS: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (ctypes.c_uint,),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuDeviceGetCount": (ctypes.POINTER(ctypes.c_int),),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetUuid_v2": (ctypes.POINTER(_Uuid), ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int),
    "cuCtxPushCurrent_v2": (ctypes.c_void_p,),
    "cuCtxPopCurrent_v2": (ctypes.POINTER(ctypes.c_void_p),),
    "cuMemAlloc_v2": (ctypes.POINTER(_Pointer), ctypes.c_size_t),
    "cuMemFree_v2": (_Pointer,),
    "cuMemcpyDtoH_v2": (ctypes.c_void_p, _Pointer, ctypes.c_size_t),
    "cuMemcpyHtoD_v2": (_Pointer, ctypes.c_void_p, ctypes.c_size_t),
    "cuMemsetD8_v2": (_Pointer, ctypes.c_ubyte, ctypes.c_size_t),
    "cuMemHostRegister_v2": (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint),
    "cuMemHostUnregister": (ctypes.c_void_p,),
    "cuIpcGetMemHandle": (ctypes.POINTER(_IpcHandle), _Pointer),
    "cuIpcOpenMemHandle_v2": (ctypes.POINTER(_Pointer), _IpcHandle, ctypes.c_uint),
    "cuIpcCloseMemHandle": (_Pointer,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU that this process sees; `ordinal` is its number here and nowhere else."""

    ordinal: int
    uuid: str  # as nvidia-smi writes it: GPU-1a2b3c4d-...


class Driver:
    """Every call raises DeviceError with the driver's own words."""

    def __init__(self, library: Any) -> None:
        for name, arguments in _CALLS.items():
            try:
                function = getattr(library, name)
            except AttributeError as error:
                raise DeviceError(
                    f"{LIBRARY} has no {name}: the NVIDIA driver is too old for a device arena"
                ) from error
            function.argtypes, function.restype = arguments, ctypes.c_int
        self._library = library
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._do("cuInit", 0)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        count = ctypes.c_int()
        self._do("cuDeviceGetCount", ctypes.byref(count))
        return tuple(self._gpu(ordinal) for ordinal in range(count.value))

    def gpu(self, uuid_: str) -> Gpu:
        """The GPU of this UUID; DeviceError lists those that this process sees."""
        seen = self.gpus
        for gpu in seen:
            if gpu.uuid == uuid_:
                return gpu
        raise DeviceError(
            f"GPU {uuid_} is not one that this container sees ({_listed(seen)}); give the engine "
            "and the agent the same GPUs, by one resource claim for both"
        )

    def allocate(self, gpu: Gpu, nbytes: int) -> int:
        """The address of new device memory."""
        pointer = _Pointer()
        with self._current(gpu):
            self._do("cuMemAlloc_v2", ctypes.byref(pointer), nbytes)
        return pointer.value

    def free(self, gpu: Gpu, address: int) -> None:
        with self._current(gpu):
            self._do("cuMemFree_v2", address)

    def zero(self, gpu: Gpu, address: int, nbytes: int) -> None:
        with self._current(gpu):
            self._do("cuMemsetD8_v2", address, 0, nbytes)

    def fetch(self, gpu: Gpu, address: int, into: int, nbytes: int) -> None:
        """Copy device memory to this host address; it is there on return."""
        with self._current(gpu):
            self._do("cuMemcpyDtoH_v2", into, address, nbytes)

    def store(self, gpu: Gpu, address: int, data: bytes) -> None:
        """Copy these bytes to device memory."""
        with self._current(gpu):
            self._do("cuMemcpyHtoD_v2", address, data, len(data))

    def pin(self, gpu: Gpu, address: int, nbytes: int) -> None:
        """Make host memory one that copies to and from GPUs run at full speed with."""
        with self._current(gpu):
            self._do("cuMemHostRegister_v2", address, nbytes, _PORTABLE)

    def unpin(self, gpu: Gpu, address: int) -> None:
        with self._current(gpu):
            self._do("cuMemHostUnregister", address)

    def export(self, gpu: Gpu, address: int) -> bytes:
        """The handle by which another process opens the allocation that starts here."""
        handle = _IpcHandle()
        with self._current(gpu):
            self._do("cuIpcGetMemHandle", ctypes.byref(handle), address)
        return bytes(handle)

    def open(self, gpu: Gpu, handle: bytes) -> int:
        """The address here of another process's allocation. One process may open it once."""
        pointer = _Pointer()
        with self._current(gpu):
            self._do(
                "cuIpcOpenMemHandle_v2",
                ctypes.byref(pointer),
                _IpcHandle.from_buffer_copy(handle),
                _PEER_ACCESS,
            )
        return pointer.value

    def close(self, gpu: Gpu, address: int) -> None:
        with self._current(gpu):
            self._do("cuIpcCloseMemHandle", address)

    def _gpu(self, ordinal: int) -> Gpu:
        device, octets = ctypes.c_int(), _Uuid()
        self._do("cuDeviceGet", ctypes.byref(device), ordinal)
        self._do("cuDeviceGetUuid_v2", ctypes.byref(octets), device)
        return Gpu(ordinal=ordinal, uuid=f"GPU-{uuid.UUID(bytes=bytes(octets))}")

    @contextlib.contextmanager
    def _current(self, gpu: Gpu) -> Iterator[None]:
        """The GPU's primary context, on this thread for the length of the block."""
        context = self._contexts.get(gpu.ordinal)
        if context is None:
            device, context = ctypes.c_int(), ctypes.c_void_p()
            self._do("cuDeviceGet", ctypes.byref(device), gpu.ordinal)
            self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
            self._contexts[gpu.ordinal] = context
        self._do("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self._do("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _do(self, call: str, *arguments: Any) -> None:
        result = getattr(self._library, call)(*arguments)
        if result != 0:
            words = ctypes.c_char_p()
            self._library.cuGetErrorString(result, ctypes.byref(words))
            said = (words.value or b"no such error").decode()
            raise DeviceError(f"{call}: {said} (CUDA error {result})")


@functools.cache
def load() -> Driver:
    """The machine's driver; DeviceError says what is missing and what to do."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise DeviceError(
            f"no NVIDIA driver in this container ({error}); give the container a GPU, by a "
            "resource claim that it shares with the engine, or keep the arena in host memory"
        ) from error
    return Driver(library)


def _listed(gpus: tuple[Gpu, ...]) -> str:
    return ", ".join(gpu.uuid for gpu in gpus) or "none"

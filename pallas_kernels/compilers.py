"""Compiles for accelerators that are not present, with their own compilers: an H100 (XLA and ptxas), TPU v5e and v6e
(libtpu).

``pip install -e '.[compile]'`` installs the compilers. They refuse the same programs as on the device (too much shared
memory or VMEM, an unsupported layout), and they report the resources that a kernel uses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, SingleDeviceSharding

from pallas_kernels import dispatch

# XLA's description of the chip (GpuTargetConfigProto): NVIDIA's data sheet and CUDA's device properties of the SXM5
# form.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  l2_cache_size: 52428800 device_memory_size: 84978434048 memory_bandwidth: 3352320000000
}
platform_name: "CUDA"
"""


@dataclasses.dataclass(frozen=True)
class Device:
    """A device to compile for.

    Attributes:
      platform: as :func:`pallas_kernels.dispatch.platform` names it.
      topology: the compiler's name of the topology; for a GPU, with the number of devices in one host.
      kind: JAX's ``device_kind`` of it.
      cores: streaming multiprocessors, or tensor cores.
    """

    platform: str
    topology: str
    kind: str
    cores: int


DEVICES = {
    "h100": Device("gpu", "1x1x{}", "NVIDIA H100 80GB HBM3", 132),
    "v5e": Device("tpu", "v5e:2x2", "TPU v5 lite", 1),
    "v6e": Device("tpu", "v6e:2x2", "TPU v6 lite", 1),
}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The resources of one Pallas kernel; None for those that its compiler does not report.

    Attributes:
      name: name of the kernel's function.
      registers: registers per thread, before warpgroups reallocate them.
      spill_bytes: bytes of registers that each thread spills to memory.
      shared_bytes: shared memory of a thread block.
      vmem_bytes: vector memory of a TPU core.
      remarks: the compiler's warnings.
    """

    name: str
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    vmem_bytes: int | None = None
    remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its Pallas kernels, and the sizes of its device memory in bytes."""

    kernels: tuple[Kernel, ...]
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int


def missing(device: str) -> str | None:
    """Why programs can't be compiled here for ``device`` ("h100", "v5e", "v6e"); None if they can."""
    if _known(device).platform == "tpu":
        return None if importlib.util.find_spec("libtpu") else _remedy("libtpu", device)
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        return _remedy("jax-cuda13-plugin", device)
    if not _ptxas():
        return _remedy("nvidia-cuda-nvcc", device)
    if not getattr(jax.config, "jax_platforms", None) and jax.default_backend() == "cpu":
        return (
            f"to compile for {device} on a machine without a GPU, set JAX_PLATFORMS=cpu: "
            "JAX drops its CUDA plugin where it finds no driver"
        )
    return None


def mesh_of(device: str, sizes: Mapping[str, int]) -> Mesh:
    """A mesh of devices that need not be present (at most four of a TPU), with axes of ``sizes`` by name; errors as for
    :func:`compile_for`.
    """
    if (reason := missing(device)) is not None:
        raise RuntimeError(reason)
    count = math.prod(sizes.values())
    devices = np.asarray(_topology(device, count).devices[:count]).reshape(*sizes.values())
    return Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def lower_for(
    device: str, function: Callable[..., Any], *arguments: Any, mesh: Mesh | None = None
) -> jax.stages.Lowered:
    """Lowers ``function(*arguments)``, including kernels, for a device that need not be present; arguments and errors
    as for :func:`compile_for`.
    """
    target = _known(device)
    if (reason := missing(device)) is not None:
        raise RuntimeError(reason)
    if mesh is None:
        sharding = SingleDeviceSharding(_topology(device).devices[0])
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)
    with dispatch.platform(target.platform), _target(target) if mesh is None else jax.set_mesh(mesh):
        # A new function each time, so that JAX does not reuse a trace for another platform.
        return jax.jit(lambda *a: function(*a)).lower(*arguments)


def compile_for(device: str, function: Callable[..., Any], *arguments: Any, mesh: Mesh | None = None) -> Program:
    """Compiles ``function(*arguments)`` for a device that need not be present.

    Args:
      device: "h100", "v5e" or "v6e".
      function: any function that JAX can trace; ops inside choose implementations as they would on the device.
      *arguments: pytrees of arrays or ``jax.ShapeDtypeStruct``; with ``mesh``, of ``ShapeDtypeStruct`` with shardings
        on it.
      mesh: the result of :func:`mesh_of`; by default the program is for one device.

    Returns:
      The compiled program. A GPU kernel that this process has compiled before is not reported again.

    Raises:
      RuntimeError: the device's compiler is not installed; the message says how to install it.
      ValueError: an unknown device. Errors of the compiler are raised unchanged.
    """
    lowered = lower_for(device, function, *arguments, mesh=mesh)
    if DEVICES[device].platform == "gpu":
        with _reports() as folder:
            compiled = lowered.compile()
            kernels = _gpu_kernels(folder)
    else:
        compiled = lowered.compile()
        kernels = _tpu_kernels(compiled.as_text() or "")
    memory: Any = compiled.memory_analysis()
    return Program(kernels, memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)


def _known(device: str) -> Device:
    if device not in DEVICES:
        raise ValueError(f"compilers: there is no device {device!r}; there are {', '.join(DEVICES)}")
    return DEVICES[device]


def _remedy(package: str, device: str) -> str:
    return f"{package} is not installed, which compiling for {device} requires; pip install -e '.[compile]'"


def _ptxas() -> bool:
    packages = importlib.util.find_spec("nvidia")
    places = packages.submodule_search_locations if packages and packages.submodule_search_locations else ()
    toolkits = [*(Path(place) / "cu13" for place in places), Path("/usr/local/cuda")]
    return any((toolkit / "bin" / "ptxas").exists() for toolkit in toolkits) or shutil.which("ptxas") is not None


@functools.cache
def _topology(device: str, count: int = 1) -> Any:
    target = DEVICES[device]
    if target.platform == "gpu":
        return topologies.get_topology_desc("", "cuda", target_config=H100, topology=target.topology.format(count))
    return tpu_topology(target.topology)


def tpu_topology(name: str) -> Any:
    """JAX's description of a TPU topology, such as "v5e:2x2" or "v5p:16x16x16", whose ``devices`` can be compiled for,
    alone or in a mesh.
    """
    # Keeps libtpu from looking for chips and for other processes that use it.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    return topologies.get_topology_desc(platform="tpu", topology_name=name)


@contextlib.contextmanager
def _target(device: Device) -> Iterator[None]:
    """Sets the device that Pallas lowers for, which it reads from the mesh."""
    abstract = AbstractDevice(
        device_kind=device.kind,
        num_cores=device.cores,
        platform="cuda" if device.platform == "gpu" else device.platform,
    )
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("device",), (AxisType.Auto,), abstract_device=abstract)):
        yield


@contextlib.contextmanager
def _reports() -> Iterator[Path]:
    """A folder into which Mosaic GPU writes the output of ptxas."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"MOSAIC_GPU_DUMP_TO": folder, "MOSAIC_GPU_DUMP_PTXAS": "1"}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _gpu_kernels(folder: Path) -> tuple[Kernel, ...]:
    kernels = []
    for path in sorted(folder.glob("*.ptxas")):
        text = path.read_text()
        passes = path.with_name(path.stem + ".mlir-passes.log")
        kernels.append(
            Kernel(
                name=re.sub(r"_\d+$", "", path.stem),
                registers=_number(r"Used (\d+) registers", text),
                spill_bytes=_number(r"(\d+) bytes spill stores", text),
                shared_bytes=_number(
                    r"dynamic_shared_memory_size %c(\d+)_i32", passes.read_text() if passes.exists() else ""
                ),
                remarks=tuple(
                    line.strip()
                    for line in text.splitlines()
                    if re.search(r"warning|Performance Loss", line, re.IGNORECASE)
                ),
            )
        )
    return tuple(kernels)


def _tpu_kernels(program: str) -> tuple[Kernel, ...]:
    """Parses the compiled program's text, in which each kernel is a custom call that states its use of VMEM."""
    kernels = []
    for line in program.splitlines():
        if 'custom_call_target="tpu_custom_call"' not in line:
            continue
        name = re.match(r"\s*%?([\w-]+?)(\.\d+)* = ", line)
        used = re.search(r'"used_scoped_memory_configs":\[(.*?)\]', line)
        sizes = re.findall(r'"memory_space":"1","offset":"\d+","size":"(\d+)"', used.group(1)) if used else []
        plain = re.sub(r"^(transpose_)?(jvp_)?|_*$", "", name.group(1)) if name else "kernel"
        kernels.append(Kernel(name=plain, vmem_bytes=sum(map(int, sizes)) or None))
    return tuple(kernels)


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else None

#!/bin/sh
# XLA, GPU, jax 0.12.0.1 (0.10.2 and 0.11.2 do the same): a cumulative sum over a vector of fewer than 16 numbers with zeros put before them
# is not compiled. Expected: a program. Seen, on Hopper's target, with no GPU present:
#   cannot be converted to LLVM IR: missing `LLVMTranslationDialectInterface` registration for dialect for op: func.func
#   INTERNAL: RET_CHECK failure (.../mlir_kernel_emitter.cc:705) llvm_module != nullptr Failed to translate module to LLVM IR.
# 16 numbers or more compile, and so does the sum from the end, jax.lax.cumsum(..., reverse=True), which serves where the vector was flipped.
# Ends with 0 as long as this is so, with 1 once it changes. Needs Linux and Python 3.12 or later (3.11 gets jax 0.10.2);
# downloads about 300 MB into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
version=$(python3 -c 'import sys; print("0.12.0.1" if sys.version_info >= (3, 12) else "0.10.2")')
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax[cuda13-local]==$version" "nvidia-cuda-nvcc==13.5.37"
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  l2_cache_size: 52428800 device_memory_size: 84978434048 memory_bandwidth: 3352320000000
}
platform_name: "CUDA"
"""
device = topologies.get_topology_desc("", "cuda", target_config=H100, topology="1x1x1").devices[0]


def outcome(length, function):
    x = jax.ShapeDtypeStruct((length,), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(function).lower(x).compile()
    except jax.errors.JaxRuntimeError as error:
        return str(error).split("\n")[0]
    return "compiled"


def after_zeros(x):
    return jnp.cumsum(jnp.pad(x, (64 - x.size, 0)))


def from_the_end(x):
    return jax.lax.cumsum(jnp.pad(x, (0, 64 - x.size)), reverse=True)


seen = {"5 numbers": outcome(5, after_zeros), "20 numbers": outcome(20, after_zeros), "5 numbers, from the end": outcome(5, from_the_end)}
print("jax", jax.__version__, seen)
sys.exit("Failed to translate module to LLVM IR" not in seen.pop("5 numbers") or set(seen.values()) != {"compiled"})
PYTHON

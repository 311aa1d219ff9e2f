"""The accelerators that programs are compiled for, none of which is there."""

from typing import NamedTuple

# XLA takes from this text what it wants to know of a GPU; an H100 SXM, by NVIDIA's data sheet and `deviceQuery`.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Target(NamedTuple):
    """Devices of one kind.

    Attributes:
      title: as tables name it.
      platform: 'tpu' or 'cuda'.
      devices: how many.
      topology: how they are arranged, in the platform's own way.
    """

    title: str
    platform: str
    devices: int
    topology: str


TARGETS = {
    "v5e": Target("TPU v5e", "tpu", 1, "v5e:2x2"),
    "v5e-16": Target("16 TPU v5e", "tpu", 16, "v5e:4x4"),
    "v5e-256": Target("256 TPU v5e", "tpu", 256, "v5e:16x16"),
    "h100": Target("NVIDIA H100", "cuda", 1, "1x1x1"),
    "h100-8": Target("8 NVIDIA H100", "cuda", 8, "1x1x8"),
}

"""What devices can do, from their makers' pages: for estimates without one, and for the MFU."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import torch

from minigpt.config.commands import DeviceName


@dataclass(frozen=True)
class DeviceSpec:
    """A device. Rates are of dense matrices: makers also name twice as much, for matrices half of whose entries are 0.

    Rates are in TFLOP/s, for sums in float32.
    """

    name: str
    memory_gb: int
    bandwidth: float
    """Of its memory, in GB/s."""
    float32: float
    """Without TF32."""
    tf32: float | None
    half: float | None
    """float16, and bfloat16 where there is any; None where they are no faster than float32."""
    source: str
    has_bfloat16: bool = True

    @property
    def precision(self) -> str:
        """What trainer.precision=auto is there, see `trainer.best_precision`."""
        return "bf16-mixed" if self.half and self.has_bfloat16 else "32-true"

    @property
    def is_apple(self) -> bool:
        return self.name.startswith("Apple")

    def peak(self, precision: str) -> float:
        """Operations per second in one of Lightning's precisions; a 16-bit one that it lacks runs as float32."""
        is_half = precision.startswith("16") or (precision.startswith("bf16") and self.has_bfloat16)
        return 1e12 * ((self.half if is_half else self.tf32) or self.float32)


_NVIDIA, _APPLE = "https://www.nvidia.com/en-us/data-center", "https://www.apple.com/newsroom"
DEVICES: dict[DeviceName, DeviceSpec] = {
    "h200": DeviceSpec("NVIDIA H200", 141, 4800, 67, 494.5, 989, f"{_NVIDIA}/h200"),
    "h100": DeviceSpec("NVIDIA H100 SXM", 80, 3350, 67, 494.5, 989, f"{_NVIDIA}/h100"),
    "a100": DeviceSpec("NVIDIA A100 80GB", 80, 2039, 19.5, 156, 312, f"{_NVIDIA}/a100"),
    "l4": DeviceSpec("NVIDIA L4", 24, 300, 30.3, 60, 121, f"{_NVIDIA}/l4"),
    "t4": DeviceSpec("NVIDIA T4", 16, 320, 8.1, None, 65, f"{_NVIDIA}/tesla-t4", has_bfloat16=False),
    "rtx4090": DeviceSpec("NVIDIA RTX 4090", 24, 1008, 82.6, 82.6, 165.2, "appendix A of NVIDIA's Ada white paper"),
    "rtx3090": DeviceSpec("NVIDIA RTX 3090", 24, 936, 35.6, 35.6, 71, "appendix A of NVIDIA's GA102 white paper"),
    # Their memory is the system's too.
    "m2": DeviceSpec("Apple M2, 16 GB", 16, 100, 3.6, None, None, f"{_APPLE}, 2022-06-06", has_bfloat16=False),
    "m1max": DeviceSpec("Apple M1 Max, 32 GB", 32, 400, 10.4, None, None, f"{_APPLE}, 2021-10-18", has_bfloat16=False),
}


_OTHERS = {"pcie", "nvl", "mig", "laptop", "ti", "super"}
"""Words in the names of slower or faster devices, or parts of one, with the same number."""


def find_device(name: str) -> DeviceSpec | None:
    """The device that calls itself so, as torch.cuda.get_device_name() does; None where it is not in the table."""
    words = re.split(r"[ -]", name.lower())
    known = {*words, *(first + second for first, second in itertools.pairwise(words))}  # "rtx 4090"
    return None if known & _OTHERS else next((spec for key, spec in DEVICES.items() if key in known), None)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Operations per second of an NVIDIA GPU that is in the table, in one of Lightning's precisions; else None."""
    spec = find_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if spec is None else spec.peak(precision)

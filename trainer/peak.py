"""Peak arithmetic of known accelerators, for the share of it that a run reaches (MFU).

Dense figures of the makers' data sheets, in operations per second: matrix units for bf16, plain fp32 for fp32 since TF32
is off unless a model turns it on.
"""

from __future__ import annotations

import torch

_TERA = 1e12
_PEAKS = {
    "B200": {"bf16": 2250 * _TERA, "fp32": 75 * _TERA},
    "H200": {"bf16": 989 * _TERA, "fp32": 67 * _TERA},
    "H100 PCIe": {"bf16": 756 * _TERA, "fp32": 51 * _TERA},
    "H100 NVL": {"bf16": 835 * _TERA, "fp32": 60 * _TERA},
    "H100": {"bf16": 989 * _TERA, "fp32": 67 * _TERA},
    "A100": {"bf16": 312 * _TERA, "fp32": 19.5 * _TERA},
    "L40S": {"bf16": 362 * _TERA, "fp32": 91.6 * _TERA},
    "L4": {"bf16": 121 * _TERA, "fp32": 30.3 * _TERA},
    "A10G": {"bf16": 70 * _TERA, "fp32": 31.2 * _TERA},
}


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """Return the peak of one device for ``"bf16"`` or ``"fp32"``; None where it is not known, as on a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks.get(dtype) for known, peaks in _PEAKS.items() if known in name), None)

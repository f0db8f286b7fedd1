"""What a chip can do, by its maker's word.

TPU: the specification tables of Google Cloud's pages docs.cloud.google.com/tpu/docs/{v4, v5e, v5p, v6e, tpu7x}, read
in 2026: peak in bfloat16, HBM and its bandwidth, and the *bidirectional* bandwidth of all inter-chip links (v5e 400,
v6e 800, v5p and tpu7x 1,200 GB/s), of which half goes out.  v4's page has no such line: 2.7e11 B/s are six links of
4.5e10 ("How to Scale Your Model", jax-ml.github.io/scaling-book/tpus), and its page's 1.1 PB/s of all-reduce for 4,096
chips say the same.  Data centre network, bits/s of a chip: v5p 50, v6e and tpu7x 100 (the table on tpu7x's page); v5e
25 (6.4 Tb/s for 256 chips); v4 as v5p ("typically 6.25e9 B/s", the same book).

H100: NVIDIA's data sheet, column SXM: 80 GB, 3.35 TB/s, 1,979 TFLOP/s with sparsity, so half of that without, NVLink
900 GB/s both ways.  Between nodes, one 400 Gb/s ConnectX-7 for each GPU, as in NVIDIA's DGX H100.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One chip; bytes, bytes/s and FLOP/s."""

    name: str
    hbm: int
    """Memory; what the compiler lets a program have of it is a little less (see `compile.available`)."""
    hbm_bandwidth: float
    peak: float
    """Dense bfloat16."""
    links: float
    """Out of one chip, over all its links to chips of its slice or node."""
    network: float
    """Out of one chip, to other slices or nodes."""
    devices: int = 1
    """Devices that jax sees in it.  Each has that share of everything."""

    @property
    def device(self) -> "Chip":
        """The share of one device."""
        n = self.devices
        return Chip(
            self.name, self.hbm // n, self.hbm_bandwidth / n, self.peak / n, self.links / n, self.network / n, devices=1
        )


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * GIB, 1200e9, 275e12, 270e9, 50e9 / 8),
        Chip("v5e", 16 * GIB, 819e9, 197e12, 200e9, 25e9 / 8),
        Chip("v5p", 95 * GIB, 2765e9, 459e12, 600e9, 50e9 / 8),
        Chip("v6e", 32 * GIB, 1638e9, 918e12, 400e9, 100e9 / 8),
        # Two chiplets, each with a TensorCore and half of the HBM, are two devices: tpu7x-128 is 64 chips, 4x4x4.
        Chip("tpu7x", 192 * GIB, 7380e9, 2307e12, 600e9, 100e9 / 8, devices=2),
        Chip("h100", 84_942_979_072, 3350e9, 1979e12 / 2, 450e9, 400e9 / 8),
    )
}
"""By the name that a topology begins with.  H100: the bytes that CUDA reports of its 80 GB."""

_PEAKS = {
    "TPU v4": CHIPS["v4"].peak,
    "TPU v5": CHIPS["v5p"].peak,
    "TPU v5 lite": CHIPS["v5e"].peak,
    "TPU v5e": CHIPS["v5e"].peak,
    "TPU v6 lite": CHIPS["v6e"].peak,
    "TPU v6e": CHIPS["v6e"].peak,
    "TPU7x": CHIPS["tpu7x"].device.peak,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": CHIPS["h100"].peak,
    "NVIDIA H100 PCIe": 1513e12 / 2,
    "NVIDIA H200": CHIPS["h100"].peak,
    "NVIDIA B200": 2250e12,
}
"""What jax calls a device (`device_kind`), or how that begins → its peak, dense bfloat16.  A100, H200 and B200 by
NVIDIA's data sheets (B200: a DGX B200's 36 PFLOP/s with sparsity, of eight)."""


def peak(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device, None where not known, as of a CPU."""
    found = [name for name in _PEAKS if device_kind.startswith(name)]
    return _PEAKS[max(found, key=len)] if found else None

"""What a launch cost on the modelled chip: time of each engine, traffic, energy, and the place under the roofline."""
from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable

from ._core import Device, Kernel, current_stream
from .array import default_device


@dataclass(frozen=True)
class Report:
    """Of one launch, or of other work (kernel is then empty). Times are the chip's (modelled on an emulated chip), engines' summed over
    cores; bytes are HBM traffic. host_ns is this machine's."""

    kernel: str
    config: str
    assumed: bool
    device_ns: int
    host_ns: int
    engine_ns: dict[str, int]
    cores: int
    instances: int
    instructions: int
    hbm_read_bytes: int
    hbm_write_bytes: int
    energy_joules: float
    spm_bytes: int
    spm_limit: int
    acc_bytes: int
    acc_limit: int
    hbm_gbytes_per_second: float
    power_watts: float

    @property
    def limits_ns(self) -> dict[str, float]:
        """What each limit alone would take: an engine of all cores used, or the HBM's rate."""
        used = max(1, min(self.cores, self.instances))
        out = {name: ns / used for name, ns in self.engine_ns.items()}
        out["hbm"] = (self.hbm_read_bytes + self.hbm_write_bytes) / self.hbm_gbytes_per_second
        return out

    @property
    def busiest(self) -> str:
        """The limit that is reached first: matrix, vector, dma or hbm."""
        limits = self.limits_ns
        return max(limits, key=lambda n: limits[n])

    @property
    def roofline(self) -> float:
        """Time of that limit by the time taken, 0 to 1."""
        return min(1.0, self.limits_ns[self.busiest] / self.device_ns) if self.device_ns else 0.0

    @property
    def bound(self) -> str:
        """What the time goes to: the busiest limit, or "latency" when it takes less than half of the time (waiting, launch, too few
        programs)."""
        return self.busiest if self.roofline >= 0.5 else "latency"

    def __str__(self) -> str:
        note = " (assumed)" if self.assumed else ""
        limits = self.limits_ns
        lines = [f"{self.kernel or 'work'}: {self.device_ns / 1e3:,.1f} us modelled on {self.config}{note}",
                 f"  bound by {self.bound}: {self.busiest} at {self.roofline:.0%} of the time; {self.instances:,} programs on {self.cores} cores"]
        lines += [f"  {name:<7}{ns / 1e3:>12,.2f} us" for name, ns in limits.items()]
        lines.append(f"  traffic {self.hbm_read_bytes:,} bytes read, {self.hbm_write_bytes:,} written; "
                     f"{self.energy_joules * 1e6:,.1f} uJ{note}; {self.instructions:,} instructions")
        if self.kernel:
            lines.append(f"  scratchpad {self.spm_bytes:,} of {self.spm_limit:,} bytes, accumulators {self.acc_bytes:,} of {self.acc_limit:,}")
        lines.append(f"  this machine took {self.host_ns / 1e3:,.1f} us, which says nothing about the chip")
        return "\n".join(lines)


def measure(work: Callable[[], Any], device: Device | None = None, *, kernel: Kernel | None = None) -> Report:
    """Runs work(), which enqueues on the device's current stream, waits, and reports the difference of the device's counters: any
    mix of launches, operations and graphs. Nothing else may run on the device meanwhile. kernel: whose sizes are told."""
    if device is None:
        device = kernel.device if kernel is not None else default_device()
    stream = current_stream(device)
    device.synchronize()
    before = device.telemetry()
    begin = time.perf_counter_ns()
    work()
    stream.synchronize()
    host = time.perf_counter_ns() - begin
    after = device.telemetry()
    p: dict[str, Any] = device.properties
    d = {k: after[k] - before[k] for k in after if isinstance(after[k], (int, float)) and not isinstance(after[k], bool)}
    return Report(kernel=kernel.name if kernel is not None else "", config=p["config_name"], assumed=p["assumed"],
                  device_ns=d["device_ns"], host_ns=host,
                  engine_ns={"matrix": d["busy_matrix_ns"], "vector": d["busy_vector_ns"], "dma": d["busy_dma_ns"]},
                  cores=p["cores"], instances=d["instances"], instructions=d["instructions"], hbm_read_bytes=d["hbm_read_bytes"],
                  hbm_write_bytes=d["hbm_write_bytes"], energy_joules=d["energy_joules"],
                  spm_bytes=kernel.spm_bytes if kernel is not None else 0, spm_limit=p["spm_bytes"],
                  acc_bytes=kernel.acc_bytes if kernel is not None else 0, acc_limit=p["acc_bytes"],
                  hbm_gbytes_per_second=p["hbm_gbytes_per_second"], power_watts=after["power_watts"])

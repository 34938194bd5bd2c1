"""What a launch cost on the modelled chip: time of each engine, traffic, energy, and the place under the roofline."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

from ._core import Kernel, Stream


@dataclass(frozen=True)
class Report:
    """Of one launch. Times are the chip's (modelled on an emulated chip), summed over cores; bytes are HBM traffic.

    roofline: the share of the time that the binding limit alone would take; bound names that limit.
    """

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
    def bound(self) -> str:
        """The limit that is reached first."""
        limits = self.limits_ns
        return max(limits, key=lambda n: limits[n])

    @property
    def roofline(self) -> float:
        """Time of the binding limit by the time taken, 0 to 1."""
        return min(1.0, self.limits_ns[self.bound] / self.device_ns) if self.device_ns else 0.0

    def __str__(self) -> str:
        note = " (assumed)" if self.assumed else ""
        limits = self.limits_ns
        lines = [f"{self.kernel}: {self.device_ns / 1e3:,.1f} us modelled on {self.config}{note}, {self.host_ns / 1e3:,.1f} us on this host",
                 f"  bound by {self.bound}, at {self.roofline:.0%} of that limit; {self.instances:,} programs on {self.cores} cores"]
        lines += [f"  {name:<7}{ns / 1e3:>12,.2f} us" for name, ns in limits.items()]
        lines.append(f"  traffic {self.hbm_read_bytes:,} bytes read, {self.hbm_write_bytes:,} written; "
                     f"{self.energy_joules * 1e6:,.1f} uJ{note}")
        lines.append(f"  scratchpad {self.spm_bytes:,} of {self.spm_limit:,} bytes, accumulators {self.acc_bytes:,} of {self.acc_limit:,}; "
                     f"{self.instructions:,} instructions run")
        return "\n".join(lines)


def measure(kernel: Kernel, launch: Callable[[], None], stream: Stream) -> Report:
    """Launches and takes the difference of the device's counters."""
    import time
    device = kernel.device
    device.synchronize()
    before = device.telemetry()
    begin = time.perf_counter_ns()
    launch()
    stream.synchronize()
    host = time.perf_counter_ns() - begin
    after = device.telemetry()
    p: dict[str, Any] = device.properties
    d = {k: after[k] - before[k] for k in after if isinstance(after[k], (int, float)) and not isinstance(after[k], bool)}
    return Report(kernel=kernel.name, config=p["config_name"], assumed=p["assumed"], device_ns=d["device_ns"], host_ns=host,
                  engine_ns={"matrix": d["busy_matrix_ns"], "vector": d["busy_vector_ns"], "dma": d["busy_dma_ns"]},
                  cores=p["cores"], instances=d["instances"], instructions=d["instructions"], hbm_read_bytes=d["hbm_read_bytes"],
                  hbm_write_bytes=d["hbm_write_bytes"], energy_joules=d["energy_joules"], spm_bytes=kernel.spm_bytes,
                  spm_limit=p["spm_bytes"], acc_bytes=kernel.acc_bytes, acc_limit=p["acc_bytes"],
                  hbm_gbytes_per_second=p["hbm_gbytes_per_second"], power_watts=after["power_watts"])

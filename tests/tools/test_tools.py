"""jalapeno-smi and jalapeno-doctor as their users run them: output, exit codes, and machines with each known defect.

JALAPENO_BIN: the folder with the programs; JALAPENO_HOLD: the helper that holds a device.
"""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess

import pytest

BIN = pathlib.Path(os.environ["JALAPENO_BIN"])
SMI, DOCTOR, EMULATOR, HOLD = BIN / "jalapeno-smi", BIN / "jalapeno-doctor", BIN / "jalapeno-emulator", os.environ["JALAPENO_HOLD"]


def run(*command, timeout=120):
    r = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    return r.returncode, r.stdout, r.stderr


@pytest.fixture
def chip(tmp_path):
    """An emulator in its own process; its URI."""
    socket = tmp_path / "chip.sock"
    child = subprocess.Popen([EMULATOR, "--socket", socket, "--hbm", "256M", "--until-eof"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    assert "listening" in child.stdout.readline()
    yield f"emu:{socket}"
    child.communicate(timeout=20)


@pytest.fixture
def holder(chip):
    child = subprocess.Popen([HOLD, chip], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    yield chip, child
    if child.poll() is None:
        child.communicate(timeout=20)


# ---- jalapeno-smi ----
def test_free_device(chip):
    code, out, _ = run(SMI, chip)
    assert code == 0
    assert re.search(rf"^{re.escape(chip)}  free$", out, re.M)
    assert "0.0 of 256.0 MiB HBM used" in out and "0 of 256 used" in out and "health       good" in out
    assert "assumed configuration" in out, "modelled figures say so"


def test_held_device_is_shown_by_its_holder(holder):
    chip, child = holder
    child.stdin.write("work\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"
    for command in ([SMI, chip], [SMI]):  # named, or found
        code, out, _ = run(*command)
        assert code == 0 or command == [SMI]  # other tests may just then be losing theirs
        shown = out[out.index(chip):]
        assert shown.split("  health       ")[1].startswith("good, ")
        assert f"{chip}  held" in shown and f"held by      hold_device (pid {child.pid}), for " in shown
        assert "1 of 256 used" in shown
    d, = [d for d in json.loads(run(SMI, "--json")[1])["devices"] if d["uri"] == chip]
    assert d["holders"][0]["pid"] == child.pid and d["counters"]["host_bytes"] >= 1 << 18
    assert d["memory"]["used_bytes"] > 0 and d["queues"] == {"used": 1, "total": 256}


def test_counters_go_on_and_a_dead_holder_lets_go(holder):
    chip, child = holder
    before = json.loads(run(SMI, "--json", chip)[1])["devices"][0]
    child.stdin.write("work\n" * 3)
    child.stdin.flush()
    for _ in range(3):
        child.stdout.readline()
    after = json.loads(run(SMI, "--json", chip)[1])["devices"][0]
    assert after["counters"]["packets"] > before["counters"]["packets"]
    assert after["uuid"] == before["uuid"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    code, out, _ = run(SMI, "--json", chip)
    d = json.loads(out)["devices"][0]
    assert code == 0 and d["state"] == "free" and d["holders"] == [] and d["memory"]["used_bytes"] == 0


SCHEMA = {  # of version 1: fields may be added, none may go or change its name
    "uri", "state", "problem", "holders", "uuid", "configuration", "emulated", "assumed_rates", "interface_version", "isa_version", "function", "virtual_functions",
    "healthy", "epoch", "cores", "clock_khz", "queues.used", "queues.total", "links.count", "links.megabits_per_second",
    "memory.total_bytes", "memory.used_bytes", "memory.megabytes_per_second", "modelled.temperature_celsius", "modelled.power_watts",
    "modelled.power_limit_watts", "modelled.energy_joules", "modelled.device_seconds", "modelled.utilisation",
    "counters.hbm_read_bytes", "counters.hbm_write_bytes", "counters.host_bytes", "counters.packets", "counters.launches",
    "counters.instances", "counters.instructions", "counters.interrupts", "counters.faults", "counters.ecc_corrected",
    "counters.ecc_uncorrected", "counters.busy_fabric_ns", "counters.fabric_read_bytes", "counters.fabric_write_bytes",
    "counters.fabric_errors", "counters.links_up"}


def test_json_keeps_its_schema(chip):
    found = json.loads(run(SMI, "--json", chip)[1])
    assert found["schema"] == 1

    def paths(value, prefix=""):
        for k, v in value.items():
            if isinstance(v, dict):
                yield from paths(v, f"{prefix}{k}.")
            else:
                yield prefix + k
    assert set(paths(found["devices"][0])) == SCHEMA


def test_prometheus_text(chip, tmp_path):
    code, out, _ = run(SMI, "--prometheus", chip, f"emu:{tmp_path}/\"none\".sock")
    assert code == 4, "one of them cannot be reached"
    declared = {}
    for line in out.splitlines():
        if m := re.fullmatch(r"# TYPE ([a-z_]+) (gauge|counter)", line):
            assert m[1] not in declared, "one TYPE a metric"
            declared[m[1]] = m[2]
        elif not line.startswith("# HELP "):
            m = re.fullmatch(r'([a-z_]+)\{([a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*\} -?[0-9.e+-]+', line)
            assert m, line
            assert m[1] in declared, "samples follow their TYPE"
    assert all(n.endswith("_total") == (t == "counter") for n, t in declared.items())
    assert f'jalapeno_device_reachable{{uri="emu:{tmp_path}/\\"none\\".sock",uuid=""}} 0' in out
    if shutil.which("promtool"):
        r = subprocess.run(["promtool", "check", "metrics"], input=out, text=True, capture_output=True)
        assert r.returncode == 0, r.stderr


def test_watch_shows_the_time_between_looks(holder):
    chip, child = holder
    watch = subprocess.Popen([SMI, "--watch", "0.2", chip], stdout=subprocess.PIPE, text=True)
    text = ""
    while text.count("modelled ") < 3:
        text += watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    watch.wait(10)
    assert "since power-on" in text or "idle" in text
    assert "idle since the last look" in text


def test_reset(holder, tmp_path):
    chip, child = holder
    code, _, err = run(SMI, "--reset", chip)
    assert code == 4 and "another client is using the device" in err
    child.communicate(timeout=20)
    code, out, _ = run(SMI, "--reset", chip)
    assert code == 0 and re.search(r"reset, epoch \d+ to \d+, health good", out)


@pytest.mark.parametrize("arguments, code, said", [
    (["--bogus"], 2, "--bogus"), (["--watch", "0"], 2, "--watch"), (["--json", "--prometheus"], 2, "excludes"),
    (["--reset"], 2, "name the devices"), (["emu:/nonexistent/chip.sock"], 4, "start one with jalapeno-emulator"),
    (["vfio:0000:ff:1f.7"], 4, "no PCI function has this address"), (["vfio:nonsense"], 4, "expected a PCI address"), (["x"], 4, "expected emu:")])
def test_bad_usage(arguments, code, said):
    got, out, err = run(SMI, *arguments)
    assert got == code and said in out + err


def test_nothing_to_show_is_told():
    code, out, _ = run(SMI)
    if "emu:" not in out and "vfio:" not in out:  # nothing else runs beside this test
        assert code == 3 and "no Jalapeno device" in out


# ---- jalapeno-doctor ----
def test_doctor_exercises_the_emulated_chip(chip):
    code, out, _ = run(DOCTOR, chip)
    assert f"ok       {chip}: works: interface 1.2" in out and "interrupts arrive" in out
    code, out, _ = run(DOCTOR, "--latency", "20", "emu:?hbm=64M")
    assert "doorbell to completion" in out and "x the eventfd" in out


def test_doctor_tells_a_held_device(holder):
    code, out, _ = run(DOCTOR, holder[0])
    assert code == 1 and "another client is using the device" in out


class Machine:
    """A tree of /sys and /dev with one card that works; tests break one thing each."""

    def __init__(self, root):
        self.root = root
        self.put("sys/class/iommu/dmar0/x", "")
        self.put("dev/vfio/vfio", "")
        self.put("dev/vfio/7", "")
        self.put("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512")
        self.put("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "500")
        self.function("0000:3b:00.0", "0x1da1", "0x4a4c", "vfio-pci")
        self.card = root / "sys/bus/pci/devices/0000:3b:00.0"
        for name, text in {"current_link_speed": "32.0 GT/s PCIe", "max_link_speed": "32.0 GT/s PCIe", "current_link_width": "16",
                           "max_link_width": "16", "numa_node": "0", "local_cpulist": "0-4095"}.items():
            (self.card / name).write_text(text + "\n")

    def put(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def function(self, address, vendor, device, driver, group="7"):
        self.put(f"sys/bus/pci/devices/{address}/vendor", vendor)
        self.put(f"sys/bus/pci/devices/{address}/device", device)
        folder = self.root / "sys/bus/pci/devices" / address
        self.put(f"sys/bus/pci/drivers/{driver}/x", "")
        (folder / "driver").symlink_to(self.root / "sys/bus/pci/drivers" / driver)
        members = self.root / "sys/kernel/iommu_groups" / group / "devices"
        members.mkdir(parents=True, exist_ok=True)
        (folder / "iommu_group").symlink_to(members.parent)
        (members / address).symlink_to(folder)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def examine(machine):
    return run(DOCTOR, "--look-only", "--root", machine.root)


def test_doctor_finds_nothing_wrong_with_a_good_machine(machine):
    _, out, _ = examine(machine)
    problems = [line for line in out.splitlines() if line.startswith("PROBLEM")]
    assert all("locked memory" in p for p in problems), out  # the limit is this process's own
    for good in ("bound to vfio-pci", "IOMMU group 7 is viable", "PCIe link 32.0 GT/s PCIe x16", "500 of 512 free", "NUMA node 0"):
        assert re.search(rf"^ok .*{re.escape(good)}", out, re.M), good


def defect_iommu_off(m):
    shutil.rmtree(m.root / "sys/class/iommu")
    (m.card / "iommu_group").unlink()


def defect_no_iommu_mode(m):
    m.put("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n")


def defect_shared_group(m):
    m.function("0000:3b:00.1", "0x8086", "0x1533", "igb")


def defect_other_driver(m):
    (m.card / "driver").unlink()
    (m.card / "driver").symlink_to(m.root / "sys/bus/pci/drivers/pci-stub")


def defect_no_driver(m):
    (m.card / "driver").unlink()


def defect_no_vfio(m):
    shutil.rmtree(m.root / "dev/vfio")


def defect_container(m):
    m.put(".dockerenv", "")
    (m.root / "dev/vfio/7").unlink()


def defect_slow_link(m):
    (m.card / "current_link_width").write_text("8\n")


def defect_no_hugepages(m):
    m.put("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0")


def defect_far_node(m):
    (m.card / "local_cpulist").write_text("4000\n")


def defect_no_card(m):
    shutil.rmtree(m.card)


@pytest.mark.parametrize("defect, level, said, fix", [
    (defect_iommu_off, "PROBLEM", "is in no IOMMU group", "intel_iommu=on"),
    (defect_no_iommu_mode, "PROBLEM", "could reach all memory", "JAL_UNSAFE_NOIOMMU=1"),
    (defect_shared_group, "PROBLEM", "0000:3b:00.1 (igb)", "bind them to vfio-pci"),
    (defect_other_driver, "PROBLEM", "bound to the kernel driver pci-stub", "driver_override"),
    (defect_no_driver, "PROBLEM", "no kernel driver is bound", "drivers_probe"),
    (defect_no_vfio, "PROBLEM", "there is no /dev/vfio/vfio", "modprobe vfio-pci"),
    (defect_container, "PROBLEM", "there is no /dev/vfio/7", "--device=/dev/vfio/7"),
    (defect_slow_link, "warning", "PCIe link 32.0 GT/s PCIe x8, the function could 32.0 GT/s PCIe x16", "slot"),
    (defect_no_hugepages, "warning", "none reserved", "vm.nr_hugepages"),
    (defect_far_node, "warning", "where this process may not run", "numactl --cpunodebind=0"),
    (defect_no_card, "warning", "no Jalapeno function", "lspci"),
])
def test_doctor_names_each_defect_and_its_remedy(machine, defect, level, said, fix):
    defect(machine)
    code, out, _ = examine(machine)
    lines = out.splitlines()
    at = [k for k, line in enumerate(lines) if line.startswith(level) and said in line]
    assert at, out
    assert fix in lines[at[0] + 1]
    if level == "PROBLEM":
        assert code == 1


def test_doctor_tells_a_small_limit_of_locked_memory(machine):
    r = subprocess.run(["bash", "-c", f"ulimit -l 4096; {DOCTOR} --look-only --root {machine.root}"], capture_output=True, text=True)
    assert r.returncode == 1 and "PROBLEM  locked memory: the limit is 4096 KiB" in r.stdout and "LimitMEMLOCK=infinity" in r.stdout


# ---- jalapeno-trace ----
TRACE, LLM = BIN / "jalapeno-trace", BIN / "jalapeno-llm"
MODEL = pathlib.Path(__file__).parents[2] / "samples/llm/model/storyteller-3m-bf16.gguf"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A trace of the language model, and what it said."""
    file = tmp_path_factory.mktemp("trace") / "llm.trace"
    code, out, err = run(TRACE, "record", "-o", file, "--", LLM, "--model", MODEL, "--device", "emu:?hbm=256M", "-n", "40", "--temperature", "0",
                         "--prompt", "Once")
    assert code == 0, err
    return file, out


def test_recording_changes_nothing(recorded):
    code, out, _ = run(LLM, "--model", MODEL, "--device", "emu:?hbm=256M", "-n", "40", "--temperature", "0", "--prompt", "Once")
    assert (code, out) == (0, recorded[1])
    assert recorded[0].stat().st_mode & 0o77 == 0, "weights and texts are nobody else's"


@pytest.mark.parametrize("own_process", [False, True])
def test_a_recorded_run_replays_to_the_same_bytes(recorded, chip, own_process):
    code, out, err = run(TRACE, "replay", recorded[0], *(["--device", chip] if own_process else []))
    assert code == 0, out + err
    m = re.search(r"(\d+) records, (\d+) packets, (\d+) results compared in .*: all as recorded", out)
    assert m and int(m[2]) > 40 and int(m[3]) >= 40, "one result a token at least"


@pytest.mark.parametrize("sample", ["03_vector_add", "04_streams_and_events", "05_graph", "06_matmul", "07_error_handling"])
def test_events_graphs_faults_and_resets_replay(sample, tmp_path):
    code, _, err = run(TRACE, "record", "-o", tmp_path / "x.trace", "--", BIN / sample)
    assert code == 0, err
    code, out, err = run(TRACE, "replay", tmp_path / "x.trace")
    assert code == 0 and "all as recorded" in out, out + err


def test_a_changed_weight_is_found(recorded, tmp_path):
    """A difference must be found: one bit of what goes to the device is turned."""
    data = bytearray(recorded[0].read_bytes())
    weights = max(hosts(data), key=lambda h: h[1])
    data[weights[0] + weights[1] // 2 + 1] ^= 0x40
    damaged = tmp_path / "changed.trace"
    damaged.write_bytes(data)
    code, out, _ = run(TRACE, "replay", damaged)
    assert code == 1 and re.search(r"\d+ differ", out) and "differ from the recorded ones" in out


def hosts(data):
    """(offset, bytes) of every piece of host memory in a trace."""
    at = 536
    while at + 16 <= len(data):
        kind, size = int.from_bytes(data[at:at + 4], "little"), int.from_bytes(data[at + 4:at + 8], "little")
        if kind == 8:
            yield at + 32, size - 16
        at += (16 + size + 7) & ~7


def test_show_names_what_the_data_sheet_names(recorded):
    code, out, _ = run(TRACE, "show", recorded[0])
    assert code == 0
    for line in ("read  Magic -> 0x504c414a", "read  HbmBytes -> 0x10000000", "write QueueCommand <- 0x1", "map   iova 0x100000000",
                 " COPY host 0x", " LAUNCH code 0x", "done  queue 0 reached", "wrote iova 0x"):
        assert line in out, line
    assert re.search(r"^ +[0-9.]+  end   of \d+ records$", out.splitlines()[-1])


def test_registers_are_those_of_the_data_sheet(chip):
    code, out, _ = run(TRACE, "registers", chip)
    assert code == 0
    printed = {(m[2], int(m[1], 16)) for m in re.finditer(r"^(0x[0-9a-f]{3}) (\w+) +0x", out, re.M)}
    sheet = (pathlib.Path(__file__).parents[2] / "docs/hardware.md").read_text()
    written = set()
    for offsets, names in re.findall(r"^\| (0x[^|]+) \| [^|]+ \| ([\w, ]+) \|", sheet, re.M):
        at = [int(o, 16) for o in re.findall("0x[0-9A-Fa-f]{3}", offsets)]
        names = names.strip().split(", ")
        if ".." in offsets:  # so many of 64 bits, one after the other
            at = [at[0] + 8 * k for k in range(len(names))]
        written |= set(zip(names, at, strict=True))
    assert printed == written
    assert re.search(r"^0x000 Magic +0x504c414a$", out, re.M)


def test_a_killed_program_leaves_a_trace_that_replays(tmp_path, chip):
    file = tmp_path / "killed.trace"
    child = subprocess.Popen([HOLD, chip], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"JAL_TRACE": str(file)})
    assert child.stdout.readline() == "held\n"
    for _ in range(12):  # more than a buffer holds
        child.stdin.write("work\n")
        child.stdin.flush()
        assert child.stdout.readline() == "done\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    code, out, _ = run(TRACE, "replay", file)
    assert code == 0 and "cut off" in out
    assert "cut off here" in run(TRACE, "show", file)[1]


@pytest.mark.parametrize("damage, said", [
    (lambda d: b"", "0 bytes, a trace begins with 536"),
    (lambda d: b"x" + d[1:], "a trace with 0x3145434152544c4a"),
    (lambda d: d[:536] + b"\x63" + d[537:], "unknown kind 99"),
    (lambda d: d[:540] + b"\x09" + d[541:], "a record of kind 1 with 9 bytes, expected 16"),
])
def test_damaged_traces_are_named(recorded, tmp_path, damage, said):
    file = tmp_path / "damaged.trace"
    file.write_bytes(damage(recorded[0].read_bytes()))
    for command in ("show", "replay"):
        code, _, err = run(TRACE, command, file)
        assert code == 2 and said in err and str(file) in err


def test_random_damage_never_crashes_a_replay(recorded, tmp_path):
    import random
    data, chance = recorded[0].read_bytes(), random.Random(1)
    small = data[:536 + 40000]
    for n in range(30):
        d = bytearray(small)
        for _ in range(chance.randint(1, 20)):
            d[chance.randrange(536, len(d))] = chance.randrange(256)
        (tmp_path / "x.trace").write_bytes(d)
        code, _, err = run(TRACE, "show", tmp_path / "x.trace")
        assert code in (0, 2), (n, err)
        code, _, err = run(TRACE, "replay", tmp_path / "x.trace", timeout=100)
        assert code in (0, 1, 2), (n, code, err)


def test_traces_that_cannot_be_written_are_told(tmp_path):
    code, _, err = run(TRACE, "record", "-o", tmp_path / "none/x.trace", "--", LLM, "--model", MODEL, "-n", "1", "--prompt", "x")
    assert code != 0 and "JAL_TRACE" in err and "No such file" in err
    assert run(TRACE, "replay", tmp_path / "absent")[0] == 2
    assert run(TRACE)[0] == 2
    assert run(TRACE, "record", "--", "/nonexistent/program")[0] == 127

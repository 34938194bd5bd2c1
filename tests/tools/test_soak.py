"""Owners that die at any moment, and resets without end: the chip must come back to where it was. Long.

JALAPENO_BIN, JALAPENO_HOLD: as in test_tools.py; JALAPENO_CYCLES: how many kills (1000).
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import time

BIN, HOLD = pathlib.Path(os.environ["JALAPENO_BIN"]), os.environ["JALAPENO_HOLD"]
CYCLES = int(os.environ.get("JALAPENO_CYCLES", "1000"))


def state(pid):
    """(descriptors, mappings) of a process."""
    return len(os.listdir(f"/proc/{pid}/fd")), sum(1 for _ in open(f"/proc/{pid}/maps"))


def settled(pid):
    """The least of some looks: a connection that has just ended still holds its descriptor."""
    looks = []
    for _ in range(10):
        looks.append(state(pid))
        time.sleep(0.02)
    return min(looks)


def test_killed_owners_leave_nothing_behind(tmp_path):
    socket, chance = tmp_path / "chip.sock", random.Random(1)
    emulator = subprocess.Popen([BIN / "jalapeno-emulator", "--socket", socket, "--hbm", "64M", "--until-eof"], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True)
    assert "listening" in emulator.stdout.readline()

    def look():
        r = subprocess.run([BIN / "jalapeno-smi", "--json", f"emu:{socket}"], capture_output=True, text=True, timeout=30)
        return r.returncode, json.loads(r.stdout)["devices"][0]

    def begin():
        return subprocess.Popen([HOLD, f"emu:{socket}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    for n in range(CYCLES + 20):
        if n == 20:  # what is made once has been made
            assert look()[0] == 0
            before = settled(emulator.pid)
        owner = begin()
        if chance.random() < 0.7:
            assert owner.stdout.readline() == "held\n", n  # also says that the one before has let go
            owner.stdin.write("work\n" * chance.randint(0, 3))
            owner.stdin.flush()
        time.sleep(chance.random() * 0.01)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        owner.stdin.close(), owner.stdout.close()
    code, d = look()
    assert code == 0 and d["state"] == "free" and d["healthy"] and d["memory"]["used_bytes"] == 0 and d["queues"]["used"] == 0
    after = settled(emulator.pid)
    assert after[0] == before[0] and after[1] <= before[1] + 2, (before, after)  # heap arenas may come and go
    emulator.communicate(timeout=20)


def test_ten_thousand_resets():
    r = subprocess.run([BIN / "test-device", "--gtest_filter=*ManyResets*"], env=os.environ | {"JAL_TEST_RESETS": str(10 * CYCLES)},
                       capture_output=True, text=True, timeout=600)
    assert r.returncode == 0, r.stdout

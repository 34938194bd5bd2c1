"""scripts/collectives-model: inside a rack it says what the emulated chips are charged; over racks it keeps its bounds."""
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts/collectives-model"
loader = importlib.machinery.SourceFileLoader("collectives_model", str(SCRIPT))
model = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
loader.exec_module(model)
CHIP = model.load(model.CONFIGS / "assumed-1.json")
RACKS = model.load(model.CONFIGS / "racks-assumed-1.json")


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("ranks", [2, 5, 8])
def test_inside_a_rack_it_is_what_the_chips_are_charged(ranks, tmp_path):
    out = tmp_path / "rows.json"
    subprocess.run([os.environ["JALAPENO_COLL_BENCH"], "-n", str(ranks), "-g", "-q", "-b", "8", "-e", "524288", "--json", out, "all_reduce"],
                   check=True, capture_output=True, timeout=300)
    rack = model.Rack(CHIP)
    plans = {"one-shot": rack.one_shot, "two-shot": rack.two_shot}
    rows = json.loads(out.read_text())
    assert {r["algorithm"] for r in rows} == set(plans)
    for r in rows:
        assert plans[r["algorithm"]](r["size"], ranks) / 1e3 == pytest.approx(r["model_us"], rel=0.05), r


def test_nothing_is_faster_than_the_bound():
    rows = json.loads(run("--json").stdout)
    assert {r["chips"] for r in rows} >= {2, 64, 65536}
    for r in rows:
        assert r["us"] >= r["bound_us"], r


def test_a_step_between_racks_by_hand():
    # 1,000 bytes, 4 racks, 10 ns, 1 byte a ns: 2 * 3 * (10 + 250); 2 * (10 + 1000); 4 * 10 + 2 * 750
    assert model.over_racks(1000, 4, 10, 1) == {"ring": 1560, "recursive doubling": 2020, "halving and doubling": 1540}


@pytest.mark.parametrize("chips", [1, 65, 100])
def test_chips_that_fill_no_racks_are_refused(chips):
    bad = run("--chips", chips)
    assert bad.returncode == 2 and f"--chips {chips}: expected 2 to 64, or whole racks of 64" in bad.stderr

"""Ranks in processes of their own: launchers, ranks that die or stop, and survivors that go on."""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import pytest

from ranks import LLM, MODEL, PATIENCE, RANK, environment, free_port, joined, lines

BENCH = os.environ["JALAPENO_COLL_BENCH"]


def start(ranks, *arguments, **more):
    port = free_port()
    return [subprocess.Popen([RANK, *map(str, arguments)], env=environment(r, ranks, port, **more), stdout=subprocess.PIPE, text=True)
            for r in range(ranks)]


def leftovers():
    where = pathlib.Path(f"/dev/shm/jalapeno-coll-{os.geteuid()}")
    return {int(f.name.split(".")[0]) for f in where.iterdir()} if where.exists() else set()


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_meet_by_variables_and_agree(ranks):
    processes = start(ranks, 0.5)
    said = [lines(p) for p in processes]
    for rank, (first, last) in enumerate(said):
        assert (first["rank"], first["ranks"], first["launcher"]) == (rank, ranks, "RANK and WORLD_SIZE")
        assert last["error"] == "jalSuccess" and last["wrong"] == 0, last
        assert last["operations"] == said[0][1]["operations"] > 0
    assert all(p.returncode == 0 for p in processes)
    assert not leftovers() & {p.pid for p in processes}


@pytest.mark.parametrize("launcher", ["openmpi", "mpich"])
def test_ranks_meet_through_mpirun(launcher):
    program = shutil.which({"openmpi": "mpirun.openmpi", "mpich": "mpiexec.hydra"}[launcher])
    if program is None:
        pytest.skip(f"{launcher} is not installed")
    if launcher == "openmpi":
        command = [program, "--allow-run-as-root", "--oversubscribe", "-n", "3", RANK, "0.3"]
    else:
        command = [program, "-n", "3", RANK, "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "JAL_LOG": "off"})
    assert done.returncode == 0, done.stdout + done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    firsts = [s for s in said if s["what"] == "joined"]
    assert sorted(s["rank"] for s in firsts) == [0, 1, 2] and all(s["ranks"] == 3 for s in firsts)
    assert {s["launcher"] for s in firsts} == {{"openmpi": "PMIx", "mpich": "PMI-1"}[launcher]}
    assert all(s["wrong"] == 0 and s["error"] == "jalSuccess" for s in said if s["what"] == "done")


@pytest.mark.parametrize("hosts, per_host, wish, algorithm", [
    (1, 3, "", "two-shot"), (2, 1, "", "segments"), (4, 1, "", "two-shot"), (4, 1, "all_reduce:doubling,broadcast:tree", "doubling"),
    (3, 1, "all_reduce:doubling,broadcast:tree", "two-shot"), (2, 2, "", "hierarchical"), (2, 3, "", "two-shot")])
def test_every_operation_gives_the_same_bits(hosts, per_host, wish, algorithm):
    port, ranks = free_port(), hosts * per_host
    processes = [subprocess.Popen([RANK, "40", "operations"], stdout=subprocess.PIPE, text=True, env=environment(
        r, ranks, port, JAL_COLL_HOST=f"host{r // per_host}", JAL_COLL_TRANSPORT="network", JAL_COLL_ALGO=wish)) for r in range(ranks)]
    for p in processes:
        said = joined(p)
        assert said["hosts"] == hosts and said["algorithm"] == algorithm, said
    for p in processes:
        (done,) = lines(p)
        assert done["error"] == "jalSuccess" and done["wrong"] == 0 and done["operations"] == 40, done


def test_a_launcher_that_cannot_be_read_is_an_error():
    env = {**environment(0, 1, 1), "SLURM_NTASKS": "4", "SLURM_PROCID": "1"}
    for name in ("RANK", "WORLD_SIZE"):
        del env[name]
    done = subprocess.run([RANK, "0.1"], env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and "Slurm started this process as one of 4" in done.stdout, done.stdout
    env = environment("one", 2, 1)
    done = subprocess.run([RANK, "0.1"], env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert 'RANK=\\"one\\"' in done.stdout, done.stdout


def test_who_does_not_come_is_named():
    alone = subprocess.run([RANK, "0.1"], env=environment(0, 3, free_port(), JAL_COLL_INIT_TIMEOUT_MS="500"), capture_output=True,
                           text=True, timeout=PATIENCE)
    assert alone.returncode == 2 and "did not come in time: 1, 2" in alone.stdout, alone.stdout


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_survivors_of_a_killed_rank_are_told_who_and_go_on(victim):
    processes = start(3, 30, "shrink")
    for p in processes:
        joined(p)
    time.sleep(0.2 + random.random() * 0.2)
    killed_ns = time.time_ns()
    processes[victim].kill()
    delays = []
    for rank, p in enumerate(processes):
        if rank == victim:
            continue
        said = lines(p)
        assert len(said) == 2, (victim, rank, said)
        done, shrunk = said
        assert done["error"] == "jalErrorPeerLost", done
        assert done["culprit"] == victim and done["culprit_pid"] == processes[victim].pid
        assert f"pid {processes[victim].pid}" in done["detail"] + done["evidence"]
        assert done["wrong"] == 0
        assert shrunk["ranks"] == 2 and shrunk["error"] == "jalSuccess" and shrunk["operations"] > 0 and shrunk["wrong"] == 0, shrunk
        assert p.returncode == 0
        delays.append((done["failed_ns"] - killed_ns) / 1e6)
    print(f"told after {', '.join(f'{d:.1f}' for d in delays)} ms")
    processes[victim].wait()


def test_a_stopped_rank_is_named_at_the_deadline():
    processes = start(3, 30, JAL_COLL_DEADLINE_MS="3000")
    for p in processes:
        joined(p)
    time.sleep(0.2)
    processes[1].send_signal(signal.SIGSTOP)
    try:
        for rank in (0, 2):
            (done,) = lines(processes[rank])
            assert done["error"] == "jalErrorCollectiveTimeout" and done["culprit"] == 1, done
            assert "rank 1" in done["evidence"] and done["wrong"] == 0
    finally:
        processes[1].kill()
        processes[1].wait()


@pytest.mark.parametrize("turn", range(3))  # it stops wherever it is: in its host's exchange or between hosts
def test_a_stopped_rank_is_named_by_the_other_host_too(turn):
    port = free_port()
    processes = [subprocess.Popen([RANK, "30"], stdout=subprocess.PIPE, text=True, env=environment(
        r, 4, port, JAL_COLL_HOST=f"host{r // 2}", JAL_COLL_TRANSPORT="network", JAL_COLL_DEADLINE_MS="3000",
        JAL_COLL_GRACE_MS="60000")) for r in range(4)]
    for p in processes:
        joined(p)
    time.sleep(0.1 + random.random() * 0.4)
    processes[1].send_signal(signal.SIGSTOP)
    try:
        for rank in (0, 2, 3):
            (done,) = lines(processes[rank])
            assert done["error"] == "jalErrorCollectiveTimeout" and done["culprit"] == 1, done
    finally:
        processes[1].kill()
        processes[1].wait()


def test_the_flight_recorder_outlives_its_process():
    processes = start(2, 30)
    for p in processes:
        joined(p)
    time.sleep(0.3)
    processes[0].kill()
    processes[0].wait()
    where = pathlib.Path(f"/dev/shm/jalapeno-coll-{os.geteuid()}")
    files = [f for f in where.iterdir() if f.name.startswith(f"{processes[0].pid}.")]
    assert len(files) == 1
    data = files[0].read_bytes()
    assert data[:7] == b"JALFLY1"
    last = max(int.from_bytes(data[64 + 72 * k: 72 + 72 * k], "little") for k in range(1024))
    assert last > 10
    files[0].unlink()
    processes[1].communicate(timeout=PATIENCE)


def test_the_bench_verifies_what_it_measures():
    done = subprocess.run([BENCH, "--processes", "2", "--quick", "-e", "128K", "--json", "/dev/stdout"], capture_output=True, text=True,
                          timeout=PATIENCE, env={k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")})
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout[done.stdout.index("[\n"):])
    assert {r["operation"] for r in rows} == {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "send_recv"}
    assert all(r["wrong"] == 0 and r["processes"] == 2 and r["model_assumed"] for r in rows)


def story(*arguments, env=None):
    done = subprocess.run([LLM, "--model", MODEL, "--prompt", "Tom had a blue kite", "-n", "40", "--json", *arguments],
                          capture_output=True, text=True, timeout=PATIENCE, env=env or {**os.environ, "JAL_LOG": "off"})
    assert done.returncode == 0, done.stderr
    text, report = done.stdout.rsplit("\n{", 1)
    return text, json.loads("{" + report)


def test_a_measured_table_is_followed(tmp_path):
    table = tmp_path / "table.json"
    subprocess.run([BENCH, "-p", "2", "-q", "-g", "--tune", table], check=True, capture_output=True, timeout=PATIENCE)
    tables = json.loads(table.read_text())["tables"]
    assert {t["operation"] for t in tables} >= {"all_reduce", "broadcast"} and all(t["where"] == "host" for t in tables)
    # Of a table by hand, every other step.
    steps = [[100, "two-shot"], [9000, "one-shot"], [None, "two-shot"]]
    table.write_text(json.dumps({"tables": [{"where": "host", "ranks": 2, "operation": "all_reduce", "steps": steps}]}))
    env = os.environ | {"JAL_COLL_TUNING": str(table), "JAL_LOG": "off"}
    out = subprocess.run([BENCH, "all_reduce", "-p", "2", "-q", "-s", "64,8K,16K"], env=env, check=True, capture_output=True, text=True,
                         timeout=PATIENCE).stdout
    assert [line.split()[-1] for line in out.splitlines()[-3:]] == ["two-shot", "one-shot", "two-shot"], out
    table.write_text('{"tables": [{"where": "host", "ranks": 2, "operation": "all_reduce", "steps": [[1, "ring"]]}]}')
    refused = subprocess.run([BENCH, "all_reduce", "-p", "2", "-q"], env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert refused.returncode != 0 and '"ring": expected one-shot' in refused.stderr, refused.stderr


@pytest.mark.skipif(not LLM, reason="JALAPENO_LLM says where the program is")
def test_a_model_shared_out_to_chips_tells_the_same_story():
    alone, _ = story()
    for chips in (2, 4):
        text, report = story("--chips", str(chips))
        assert text == alone
        assert report["chips"] == chips and report["assumed"] and 0 < report["decode"]["modelled_chip"]["communication_share"] < 1
    port = free_port()
    command = [LLM, "--model", MODEL, "--prompt", "Tom had a blue kite", "-n", "40"]
    processes = [subprocess.Popen(command, env=environment(r, 2, port), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                 for r in range(2)]
    texts = [p.communicate(timeout=PATIENCE)[0] for p in processes]
    assert texts[0].rstrip("\n") == alone.rstrip("\n") and texts[1] == ""
    assert all(p.returncode == 0 for p in processes)
    refused = subprocess.run([LLM, "--model", MODEL, "--prompt", "x", "--chips", "3"], capture_output=True, text=True, timeout=PATIENCE)
    assert refused.returncode == 1 and "cannot be shared out to 3 chips" in refused.stderr, refused.stderr


@pytest.mark.skipif("JAL_TEST_KILLS" not in os.environ, reason="JAL_TEST_KILLS says how many")
def test_many_kills_at_random_moments():
    generator = random.Random(int(os.environ.get("JAL_TEST_SEED", "1")))
    for kill in range(int(os.environ["JAL_TEST_KILLS"])):
        ranks = generator.choice([2, 3, 4])
        processes = start(ranks, 20, "shrink", JAL_COLL_INIT_TIMEOUT_MS="3000")
        victim = generator.randrange(ranks)
        time.sleep(generator.random() * 0.25)  # also while they are still meeting
        processes[victim].kill()
        for rank, p in enumerate(processes):
            said = lines(p)
            if rank == victim:
                continue
            # Before the meeting is over nobody can go on without it: refused, with a reason.
            if said[-1]["what"] == "refused":
                assert said[-1]["detail"], (kill, said)
                continue
            assert all(s.get("wrong", 0) == 0 for s in said), (kill, said)
            assert said[-1]["what"] == "shrunk" and said[-1]["error"] == "jalSuccess", (kill, said)
        for p in processes:
            p.wait()
    time.sleep(0.1)

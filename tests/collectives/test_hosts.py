"""Ranks on several "hosts": network namespaces of this machine with a bridge between them, libfabric's tcp over it."""
import json
import os
import shutil
import subprocess
import time

import pytest

from ranks import LLM, MODEL, PATIENCE, RANK, environment, free_port, joined, lines


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Hosts:
    """Namespaces with one interface each, 10.231.x.1 .. n, joined by a bridge in a namespace of its own."""

    def __init__(self, count):
        self.name, self.count, self.net = f"jal{os.getpid()}", count, 1 + os.getpid() % 250
        self.made = []
        self._namespace("br")
        self._in("br", "link", "add", "bridge", "type", "bridge")
        self._in("br", "link", "set", "bridge", "up")
        for h in range(count):
            self._namespace(str(h))
            ip("link", "add", f"{self.name}p{h}", "type", "veth", "peer", "name", f"{self.name}e{h}")
            ip("link", "set", f"{self.name}p{h}", "netns", f"{self.name}-br")
            ip("link", "set", f"{self.name}e{h}", "netns", f"{self.name}-{h}")
            self._in("br", "link", "set", f"{self.name}p{h}", "master", "bridge")
            self._in("br", "link", "set", f"{self.name}p{h}", "up")
            self._in(str(h), "link", "set", "lo", "up")
            self._in(str(h), "addr", "add", f"{self.address(h)}/24", "dev", f"{self.name}e{h}")
            self._in(str(h), "link", "set", f"{self.name}e{h}", "up")
            # A second network, for a second rail.
            ip("link", "add", f"{self.name}q{h}", "type", "veth", "peer", "name", "rail1", "netns", f"{self.name}-{h}")
            ip("link", "set", f"{self.name}q{h}", "netns", f"{self.name}-br")
            self._in("br", "link", "set", f"{self.name}q{h}", "master", "bridge")
            self._in("br", "link", "set", f"{self.name}q{h}", "up")
            self._in(str(h), "addr", "add", f"10.232.{self.net}.{h + 1}/24", "dev", "rail1")
            self._in(str(h), "link", "set", "rail1", "up")
            self._in(str(h), "link", "set", f"{self.name}e{h}", "name", "rail0")

    def address(self, host):
        return f"10.231.{self.net}.{host + 1}"

    def _namespace(self, which):
        ip("netns", "add", f"{self.name}-{which}")
        self.made.append(f"{self.name}-{which}")

    def _in(self, which, *arguments):
        ip("-n", f"{self.name}-{which}", *arguments)

    def start(self, *arguments, ranks_per_host=1, program=RANK, **more):
        port, ranks = free_port(), self.count * ranks_per_host
        more.setdefault("JAL_COLL_INTERFACE", "rail0")  # the one that is cut
        return [subprocess.Popen(["ip", "netns", "exec", f"{self.name}-{r // ranks_per_host}", program, *map(str, arguments)],
                                 env=environment(r, ranks, port, self.address(0), **more), stdout=subprocess.PIPE, text=True)
                for r in range(ranks)]

    def cut(self, host):
        self._in("br", "link", "set", f"{self.name}p{host}", "down")

    def heal(self, host):
        self._in("br", "link", "set", f"{self.name}p{host}", "up")

    def remove(self):
        for name in self.made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture(scope="module")
def hosts():
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    try:
        made = Hosts(3)
    except subprocess.CalledProcessError as e:
        subprocess.run(f"for n in $(ip netns list | grep -o '^jal{os.getpid()}-[a-z0-9]*'); do ip netns delete $n; done", shell=True)
        pytest.skip(f"no network namespaces here (needs root and CAP_NET_ADMIN): {e.stderr.strip()}")
    yield made
    made.remove()


@pytest.mark.parametrize("ranks_per_host", [1, 2])
def test_hosts_reduce_to_the_same_values(hosts, ranks_per_host):
    processes = hosts.start(1, ranks_per_host=ranks_per_host)
    for p in processes:
        first = joined(p)
        assert first["hosts"] == 3 and "libfabric" in first["transport"], first
    for p in processes:
        (done,) = lines(p)
        assert done["error"] == "jalSuccess" and done["wrong"] == 0 and done["operations"] > 3, done


@pytest.mark.parametrize("ranks_per_host", [1, 2])
def test_every_operation_gives_the_bits_of_one_host(hosts, ranks_per_host):
    processes = hosts.start(40, "operations", ranks_per_host=ranks_per_host)
    for p in processes:
        assert joined(p)["algorithm"] == ("hierarchical" if ranks_per_host > 1 else "two-shot")
    for p in processes:
        (done,) = lines(p)
        assert done["error"] == "jalSuccess" and done["wrong"] == 0 and done["operations"] == 40, done


def sent_bytes(hosts, host, device):
    stats = subprocess.run(["ip", "-n", f"{hosts.name}-{host}", "-s", "-j", "link", "show", "dev", device], check=True, capture_output=True).stdout
    return json.loads(stats)[0]["stats64"]["tx"]["bytes"]


def test_rails_share_large_messages(hosts):
    before = sent_bytes(hosts, 0, "rail1")
    processes = hosts.start(40, "operations", JAL_COLL_RAILS="rail0,rail1")
    for p in processes:
        assert joined(p)["transport"].endswith("2 rails")
    for p in processes:
        (done,) = lines(p)
        assert done["error"] == "jalSuccess" and done["wrong"] == 0 and done["operations"] == 40, done
    assert sent_bytes(hosts, 0, "rail1") - before > 1 << 20
    for p in hosts.start(1, JAL_COLL_RAILS="rail0,rail7"):
        (refused,) = lines(p)
        assert refused["what"] == "refused" and "rail7: no such interface" in refused["detail"], refused


def test_a_killed_rank_is_told_to_the_other_hosts_which_go_on(hosts):
    processes = hosts.start(30, "shrink")
    for p in processes:
        joined(p)
    time.sleep(0.3)
    killed_ns = time.time_ns()
    processes[1].kill()
    for rank in (0, 2):
        done, shrunk = lines(processes[rank])
        assert done["error"] == "jalErrorPeerLost" and done["culprit"] == 1 and done["wrong"] == 0, done
        assert shrunk["ranks"] == 2 and shrunk["error"] == "jalSuccess" and shrunk["wrong"] == 0, shrunk
        print(f"told after {(done['failed_ns'] - killed_ns) / 1e6:.1f} ms")
    processes[1].wait()


def test_a_link_that_heals_in_time_is_no_error(hosts):
    processes = hosts.start(4, JAL_COLL_GRACE_MS="20000")
    for p in processes:
        joined(p)
    time.sleep(0.3)
    hosts.cut(1)
    time.sleep(1)
    hosts.heal(1)
    for p in processes:
        (done,) = lines(p)
        assert done["error"] == "jalSuccess" and done["wrong"] == 0, done


def test_a_link_that_stays_cut_ends_the_operation_and_the_rest_goes_on(hosts):
    processes = hosts.start(30, "shrink", JAL_COLL_GRACE_MS="3000")
    for p in processes:
        joined(p)
    time.sleep(0.3)
    hosts.cut(2)
    try:
        for rank in (0, 1):
            done, shrunk = lines(processes[rank])
            assert done["error"] == "jalErrorPeerLost" and done["culprit"] == 2 and done["wrong"] == 0, done
            assert "nothing was heard" in done["evidence"], done
            assert shrunk["ranks"] == 2 and shrunk["wrong"] == 0 and shrunk["error"] == "jalSuccess", shrunk
        # The one behind the cut goes on alone, and knows where the cut is.
        said = lines(processes[2])
        assert said[0]["error"] == "jalErrorPeerLost" and said[-1]["wrong"] == 0, said
        assert "interface rail0 lost its link" in said[0]["evidence"], said
    finally:
        hosts.heal(2)


@pytest.mark.skipif(not LLM, reason="JALAPENO_LLM says where the program is")
def test_a_model_runs_across_hosts(hosts):
    arguments = ["--model", MODEL, "--prompt", "Tom had a blue kite", "-n", "30"]
    alone = subprocess.run([LLM, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    two = Hosts.__new__(Hosts)
    two.__dict__.update(hosts.__dict__, count=2)
    processes = two.start(*arguments, program=LLM)
    texts = [p.communicate(timeout=PATIENCE)[0] for p in processes]
    assert texts == [alone, ""] and all(p.returncode == 0 for p in processes)


def test_no_provider_is_an_error_that_lists_what_was_found(hosts):
    processes = hosts.start(1, JAL_COLL_PROVIDER="psm9")
    for p in processes:
        (refused,) = lines(p)
        assert refused["what"] == "refused" and "psm9: " in refused["detail"], refused

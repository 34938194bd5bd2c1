"""What the tests of ranks in processes share: the programs, their environment, and what they say."""
import json
import os
import pathlib
import random

RANK = os.environ["JALAPENO_COLL_RANK"]
LLM = os.environ.get("JALAPENO_LLM", "")
MODEL = str(pathlib.Path(__file__).resolve().parents[2] / "samples/llm/model/storyteller-3m-bf16.gguf")
PATIENCE = 120


def environment(rank, ranks, port, address="127.0.0.1", **more):
    """As torchrun would start a rank, whatever launcher runs the tests."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI", "SLURM"))}
    env.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR=address, MASTER_PORT=str(port), JAL_LOG="off", **more)
    return env


def free_port():
    return random.randrange(10000, 32000)  # below those that the kernel gives to whoever asks for any


def lines(process):
    out, _ = process.communicate(timeout=PATIENCE)
    return [json.loads(line) for line in out.splitlines()]


def joined(process):
    """The process's first line: it has joined."""
    line = process.stdout.readline()
    said = json.loads(line) if line else {"what": "nothing"}
    assert said["what"] == "joined", said
    return said

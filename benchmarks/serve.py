"""Load on `llm2vec serve`: many clients at once against one at a time and against a plain loop.

    python benchmarks/serve.py [MODEL] [--clients 64] [--seconds 60]

The plain loop is what people write first: FastAPI, `SentenceTransformer.encode` in a route, no
joining of requests. Both servers run on this machine's loopback and are asked in turns, so that what
else the machine does hits both; clients are a process of their own. Every request holds one sentence.
MODEL is an encoder folder, or a decoder, which is then made bidirectional and written to a temporary
folder first.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
from machine import heading

from llm2vec.encoder.encoder import Encoder

TURNS = 3
"""How often each server is asked, for a share of the seconds."""

WORDS = (
    "the of and to in is was for on that by this with from they be at have or an as were which "
    "one their you had not been has its who more when out up said about other into only new "
    "some could time these two may then do first any my now such like our over man me even most "
    "made after also did many before must through years where much your way well down should "
    "because each just those people how too little state good very make world still own see men"
)


def sentence(source: random.Random) -> str:
    """Words of a random number, as people's queries and sentences have it."""
    return " ".join(source.choices(WORDS.split(), k=source.randint(4, 24)))


async def ask(port: int, path: str, end: float, seed: int) -> list[float]:
    """One client: asks, waits for the answer, asks again; seconds of each request.

    It speaks HTTP over a bare connection, so that the load costs next to nothing beside the server.
    """
    source = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    while time.perf_counter() < end:
        body = json.dumps({"inputs": sentence(source)}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        started = time.perf_counter()
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not answer.startswith(b"http/1.1 200"):
            raise SystemExit(f"a request failed: {answer!r}")
        length = answer.partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        times.append(time.perf_counter() - started)
    writer.close()
    return times


async def load(port: int, path: str, *, clients: int, seconds: float) -> list[float]:
    """Seconds that each request took, from so many clients at once."""
    end = time.perf_counter() + seconds
    each = await asyncio.gather(*(ask(port, path, end, seed) for seed in range(clients)))
    return [one for times in each for one in times]


def measured(servers: Mapping[str, "Server"], *, clients: int, seconds: float) -> dict[str, dict]:
    """Throughput, percentiles, processor time and memory of each server; they take turns."""
    found: dict[str, list[float]] = {name: [] for name in servers}
    took, used = dict.fromkeys(servers, 0.0), dict.fromkeys(servers, 0.0)
    memory = {name: [resident_mb(server.process)] for name, server in servers.items()}
    for _ in range(TURNS):
        for name, server in servers.items():
            cpu_s, started = processor_s(server.process), time.perf_counter()
            asking = load(server.port, "/embed", clients=clients, seconds=seconds / TURNS)
            found[name] += asyncio.run(asking)
            took[name] += time.perf_counter() - started
            used[name] += processor_s(server.process) - cpu_s
            memory[name].append(resident_mb(server.process))
    return {
        name: summary(found[name], took[name], used[name], memory[name], clients=clients)
        for name in servers
    }


def summary(
    times: list[float], took_s: float, used_s: float, memory_mb: list[int], *, clients: int
) -> dict:
    """One line of the result."""
    p50, p95, p99 = np.percentile(np.asarray(times) * 1000, [50, 95, 99])
    return {
        "clients": clients,
        "requests": len(times),
        "per_s": round(len(times) / took_s, 1),
        "p50_ms": round(p50, 1),
        "p95_ms": round(p95, 1),
        "p99_ms": round(p99, 1),
        "cpu_ms_a_request": round(used_s / len(times) * 1000, 2),
        "memory_mb": memory_mb,
    }


@dataclass(frozen=True)
class Server:
    """A server that runs: its port and its process."""

    port: int
    process: int


def resident_mb(process: int) -> int:
    """Memory that a process holds."""
    status = Path(f"/proc/{process}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) // 1024


def processor_s(process: int) -> float:
    """Processor time that a process has used: what others on the machine do not change much."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def plain_loop(folder: str, port: int) -> None:
    """The server to compare with."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    class Body(BaseModel):
        inputs: str | list[str]

    model = SentenceTransformer(folder)
    app = FastAPI()

    @app.post("/embed")
    def embed(body: Body) -> list[list[float]]:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        return vectors.tolist()

    @app.get("/health")
    def health() -> None:
        return None

    uvicorn.run(app, port=port, log_level="warning")


def started(command: list[str], url: str) -> subprocess.Popen:
    """A server that answers."""
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    for _ in range(600):
        time.sleep(0.5)
        try:
            if httpx2.get(f"{url}/health").status_code == 200:
                return server
        except httpx2.TransportError:
            continue
    raise SystemExit("the server does not answer")


def main() -> None:
    """Measure both servers and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="bundled")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain_loop(options.model, options.port)
        return
    with tempfile.TemporaryDirectory() as folder:
        Encoder.from_pretrained(options.model).save(Path(folder) / "encoder")
        print(json.dumps(compare(f"{folder}/encoder", options), indent=2))


def compare(folder: str, options: argparse.Namespace) -> dict:
    """Both servers, each with one client and with many, in turns."""
    serve, plain = options.port, options.port + 1
    commands = {
        "llm2vec serve": (serve, ["-m", "llm2vec", "serve", folder, "--port", str(serve)]),
        "plain loop": (plain, [__file__, folder, "--plain", "--port", str(plain)]),
    }
    running = {
        name: started([sys.executable, *command], f"http://127.0.0.1:{port}")
        for name, (port, command) in commands.items()
    }
    servers = {name: Server(commands[name][0], running[name].pid) for name in running}
    found: dict = {"machine": heading().strip(), "load_average": os.getloadavg()[0]}
    try:
        measured(servers, clients=options.clients, seconds=6)  # warm
        alone = measured(servers, clients=1, seconds=options.seconds / 3)
        many = measured(servers, clients=options.clients, seconds=options.seconds)
    finally:
        for server in running.values():
            server.terminate()
            server.wait()
    found |= {name: [alone[name], many[name]] for name in servers}
    served, plainly = many["llm2vec serve"], many["plain loop"]
    return {**found, **ratios(alone["llm2vec serve"], served, plainly)}


def ratios(alone: dict, served: dict, plain: dict) -> dict:
    """How many times as much the joined requests are, by throughput and by processor time."""
    found = {}
    for name, other in (("the plain loop", plain), ("one at a time", alone)):
        found[f"times {name}"] = round(served["per_s"] / other["per_s"], 2)
        less = other["cpu_ms_a_request"] / served["cpu_ms_a_request"]
        found[f"times {name}, by processor time"] = round(less, 2)
    return found


if __name__ == "__main__":
    main()

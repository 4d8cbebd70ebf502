"""A real server on a real port: clients that hang up, do not read, or are there when it stops."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import httpx2
import pytest
from servers import Slow, on_a_port, until

from llm2vec.serving.limits import Limits


def opened(url, *, buffer=None):
    """A connection on which nothing was sent."""
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    parts = urlsplit(url)
    connection.connect((parts.hostname, parts.port))
    return connection


def request(path, body, *, announced=None):
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {announced or len(content)}\r\n\r\n".encode() + content


def test_a_client_that_hangs_up_in_the_middle_of_its_body_leaves_nothing(encoder):
    with on_a_port(encoder) as (url, application):
        with opened(url) as connection:
            connection.sendall(request("/embed", {"inputs": "a"}, announced=5000))
            until(lambda: application.asgi.under_way == 1)
        until(lambda: application.asgi.under_way == 0)
        assert httpx2.post(f"{url}/embed", json={"inputs": "a"}).status_code == 200


def test_the_texts_of_a_client_that_hangs_up_are_not_computed(encoder):
    with on_a_port(encoder, kind=Slow) as (url, application):
        served = application.served[0]
        served.pause_s = 0.5
        served.batches.clear()
        with opened(url) as first, opened(url) as second:
            first.sendall(request("/embed", {"inputs": "a"}))
            until(lambda: application.asgi.under_way == 1)
            time.sleep(0.1)
            second.sendall(request("/embed", {"inputs": ["b"] * 50}))
            until(lambda: application.asgi.under_way == 2)
        until(lambda: application.asgi.under_way == 0)
        assert httpx2.post(f"{url}/embed", json={"inputs": "a"}).status_code == 200
        assert sum(served.batches) == 2


def test_a_body_that_does_not_arrive_is_not_waited_for(encoder):
    with on_a_port(encoder, limits=Limits(timeout_s=0.3)) as (url, _), opened(url) as connection:
        connection.sendall(request("/v1/embeddings", {"input": "a"}, announced=5000))
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")


def test_a_client_that_does_not_read_is_left(encoder):
    limits = Limits(timeout_s=1.0)
    with on_a_port(encoder, limits=limits) as (url, application):
        states = {"inputs": ["word " * 400] * 20}  # an answer of some twenty megabytes
        limited = opened(url, buffer=4096)
        with limited:
            limited.sendall(request("/embed_all", states))
            until(lambda: application.asgi.under_way == 1)
            others = [httpx2.post(f"{url}/embed", json={"inputs": "a"}) for _ in range(3)]
            assert {each.status_code for each in others} == {200}
            until(lambda: application.asgi.under_way == 0, within_s=30)


def test_a_slow_but_willing_reader_gets_all_of_a_large_answer(encoder):
    with on_a_port(encoder) as (url, _):
        body = {"inputs": ["word " * 400] * 4}
        with httpx2.stream("POST", f"{url}/embed_all", json=body, timeout=60) as response:
            parts = []
            for part in response.iter_bytes(1 << 20):
                time.sleep(0.05)
                parts.append(part)
        states = json.loads(b"".join(parts))
    lengths = [len(each.ids) for each in encoder.tokens(body["inputs"])]
    assert [len(each) for each in states] == lengths


@pytest.fixture
def process(tmp_path):
    """The command itself, on a free port: its address, and the process."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "llm2vec", "serve", "bundled", "--port", "0"]
    with log.open("wb") as file:
        running = subprocess.Popen(
            command, stderr=file, env={**os.environ, "LLM2VEC_API_KEY": "hidden-key"}
        )
    try:
        until(lambda: "listening" in log.read_text() or running.poll() is not None, within_s=120)
        found = re.search(r"http://[\d.:]+", log.read_text())
        assert found is not None, log.read_text()
        yield found.group(), running, log
    finally:
        running.kill()
        running.wait()


def ask_on_and_on(url, statuses, errors, stopped):
    """Ask until the port is closed; a request that was taken must be answered."""
    headers = {"authorization": "Bearer hidden-key"}
    with httpx2.Client(base_url=url, headers=headers, timeout=60) as client:
        while not stopped.is_set():
            try:
                response = client.post("/embed", json={"inputs": ["some words " * 20] * 4})
                statuses.append(response.status_code)
            except httpx2.ConnectError:
                return  # the port is closed: this request was never taken
            except httpx2.TransportError as error:
                errors.append(repr(error))
                return
            if statuses[-1] == 503:
                time.sleep(0.1)


def answer_after_the_port_closed(url, connection):
    """What a connection gets that sends its request only when no new one can be opened."""
    until(lambda: is_closed(url), within_s=60)
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    return connection.recv(65536)


def is_closed(url):
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_under_load_answers_every_request_that_was_taken(process):
    url, running, log = process
    early = opened(url)
    statuses, errors, stopped = [], [], threading.Event()
    arguments = (url, statuses, errors, stopped)
    clients = [threading.Thread(target=ask_on_and_on, args=arguments) for _ in range(16)]
    for each in clients:
        each.start()
    until(lambda: len(statuses) > 30, within_s=60)
    running.send_signal(signal.SIGTERM)
    with early:
        assert answer_after_the_port_closed(url, early).startswith(b"HTTP/1.1 503")
    assert running.wait(timeout=60) == 0
    stopped.set()
    for each in clients:
        each.join(timeout=60)
    assert errors == []
    assert set(statuses) <= {200, 503}
    assert statuses.count(503) > 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events if event["event"] != "request"] == [
        "listening",
        "draining",
        "stopped",
    ]
    assert not re.search("hidden-key|some words", log.read_text())

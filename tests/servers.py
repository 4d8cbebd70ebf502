"""Servers to test against: in this process by a test client, on a real port by a thread."""

import asyncio
import threading
import time
from contextlib import contextmanager

import numpy as np
import uvicorn
from starlette.testclient import TestClient

from llm2vec.serving.app import make_application
from llm2vec.serving.limits import Limits
from llm2vec.serving.served import Served
from llm2vec.serving.server import listen


class Slow(Served):
    """Takes a while for every batch, and remembers how many texts were in each."""

    pause_s = 0.0

    def __init__(self, *args, **kwargs):
        self.batches = []
        super().__init__(*args, **kwargs)

    def vectors(self, tokens):
        time.sleep(self.pause_s)
        self.batches.append(len(tokens))
        return super().vectors(tokens)


@contextmanager
def asked(encoder, *others, limits=None, keys=None, kind=Served, name="small"):
    """A test client of a server of one encoder, or more."""
    limits = limits or Limits()
    served = [kind(name, encoder, limits=limits)]
    served += [kind(f"other{place}", each, limits=limits) for place, each in enumerate(others)]
    application = make_application(served, limits=limits, keys=keys)
    with TestClient(application.asgi, raise_server_exceptions=False) as client:
        client.application = application
        client.served = served[0]
        yield client


@contextmanager
def on_a_port(encoder, *, limits=None, keys=None, kind=Served, name="small"):
    """The address of a real server in a thread, and its application."""
    limits = limits or Limits()
    application = make_application([kind(name, encoder, limits=limits)], limits=limits, keys=keys)
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(application.asgi, log_config=None, ws="none", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", application
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def until(found, *, within_s=10.0):
    """Wait until something is so."""
    end = time.monotonic() + within_s
    while not found():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.02)


def unit(vectors):
    """Vectors of length 1, by the plainest way."""
    rows = np.asarray(vectors, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

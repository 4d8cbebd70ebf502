"""What goes wrong hurts only whom it concerns, and `/health` says how things are."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from servers import Slow, asked, until

from llm2vec.serving import queue as queues
from llm2vec.serving.limits import Limits
from llm2vec.serving.metrics import Metrics
from llm2vec.serving.queue import Queue
from llm2vec.serving.refusals import Refusal

LONG = "A rather long text that the small device has no room for, whatever comes with it."


class Cramped(Slow):
    """Has room for few texts at once, and for no long one."""

    def vectors(self, tokens):
        self.batches.append(len(tokens))
        if len(tokens) > 3 or max(len(each.ids) for each in tokens) > 15:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().vectors(tokens)


class Fragile(Slow):
    """Fails while it is told to."""

    fault: Exception | None = None
    spoiled = False

    def vectors(self, tokens):
        if self.fault is not None:
            raise self.fault
        found = super().vectors(tokens)
        if self.spoiled:
            found = [
                row * np.nan if len(each.ids) > 15 else row
                for row, each in zip(found, tokens, strict=True)
            ]
        return found


def together(client, bodies):
    """Responses of requests that are sent at once."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: client.post("/embed", json=body), bodies))


def test_a_batch_that_does_not_fit_is_computed_in_halves(encoder):
    texts = [f"text {number}" for number in range(10)]
    with asked(encoder, kind=Cramped) as client:
        response = client.post("/embed", json={"inputs": texts})
        assert response.status_code == 200
        assert max(client.served.batches) > 3
        assert client.get("/health").status_code == 200
    want = encoder.encode(texts, normalize=True).numpy()
    assert np.abs(np.asarray(response.json()) - want).max() < 1e-5


def test_out_of_memory_fails_only_the_request_that_does_not_fit(encoder):
    with asked(encoder, kind=Cramped) as client:
        client.served.pause_s = 0.3
        bodies = (
            [{"inputs": "short"}] * 2 + [{"inputs": ["short", LONG]}] + [{"inputs": "short"}] * 2
        )
        statuses = [response.status_code for response in together(client, bodies)]
        assert statuses == [200, 200, 424, 200, 200]
        response = client.post("/v1/embeddings", json={"input": ["short", LONG]})
        assert response.status_code == 500
        assert response.json()["error"]["param"] == "input[1]"
        assert "out of memory" in response.json()["error"]["message"]
        assert client.get("/health").status_code == 200
        assert 'error="OutOfMemoryError"' in client.get("/metrics").text


def test_a_model_that_fails_once_is_healthy_again(encoder):
    with asked(encoder, kind=Fragile) as client:
        client.served.works = lambda: True
        client.served.fault = RuntimeError("a text of a request")
        response = client.post("/v1/embeddings", json={"input": "a"})
        assert response.status_code == 500
        assert "a text of a request" not in response.text
        client.served.fault = None
        assert client.get("/health").status_code == 200
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200


def test_health_says_that_a_model_does_not_work_until_it_does(encoder, monkeypatch):
    monkeypatch.setattr(queues, "_PROBE_EVERY_S", 0.2)
    with asked(encoder, kind=Fragile) as client:
        client.served.fault = RuntimeError("broken")
        assert client.post("/embed", json={"inputs": "a"}).status_code == 424
        until(lambda: client.get("/health").status_code == 503)
        refused = client.post("/embed", json={"inputs": "a"})
        assert (refused.status_code, refused.json()["error_type"]) == (503, "Unhealthy")
        assert int(refused.headers["retry-after"]) >= 1
        assert "llm2vec_healthy 0.0" in client.get("/metrics").text
        client.served.fault = None
        until(lambda: client.get("/health").status_code == 200)
        assert client.post("/embed", json={"inputs": "a"}).status_code == 200


def test_a_model_that_gives_other_vectors_than_before_does_not_work(encoder):
    with asked(encoder, kind=Fragile) as client:
        assert client.served.works()
        client.served._probe_vector = -client.served._probe_vector
        assert not client.served.works()


def test_numbers_that_are_not_finite_are_never_given_out(encoder):
    with asked(encoder, kind=Fragile) as client:
        client.served.spoiled = True
        bodies = [{"inputs": "short"}, {"inputs": ["short", LONG]}]
        fine, spoiled = together(client, bodies)
        assert (fine.status_code, spoiled.status_code) == (200, 424)
        assert spoiled.json()["index"] == 1


def test_a_full_queue_is_said_with_the_time_to_come_back(encoder):
    texts = ["one two three"] * 10
    cost = sum(len(each.ids) for each in encoder.tokens(texts))
    with asked(encoder, kind=Slow, limits=Limits(max_queue_tokens=cost * 2)) as client:
        client.served.pause_s = 1.0
        responses = together(client, [{"inputs": texts}] * 4)
        statuses = sorted(response.status_code for response in responses)
        assert statuses == [200, 200, 429, 429]
        refused = [each for each in responses if each.status_code == 429]
        assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
        assert refused[0].json()["error_type"] == "Overloaded"
        client.served.pause_s = 0.0
        assert client.post("/embed", json={"inputs": texts}).status_code == 200


def test_more_requests_than_allowed_are_refused_at_once(encoder):
    with asked(encoder, kind=Slow, limits=Limits(max_requests=2)) as client:
        client.served.pause_s = 1.0
        statuses = [each.status_code for each in together(client, [{"inputs": "a"}] * 5)]
        assert sorted(statuses) == [200, 200, 429, 429, 429]
        assert client.get("/health").status_code == 200


def test_requests_that_wait_are_joined_into_one_batch(encoder):
    with asked(encoder, kind=Slow) as client:
        client.served.pause_s = 0.5
        client.served.batches.clear()
        assert {each.status_code for each in together(client, [{"inputs": "a"}] * 12)} == {200}
        assert max(client.served.batches) >= 6
        assert len(client.served.batches) <= 4


def on_a_queue(encoder, steps, *, limits):
    """Run steps on a queue of its own and give its model back."""

    async def run():
        served = Slow("small", encoder, limits=limits)
        served.batches.clear()
        queue = Queue(limits, Metrics())
        async with queue.running():
            await steps(queue, served)
        return served

    return asyncio.run(run())


def test_a_short_request_is_not_behind_all_of_a_long_one(encoder):
    finished = []

    async def steps(queue, served):
        served.pause_s = 0.05
        long = queue.add(served, served.vectors, encoder.tokens(["a b c d"] * 60))
        short = queue.add(served, served.vectors, encoder.tokens(["a b c d"]))
        long.done.add_done_callback(lambda _: finished.append("long"))
        short.done.add_done_callback(lambda _: finished.append("short"))
        await asyncio.gather(long.done, short.done)

    served = on_a_queue(encoder, steps, limits=Limits(batch_tokens=40))
    assert finished == ["short", "long"]
    assert sum(served.batches) == 61
    assert len(served.batches) > 3


def test_a_batch_holds_no_more_tokens_than_allowed_but_one_text_always(encoder):
    sizes = []

    async def steps(queue, served):
        def counted(tokens):
            sizes.append(sum(len(each.ids) for each in tokens))
            return served.vectors(tokens)

        texts = ["a"] * 9 + ["word " * 100] + ["b c"] * 9
        await queue.add(served, counted, encoder.tokens(texts)).done

    on_a_queue(encoder, steps, limits=Limits(batch_tokens=8))
    assert sorted(sizes)[-2] <= 8 < sorted(sizes)[-1]


def test_a_request_that_was_left_is_not_computed(encoder):
    async def steps(queue, served):
        served.pause_s = 0.2
        first = queue.add(served, served.vectors, encoder.tokens(["a"]))
        await asyncio.sleep(0.05)
        left = queue.add(served, served.vectors, encoder.tokens(["b"] * 5))
        left.done.cancel()
        await first.done
        await queue.add(served, served.vectors, encoder.tokens(["c"])).done

    assert on_a_queue(encoder, steps, limits=Limits()).batches == [1, 1]


def test_a_queue_that_stops_finishes_what_it_has_and_takes_nothing_new(encoder):
    async def steps(queue, served):
        served.pause_s = 0.1
        taken = [queue.add(served, served.vectors, encoder.tokens(["a"])) for _ in range(5)]
        queue.stop()
        with pytest.raises(Refusal, match="stopping"):
            queue.add(served, served.vectors, encoder.tokens(["a"]))
        for each in taken:
            assert len(await each.done) == 1
        assert "stopping" in queue.problem()

    on_a_queue(encoder, steps, limits=Limits())


def test_a_batch_that_does_not_end_is_not_healthy(encoder):
    async def steps(queue, served):
        served.pause_s = 0.5
        job = queue.add(served, served.vectors, encoder.tokens(["a"]))
        await asyncio.sleep(0.3)
        assert "has not finished" in queue.problem()
        await job.done
        assert queue.problem() is None

    on_a_queue(encoder, steps, limits=Limits(timeout_s=0.1))

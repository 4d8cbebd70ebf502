"""What the server answers: the vectors of `encode`, in OpenAI's and TEI's shapes, or why not."""

import base64
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from conftest import DECODERS
from servers import Slow, asked, unit

from llm2vec import Encoder
from llm2vec.errors import UsageError
from llm2vec.serving.keys import Keys, read_keys
from llm2vec.serving.limits import Limits
from llm2vec.serving.logs import JsonLines

NEAR = 1e-5
"""A text's vector depends on its batch in the last bits of float32 alone."""

TEXTS = [
    "The old miller opened the door.",
    "two",
    "Ein Satz auf Deutsch.",
    "東京は大きい。",
    "a  b\n",
]


@pytest.fixture(scope="module")
def client(encoder):
    with asked(encoder) as client:
        yield client


def with_settings(encoder, **changes):
    """The same model with other settings."""
    settings = replace(encoder.settings, **changes)
    return Encoder(encoder.model, encoder.tokenizer, settings=settings)


def vectors_of(response):
    assert response.status_code == 200, response.text
    body = response.json()
    rows = body if isinstance(body, list) else [each["embedding"] for each in body["data"]]
    return np.asarray(rows)


def test_openai_vectors_are_those_of_encode(client, encoder):
    response = client.post("/v1/embeddings", json={"input": TEXTS, "model": "small"})
    assert np.abs(vectors_of(response) - encoder.encode(TEXTS, normalize=True).numpy()).max() < NEAR
    body = response.json()
    assert (body["object"], body["model"]) == ("list", "small")
    assert [each["index"] for each in body["data"]] == list(range(len(TEXTS)))
    read = sum(len(each.ids) for each in encoder.tokens(TEXTS))
    assert body["usage"] == {"prompt_tokens": read, "total_tokens": read}


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "qwen3"])
def test_other_families_are_served_with_the_same_vectors(name):
    encoder = Encoder.from_pretrained(DECODERS / name)
    with asked(encoder) as client:
        found = vectors_of(client.post("/embed", json={"inputs": TEXTS}))
        ids = [encoder.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        of_ids = vectors_of(client.post("/embed", json={"inputs": ids}))
    assert np.abs(found - encoder.encode(TEXTS, normalize=True).numpy()).max() < NEAR
    assert np.abs(of_ids - found).max() < NEAR


def test_vectors_keep_their_length_where_that_is_asked(client, encoder):
    for path, body in (("/v1/embeddings", {"input": TEXTS}), ("/embed", {"inputs": TEXTS})):
        found = vectors_of(client.post(path, json={**body, "normalize": False}))
        assert np.abs(found - encoder.encode(TEXTS, normalize=False).numpy()).max() < NEAR


def test_base64_holds_the_same_numbers_as_the_list(client):
    body = {"input": TEXTS}
    plain = vectors_of(client.post("/v1/embeddings", json=body)).astype(np.float32)
    response = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"})
    packed = [base64.b64decode(each["embedding"]) for each in response.json()["data"]]
    assert np.abs(np.stack([np.frombuffer(each, "<f4") for each in packed]) - plain).max() < 1e-6


def test_dimensions_are_the_first_ones_scaled_to_length_one(client, encoder):
    found = vectors_of(client.post("/v1/embeddings", json={"input": TEXTS, "dimensions": 7}))
    assert np.abs(found - unit(encoder.encode(TEXTS).numpy()[:, :7])).max() < NEAR
    of_tei = vectors_of(client.post("/embed", json={"inputs": TEXTS, "dimensions": 7}))
    assert np.abs(of_tei - found).max() < NEAR


def test_a_prompt_is_given_by_its_words_or_its_name(encoder):
    named = with_settings(encoder, prompts={"query": "Find similar texts:"})
    want = named.encode(TEXTS, prompt_name="query", normalize=True).numpy()
    with asked(named) as client:
        for how in ({"prompt_name": "query"}, {"prompt": "Find similar texts:"}):
            for path, key in (("/v1/embeddings", "input"), ("/embed", "inputs")):
                found = vectors_of(client.post(path, json={key: TEXTS, **how}))
                assert np.abs(found - want).max() < NEAR
        both = client.post("/embed", json={"inputs": "a", "prompt": "x", "prompt_name": "query"})
        assert both.status_code == 422
        unknown = client.post("/embed", json={"inputs": "a", "prompt_name": "answer"})
        assert "query" in unknown.json()["error"]
        assert client.get("/info").json()["prompts"] == ["query"]


@pytest.mark.parametrize("skipped", [True, False])
def test_token_ids_give_what_their_text_gives(encoder, skipped):
    chosen = with_settings(encoder, skip_prompt=skipped)
    text = "The old miller opened the door."
    ids = chosen.tokenizer(text, add_special_tokens=False)["input_ids"]
    want = chosen.encode([text], normalize=True).numpy()
    with asked(chosen) as client:
        for given in (ids, [ids]):
            found = vectors_of(client.post("/v1/embeddings", json={"input": given}))
            assert np.abs(found - want).max() < NEAR
        mixed = vectors_of(client.post("/embed", json={"inputs": [text, ids]}))
        assert np.abs(mixed - want).max() < NEAR


def test_every_state_is_given_and_their_mean_is_the_vector(client, encoder):
    response = client.post("/embed_all", json={"inputs": TEXTS})
    means = []
    for states, tokens in zip(response.json(), encoder.tokens(TEXTS), strict=True):
        assert len(states) == len(tokens.ids)
        means.append(np.mean(states[tokens.first : tokens.end], axis=0))
    assert np.abs(np.stack(means) - encoder.encode(TEXTS).numpy()).max() < NEAR


def test_similarity_is_the_cosine(client, encoder):
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    found = client.post("/similarity", json={"inputs": inputs}).json()
    rows = unit(encoder.encode(TEXTS).numpy())
    assert np.abs(np.asarray(found) - rows @ rows[0]).max() < NEAR


def test_several_encoders_are_served_by_their_names(encoder):
    other = with_settings(encoder, pooling="last")
    with asked(encoder, other) as client:
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == [
            "small",
            "other0",
        ]
        want = other.encode(TEXTS, normalize=True).numpy()
        by_field = client.post("/v1/embeddings", json={"input": TEXTS, "model": "other0"})
        by_path = client.post("/models/other0/embed", json={"inputs": TEXTS})
        for response in (by_field, by_path):
            assert np.abs(vectors_of(response) - want).max() < NEAR
        assert client.get("/models/other0/info").json()["model_type"] == {
            "embedding": {"pooling": "last"}
        }
        assert client.get("/v1/models/other0").json()["id"] == "other0"
        assert client.get("/v1/models/third").status_code == 404
        missing = client.post("/v1/embeddings", json={"input": "a", "model": "third"})
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        assert client.post("/models/third/embed", json={"inputs": "a"}).status_code == 404


def test_the_root_embeds_as_tei_does_and_shows_a_page_to_a_browser(client):
    assert vectors_of(client.post("/", json={"inputs": "a"})).shape == (1, 192)
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_outside(client, path):
    html = client.get(path).text
    assert "//" not in html.replace("http://www.w3.org", "").replace("// ", "")


def test_a_text_that_is_too_long_is_refused_by_its_index_and_cut_only_on_request(client, encoder):
    texts = ["short", "long " * 700]
    refused = client.post("/v1/embeddings", json={"input": texts})
    assert refused.status_code == 413
    assert refused.json()["error"]["param"] == "input[1]"
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    of_tei = client.post("/embed", json={"inputs": texts})
    assert (of_tei.status_code, of_tei.json()["index"]) == (413, 1)
    cut = client.post("/v1/embeddings", json={"input": texts, "truncate": True})
    assert np.abs(vectors_of(cut) - encoder.encode(texts, normalize=True).numpy()).max() < NEAR


def test_the_left_side_is_cut_on_request(client, encoder):
    text = " ".join(f"word{number}" for number in range(600))
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    body = {"inputs": text, "truncate": True, "truncation_direction": "Left"}
    kept = vectors_of(client.post("/embed", json={"inputs": ids[-encoder.settings.max_length :]}))
    assert np.abs(vectors_of(client.post("/embed", json=body)) - kept).max() < NEAR


def test_the_limit_of_a_text_without_its_prompt_counts(encoder):
    short = with_settings(encoder, doc_max_length=5)
    text = "one two three four five six seven eight nine ten"
    with asked(short) as client:
        assert client.post("/embed", json={"inputs": text}).status_code == 413
        found = vectors_of(client.post("/embed", json={"inputs": text, "truncate": True}))
    assert np.abs(found - short.encode([text], normalize=True).numpy()).max() < NEAR


def test_a_prompt_that_leaves_no_room_is_refused(client):
    for inputs in ("a", [5]):
        body = {"inputs": inputs, "prompt": "word " * 600, "truncate": True}
        response = client.post("/embed", json=body)
        assert response.status_code == 413
        assert "no room" in response.json()["error"]


WRONG = [
    ('{"input": ', 400, None),
    ('{"input": ""}', 400, "input[0]"),
    ('{"input": []}', 400, None),
    ('{"input": ["a", ""]}', 400, "input[1]"),
    ('{"input": ["a", []]}', 400, "input[1]"),
    ("[1]", 422, None),
    ("{}", 422, "input"),
    ('{"input": null}', 422, "input"),
    ('{"input": 5}', 422, "input"),
    ('{"input": {"text": "a"}}', 422, "input"),
    ('{"input": ["a", 5]}', 422, "input[1]"),
    ('{"input": ["a", [5, "b"]]}', 422, "input[1]"),
    ('{"input": [true]}', 422, "input[0]"),
    ('{"input": [5, 6.5]}', 422, "input[0]"),
    ('{"input": [NaN]}', 422, "input[0]"),
    ('{"input": [[1], [Infinity]]}', 422, "input[1]"),
    ('{"input": [[1], [-1]]}', 422, "input[1]"),
    ('{"input": [[1], [999999999999999999999999]]}', 422, "input[1]"),
    ('{"input": ["a", "\\ud800"]}', 422, "input[1]"),
    ('{"input": "a", "prompt": "\\ud800"}', 422, "prompt"),
    ('{"input": "a", "dimensions": 0}', 422, "dimensions"),
    ('{"input": "a", "dimensions": 100000}', 422, "dimensions"),
    ('{"input": "a", "dimension": 5}', 422, "dimension"),
    ('{"input": "a", "encoding_format": "hex"}', 422, "encoding_format"),
    ('{"input": "a", "truncate": "yes"}', 422, "truncate"),
]


@pytest.mark.parametrize(("body", "status", "param"), WRONG)
def test_wrong_requests_are_refused_in_the_shape_of_their_route(client, body, status, param):
    headers = {"content-type": "application/json"}
    response = client.post("/v1/embeddings", content=body, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param", "code"}
    of_tei = client.post("/embed", content=body.replace('"input"', '"inputs"'), headers=headers)
    if "encoding_format" not in body:
        assert of_tei.status_code == status
    assert set(of_tei.json()) - {"index"} == {"error", "error_type"}
    if param is not None and "[" in param:
        assert of_tei.json()["index"] == int(param[6:-1])


def test_paths_and_methods_that_are_not_there_answer_in_shape_too(client):
    assert client.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    assert client.get("/nothing").json()["error"] == "Not Found"
    assert client.get("/v1/embeddings").status_code == 405
    assert client.post("/embed", content=b"inputs=a").status_code == 422  # a form, as browsers send


def test_too_many_texts_are_refused(client):
    for path, key in (("/v1/embeddings", "input"), ("/embed", "inputs")):
        response = client.post(path, json={key: ["a"] * 100_000})
        assert response.status_code == 413
        assert "100000" in response.text


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_50_mb_is_refused(client, announced):
    content = b"x" * 50_000_000
    pieces = content if announced else (content[:65536] for _ in range(800))
    response = client.post(
        "/v1/embeddings", content=pieces, headers={"content-type": "application/json"}
    )
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_tokens_numbers_and_characters_of_a_request_are_limited(encoder):
    limits = Limits(max_request_tokens=50)
    with asked(encoder, limits=limits) as client:
        response = client.post("/embed", json={"inputs": ["one two three"] * 40})
        assert (response.status_code, "tokens in all" in response.text) == (413, True)
    with asked(encoder, limits=Limits(max_answer_numbers=500)) as client:
        assert client.post("/embed", json={"inputs": ["a", "b"]}).status_code == 200
        assert client.post("/embed", json={"inputs": ["a", "b", "c"]}).status_code == 413
        assert client.post("/embed_all", json={"inputs": "a b c d"}).status_code == 413
    with asked(encoder, limits=Limits(max_body_bytes=1000)) as client:
        body = {"inputs": ["a"] * 20, "prompt": "word " * 50}
        assert "characters" in client.post("/embed", json=body).json()["error"]


def test_memory_of_all_requests_is_limited_and_given_back(encoder):
    limits = Limits(max_held_bytes=4000)  # one vector of 192 numbers with its request, not five
    with asked(encoder, limits=limits) as client:
        for _ in range(5):
            assert client.post("/embed", json={"inputs": "a"}).status_code == 200
        response = client.post("/embed", json={"inputs": ["a"] * 6})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        large = client.post("/embed", json={"inputs": "a" * 5000})
        assert (large.status_code, large.json()["error_type"]) == (429, "Overloaded")


def test_a_request_that_takes_too_long_is_told_to_come_back(encoder):
    with asked(encoder, limits=Limits(timeout_s=0.3), kind=Slow) as client:
        client.served.pause_s = 1.0
        response = client.post("/v1/embeddings", json={"input": "a"})
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["type"] == "server_error"


def test_only_a_right_key_opens(encoder):
    with asked(encoder, keys=Keys(["first key", "zweiter Schlüssel"])) as client:
        for key in ("first key", "zweiter Schlüssel".encode()):
            bearer = b"Bearer " + (key if isinstance(key, bytes) else key.encode())
            headers = {"authorization": bearer}
            assert client.post("/embed", json={"inputs": "a"}, headers=headers).status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "first key"}):
            of_openai = client.post("/v1/embeddings", json={"input": "a"}, headers=headers)
            assert of_openai.status_code == 401
            assert of_openai.json()["error"]["code"] == "invalid_api_key"
            assert client.get("/metrics", headers=headers).json()["error_type"] == "Validation"
            assert client.get("/info", headers=headers).status_code == 401
        assert client.get("/health").status_code == 200
        for path in ("/", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert client.post("/", json={"inputs": "a"}).status_code == 401


def test_keys_come_from_a_file_and_from_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("# for the team\nfirst\n\n  second  \n")
    monkeypatch.setenv("LLM2VEC_API_KEY", "third,fourth\nfifth")
    keys = read_keys(file)
    assert all(keys.accept(key) for key in ("first", "second", "third", "fourth", "fifth"))
    assert not any(keys.accept(key) for key in ("", "# for the team", "sixth", "firs", "first "))
    monkeypatch.delenv("LLM2VEC_API_KEY")
    assert len(read_keys(None)) == 0


def test_a_key_given_for_a_file_is_not_repeated(tmp_path):
    with pytest.raises(UsageError, match="--api-key names a file") as raised:
        read_keys(tmp_path / "sk-secret")
    assert "sk-secret" not in str(raised.value)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="holds no key"):
        read_keys(tmp_path / "empty")


def test_logs_tell_of_requests_without_their_texts_and_keys(encoder, caplog):
    headers = {"authorization": "Bearer hidden-key"}
    with (
        caplog.at_level(logging.INFO, logger="llm2vec.serving"),
        asked(encoder, keys=Keys(["hidden-key"])) as client,
    ):
        response = client.post(
            "/embed?q=hidden-query", json={"inputs": "hidden text"}, headers=headers
        )
        client.post("/embed", json={"inputs": "hidden text " * 999}, headers=headers)
        client.post(
            "/embed", json={"inputs": "hidden text"}, headers={"authorization": "hidden-key"}
        )
    written = [record for record in caplog.records if record.name == "llm2vec.serving"]
    lines = [json.loads(JsonLines().format(record)) for record in written]
    first = lines[0]
    assert first["id"] == response.headers["x-request-id"]
    assert (first["event"], first["route"], first["status"]) == ("request", "/embed", 200)
    assert (first["model"], first["texts"], first["tokens"]) == (
        "small",
        1,
        len(encoder.tokens(["hidden text"])[0].ids),
    )
    assert [line["status"] for line in lines] == [200, 413, 401]
    assert "hidden" not in json.dumps(lines)


def test_an_error_is_logged_by_its_place_not_its_message():
    try:
        raise ValueError("a text of a request")
    except ValueError as error:
        raised = (type(error), error, error.__traceback__)
    line = JsonLines().format(logging.LogRecord("x", 40, "", 0, "bug", (), raised))
    assert json.loads(line)["error"] == "ValueError"
    assert json.loads(line)["raised"][0].startswith(__file__)
    assert "a text of a request" not in line


def test_metrics_count_requests_texts_and_tokens(encoder):
    with asked(encoder) as client:
        client.post("/embed", json={"inputs": TEXTS})
        client.post("/models/anything/embed", json={"inputs": "a"})
        client.get("/nothing/here")
        text = client.get("/metrics").text
    tokens = sum(len(each.ids) for each in encoder.tokens(TEXTS))
    assert 'llm2vec_requests_total{route="/embed",status="200"} 1.0' in text
    assert 'llm2vec_requests_total{route="/models/{name}/embed",status="404"} 1.0' in text
    assert 'llm2vec_requests_total{route="other",status="404"} 1.0' in text
    assert f'llm2vec_texts_total{{model="small"}} {float(len(TEXTS))}' in text
    assert f'llm2vec_tokens_total{{model="small"}} {float(tokens)}' in text
    assert "llm2vec_healthy 1.0" in text
    assert "llm2vec_queue_tokens 0.0" in text


def test_the_openapi_document_names_every_route(client):
    paths = client.get("/openapi.json").json()["paths"]
    routes = ("/v1/embeddings", "/v1/models", "/embed", "/embed_all", "/similarity", "/info")
    assert set(routes) | {"/health", "/metrics", "/models/{name}/embed"} <= set(paths)
    assert "429" in paths["/v1/embeddings"]["post"]["responses"]

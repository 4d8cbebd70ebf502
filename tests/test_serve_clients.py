"""Clients that people have get the vectors of `encode`: each as docs/serve.md shows it."""

import json
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT
from servers import on_a_port

from llm2vec.serving.keys import Keys

TEXTS = ["One text.", "Another."]

NEAR = 1e-5

ADDRESS = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def url(encoder):
    with on_a_port(encoder, name="encoder", keys=Keys(["unused"])) as (url, _):
        yield url


@pytest.fixture(scope="module")
def open_url(encoder):
    with on_a_port(encoder, name="encoder") as (url, _):
        yield url


def shown(word, url, file="docs/serve.md"):
    """The example of a page that holds a word, for another address."""
    page = (ROOT / file).read_text()
    blocks = re.findall(r"```(?:python)?\n(.*?)```", page, re.DOTALL)
    (block,) = [each for each in blocks if word in each]
    return block.replace(ADDRESS, url)


def run_example(word, url, wanted):
    """What an example leaves in a variable."""
    names = {}
    exec(compile(shown(word, url), "docs/serve.md", "exec"), names)
    return names[wanted]


def check(vectors, encoder):
    want = encoder.encode(TEXTS, normalize=True).numpy()
    assert np.abs(np.asarray(vectors) - want).max() < NEAR


def test_openai(url, encoder):
    pytest.importorskip("openai")
    answer = run_example("OpenAI(base_url", url, "answer")
    check([each.embedding for each in answer.data], encoder)
    assert answer.model == "encoder"
    assert answer.usage.total_tokens == sum(len(each.ids) for each in encoder.tokens(TEXTS))


def test_openai_sees_errors_as_its_own(url):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.embeddings.create(model="encoder", input="a")
    client = client.with_options(api_key="unused")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="a")
    with pytest.raises(openai.UnprocessableEntityError) as raised:
        client.embeddings.create(model="encoder", input=[[1], [10**9]])
    assert raised.value.param == "input[1]"
    assert raised.value.request_id


def test_openai_sends_floats_dimensions_and_prompts_too(url, encoder):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused")
    plain = client.embeddings.create(
        model="encoder",
        input=TEXTS,
        encoding_format="float",
        extra_body={"prompt": "Find:", "normalize": False},
    )
    want = encoder.encode(TEXTS, prompt="Find:", normalize=False).numpy()
    assert np.abs(np.asarray([each.embedding for each in plain.data]) - want).max() < NEAR
    short = client.embeddings.create(model="encoder", input=TEXTS, dimensions=8)
    assert [len(each.embedding) for each in short.data] == [8, 8]
    assert [each.id for each in client.models.list()] == ["encoder"]


def test_huggingface_hub(open_url, encoder):
    pytest.importorskip("huggingface_hub")
    check(run_example("InferenceClient(", open_url, "vectors"), encoder)


def test_huggingface_hub_with_a_key_and_options(url, encoder):
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(f"{url}/embed", token="unused")
    check(client.feature_extraction(TEXTS, truncate=True, truncation_direction="left"), encoder)
    raw = client.feature_extraction(TEXTS, normalize=False)
    assert np.abs(raw - encoder.encode(TEXTS, normalize=False).numpy()).max() < NEAR
    client = hub.InferenceClient(f"{url}/similarity", token="unused")
    cosine = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS)
    vectors = encoder.encode(TEXTS, normalize=True).numpy()
    assert np.abs(np.asarray(cosine) - vectors @ vectors[0]).max() < NEAR


@pytest.mark.filterwarnings("ignore")  # of the library's own
def test_langchain(url, encoder):
    pytest.importorskip("langchain_openai")
    check(run_example("langchain_openai", url, "vectors"), encoder)


@pytest.mark.filterwarnings("ignore")
def test_llama_index(url, encoder):
    pytest.importorskip("llama_index.embeddings.openai_like")
    check(run_example("OpenAILikeEmbedding(", url, "vectors"), encoder)


@pytest.mark.filterwarnings("ignore")
def test_llama_index_by_teis_routes(open_url, encoder):
    tei = pytest.importorskip("llama_index.embeddings.text_embeddings_inference")
    client = tei.TextEmbeddingsInference(
        model_name="encoder", base_url=open_url, text_instruction="", query_instruction=""
    )
    check(client.get_text_embedding_batch(TEXTS), encoder)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("file", ["README.md", "docs/serve.md"])
def test_curl(open_url, encoder, file):
    command = shlex.split(shown("curl ", open_url, file).replace("\\\n", " "))
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    check([each["embedding"] for each in answer["data"]], encoder)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_is_told_that_50_mb_are_too_much(open_url, tmp_path):
    (tmp_path / "body").write_bytes(b"x" * 50_000_000)
    for header in ("Expect: 100-continue", "Expect:"):
        options = ["-H", "Content-Type: application/json", "-H", header]
        body = ["--data-binary", f"@{tmp_path / 'body'}"]
        command = ["curl", "--silent", f"{open_url}/embed", *options, *body]
        answer = subprocess.run(command, capture_output=True, check=True).stdout
        assert "larger than" in json.loads(answer)["error"]

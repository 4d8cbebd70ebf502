"""Publishing: what is sent to a hub (a stand-in on this machine), what the card says, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import yaml
from conftest import DECODERS
from hub import running_hub
from typer.testing import CliRunner

from llm2vec.cli.main import app
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.folder import model_card
from llm2vec.errors import ModelError, UsageError
from llm2vec.runtime.files import write_json
from llm2vec.serving.export.export import export
from llm2vec.serving.publish.hub_card import front_matter
from llm2vec.serving.publish.push import prepare, send

ROUNDING = 1e-5
TEXTS = ["Some text.", "Another."]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An encoder folder with card, provenance and report, as a conversion leaves it."""
    folder = tmp_path_factory.mktemp("made") / "encoder"
    Encoder.from_pretrained(DECODERS / "qwen3").save(folder)
    recipe = {
        "decoder": "someone/decoder",
        "corpus": {"source": "/home/me/secret/texts.txt"},
        "simcse": {"corpus": {"source": "hub:someone/texts"}},
        "encoder": {"pooling": "mean", "max_length": 64},
    }
    provenance = {"recipe": recipe, "stages": [{"stage": "mntp"}], "places": {"decoder": "../x"}}
    write_json(folder / "provenance.json", provenance)
    (folder / "README.md").write_text(model_card("encoder", provenance))
    (folder / "report.md").write_text("# Report\n\nCorpus: /home/me/secret/texts.txt\n")
    (folder / ".hidden").write_text("mine")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(made, tmp_path / "encoder")


@pytest.fixture
def hub(monkeypatch):
    """A hub that takes large files by the LFS protocol."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with running_hub() as hub:
        yield hub


def test_a_folder_is_published_whole_in_one_commit(made, hub):
    upload = prepare(made, "me/encoder", licence="mit", languages=["en"])
    address = send(upload, token="hf_x", endpoint=hub.url)
    assert address.startswith(hub.url)
    assert hub.commits == 1
    assert [each["name"] for each in hub.created] == ["encoder"]
    assert hub.tokens == {"Bearer hf_x"}
    there = {file.relative_to(made).as_posix() for file in made.rglob("*") if file.is_file()}
    assert set(hub.files) == there - {".hidden"}
    assert hub.files["model.safetensors"] == (made / "model.safetensors").read_bytes()


def test_it_is_private_unless_told_otherwise(made, hub):
    upload = prepare(made, "me/encoder", licence="mit", languages=["en"])
    for private in (True, False):
        send(upload, private=private, token="hf_x", endpoint=hub.url)
    assert [each["visibility"] for each in hub.created] == ["private", "public"]


def test_the_code_of_the_card_runs_on_what_was_published(made, hub, tmp_path, monkeypatch):
    send(
        prepare(made, "me/encoder", licence="mit", languages=["en"]), token="hf_x", endpoint=hub.url
    )
    for path, content in hub.files.items():
        place = tmp_path / "me" / "encoder" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    card = hub.files["README.md"].decode()
    code = card.partition("```python\n")[2].partition("```")[0]
    assert 'SentenceTransformer("me/encoder")' in code
    monkeypatch.chdir(tmp_path)  # where the name on the hub is a folder
    names = {}
    exec(code, names)
    expected = Encoder.from_pretrained(made).encode(TEXTS)
    np.testing.assert_allclose(names["vectors"], expected.numpy(), atol=ROUNDING)


def test_the_card_says_what_a_hub_reads(made):
    said = front_matter(prepare(made, "me/encoder", licence="mit", languages=["en"]).card)
    assert said["license"] == "mit"
    assert said["base_model"] == "someone/decoder"
    assert said["base_model_relation"] == "finetune"
    assert said["datasets"] == ["someone/texts"]
    assert said["language"] == ["en"]
    assert said["library_name"] == "sentence-transformers"
    assert {"sentence-transformers", "feature-extraction", "llm2vec"} <= set(said["tags"])


def test_the_card_points_to_the_report(made):
    assert "(report.md)" in prepare(made, "me/encoder", licence="mit", languages=["en"]).card


def test_what_the_folders_card_says_stays(folder):
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\ntags: [mine]\n---\n\n# My words\n")
    card = prepare(folder, "me/encoder", languages=["en"]).card
    said = front_matter(card)
    assert said["license"] == "cc0-1.0"
    assert said["tags"][0] == "mine"
    assert "llm2vec" in said["tags"]
    assert "# My words" in card


def test_paths_of_this_machine_are_left_out(made):
    upload = prepare(made, "me/encoder", licence="mit", languages=["en"])
    for name in ("provenance.json", "report.md"):
        content = upload.files[name]
        assert isinstance(content, bytes)
        assert b"/home/me" not in content
        assert b"texts.txt" in content
    assert upload.files["model.safetensors"] == made / "model.safetensors"


def test_the_licence_is_that_of_the_decoders_card(folder, tmp_path):
    decoder = tmp_path / "decoder"
    shutil.copytree(DECODERS / "qwen3", decoder)
    (decoder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: de\n---\n")
    values = json.loads((folder / "provenance.json").read_text())
    values["recipe"]["decoder"] = str(decoder)
    write_json(folder / "provenance.json", values)
    said = front_matter(prepare(folder, "me/encoder").card)
    assert said["license"] == "apache-2.0"
    assert said["language"] == ["de"]
    assert "base_model" not in said


def test_without_a_known_licence_nothing_is_published(folder):
    (folder / "provenance.json").unlink()
    with pytest.raises(UsageError, match=r"licence of .* is not known.*--license"):
        prepare(folder, "me/encoder")


def test_an_adapter_is_never_published_without_its_base(folder):
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "someone/decoder"})
    with pytest.raises(ModelError, match="an adapter, whose base lies elsewhere"):
        prepare(folder, "me/encoder", licence="mit", languages=["en"])


def test_a_pickle_is_not_published(folder):
    (folder / "model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match="is a pickle"):
        prepare(folder, "me/encoder", licence="mit", languages=["en"])


@pytest.mark.parametrize("name", ["encoder", "a/b/c", "/b"])
def test_a_name_that_is_none_of_a_hub_is_refused(name, made):
    with pytest.raises(UsageError, match="give owner/name"):
        prepare(made, name, licence="mit", languages=["en"])


def test_a_refusal_of_the_hub_is_one_line(made, hub):
    hub.refuses = True
    upload = prepare(made, "me/encoder", licence="mit", languages=["en"])
    with pytest.raises(ModelError, match="me/encoder was not published: .*403") as raised:
        send(upload, token="hf_x", endpoint=hub.url)
    assert "\n" not in str(raised.value)


def test_a_hub_that_does_not_answer_is_one_line(made):
    upload = prepare(made, "me/encoder", licence="mit", languages=["en"])
    with pytest.raises(ModelError, match="me/encoder was not published"):
        send(upload, token="hf_x", endpoint="http://127.0.0.1:9")


def result_file(folder, *, score):
    values = {
        "task_name": "STSBenchmark",
        "dataset_revision": "b0fddb56ed78048fa8b90373c8a3cfc37b684831",
        "scores": {
            "test": [{"main_score": score, "hf_subset": "default", "languages": ["eng-Latn"]}]
        },
    }
    folder.mkdir()
    write_json(folder / "STSBenchmark.json", values)
    write_json(folder / "model_meta.json", {"name": "me/encoder"})


def test_scores_of_mteb_are_metadata_and_a_table(made, tmp_path):
    pytest.importorskip("mteb")
    result_file(tmp_path / "one", score=0.7125)
    card = prepare(made, "me/encoder", licence="mit", languages=["en"], mteb=tmp_path / "one").card
    (entry,) = front_matter(card)["model-index"]
    (found,) = entry["results"]
    assert found["task"]["type"] == "STS"
    assert found["dataset"]["type"] == "mteb/stsbenchmark-sts"
    assert found["metrics"] == [{"type": "cosine_spearman", "value": 71.25}]
    assert "mteb" in front_matter(card)["tags"]
    assert "| STSBenchmark | test | cosine_spearman | 71.25 |" in card


def test_results_of_several_models_are_told_apart(made, tmp_path):
    pytest.importorskip("mteb")
    for name in ("one", "two"):
        result_file(tmp_path / name, score=0.5)
    with pytest.raises(UsageError, match="several results of STSBenchmark"):
        prepare(made, "me/encoder", licence="mit", languages=["en"], mteb=tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # model2vec's own
def test_an_export_is_published_with_how_to_fetch_it(made, tmp_path):
    export(made, "onnx", out=tmp_path / "encoder-onnx")
    upload = prepare(tmp_path / "encoder-onnx", "me/onnx", licence="mit", languages=["en"])
    assert "onnx/model.onnx" in upload.files
    assert "`hf download me/onnx --local-dir encoder-onnx`" in upload.card


def test_a_dry_run_prints_files_and_card_and_sends_nothing(made):
    command = ["push", str(made), "me/encoder", "--license", "mit", "--language", "en", "--dry-run"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert "model.safetensors" in done.stderr
    assert (
        yaml.safe_load(done.stderr.partition("---\n")[2].partition("---\n")[0])["license"] == "mit"
    )
    assert "would be published" in done.stderr

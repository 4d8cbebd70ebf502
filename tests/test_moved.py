"""A project that was moved: what a probe and a run refer to is found from their own folders, or where an option says.

A run here trains nothing: what it refers to is the same.
"""

import json
import shutil

import pytest
from conftest import DECODERS

from llm2vec import LLM2Vec, Recipe, convert
from llm2vec.backbone.source import relative_name, resolved_name
from llm2vec.corpus.tagged import TaggedSentence
from llm2vec.errors import ModelError
from llm2vec.evaluation.probe import probe
from llm2vec.evaluation.tagger import Tagger, save_probe
from llm2vec.report.measure import _decoder, measure

UNTRAINED = {"mntp": {"steps": 0}, "simcse": {"steps": 0}, "encoder": {"max_length": 64}}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a decoder, an encoder made from it and a probe of each, all named from within it."""
    folder = tmp_path / "here"
    shutil.copytree(DECODERS / "gpt2", folder / "dec")
    (folder / "texts.txt").write_text("A text.\n")
    monkeypatch.chdir(folder)
    convert(
        Recipe.read(UNTRAINED | {"decoder": "dec", "corpus": {"source": "texts.txt"}}), "runs/enc"
    )
    sentences = [
        TaggedSentence((word, "runs"), ("NOUN", "VERB")) for word in ("cat", "dog", "hen", "ape")
    ]
    for name in ("runs/enc", "uni:dec"):
        causal = name.startswith("uni:")
        encoder = LLM2Vec.from_pretrained(
            name.removeprefix("uni:"), enable_bidirectional=False if causal else None
        )
        found = probe(encoder, sentences, sentences, seeds=1)
        place = folder / "probes" / ("uni" if causal else "enc")
        save_probe(found, place, encoder=name, model=encoder)
    return folder


def test_a_moved_project_still_tags_and_reports_from_any_folder(project, tmp_path, monkeypatch):
    tags = {name: Tagger.open(project / "probes" / name).tag(["a cat"]) for name in ("enc", "uni")}
    there = tmp_path / "there"
    project.rename(there)
    monkeypatch.chdir(tmp_path)
    for name, spans in tags.items():
        tagger = Tagger.open(there / "probes" / name)
        assert tagger.tag(["a cat"]) == spans
        assert tagger.encoder.settings.bidirectional == (name == "enc")
    provenance = json.loads((there / "runs" / "enc" / "provenance.json").read_text())
    assert _decoder(there / "runs" / "enc", provenance, None) == str(there / "dec")


def test_an_option_says_where_a_probes_encoder_is_now(project, tmp_path):
    shutil.move(project / "probes" / "enc", tmp_path / "probe")
    with pytest.raises(ModelError, match=r"there is no folder .*: say --encoder where it is now"):
        Tagger.open(tmp_path / "probe")
    tagger = Tagger.open(tmp_path / "probe", encoder=str(project / "runs" / "enc"))
    assert tagger.tag(["a cat"])
    with pytest.raises(ModelError, match="is not the encoder that"):
        Tagger.open(tmp_path / "probe", encoder="uni:dec")


def test_an_option_says_where_a_runs_decoder_is_now(project, tmp_path, monkeypatch):
    shutil.move(project / "dec", tmp_path / "moved")
    run = project / "runs" / "enc"
    with pytest.raises(ModelError, match=r"was made from it, .*: say --decoder where it is now"):
        measure(run)
    provenance = json.loads((run / "provenance.json").read_text())
    moved = str(tmp_path / "moved")
    assert _decoder(run, provenance, moved) == moved


def test_a_report_is_refused_where_the_decoder_is_not_the_one_it_was_made_from(project):
    run = project / "runs" / "enc"
    with pytest.raises(ModelError, match="is not the decoder that"):
        measure(run, decoder=str(DECODERS / "qwen3"))
    with (project / "dec" / "model.safetensors").open("r+b") as file:
        file.seek(500_000)
        byte = file.read(1)
        file.seek(500_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ModelError, match="or its files have changed since"):
        measure(run)


def test_a_place_is_found_from_the_folder_that_it_was_seen_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    for name, seen in (("a", "./.."), ("a/b", "."), ("link", "."), ("bundled", "bundled")):
        assert relative_name(tmp_path / "a" / "b", name) == seen
        found = resolved_name(tmp_path / "link", seen)
        assert found == (name if name == "bundled" else str((tmp_path / name).resolve()))
    assert relative_name(tmp_path, "Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"

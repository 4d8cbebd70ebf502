"""Nothing that this program did not write is removed, and what it reads is what it was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import DECODERS
from safetensors.torch import load_file, save_file

from llm2vec import LLM2Vec, Recipe, convert
from llm2vec.backbone.adapter_chain import find_chain
from llm2vec.backbone.source import BUNDLED_FOLDER, Source
from llm2vec.cli.vector_files import check_target
from llm2vec.conversion.run_folder import RunFolder
from llm2vec.corpus.tagged import TaggedSentence
from llm2vec.errors import LLM2VecError, ModelError, RunError, UsageError
from llm2vec.evaluation.mteb import as_mteb
from llm2vec.evaluation.probe import probe
from llm2vec.evaluation.tagger import Tagger, save_probe
from llm2vec.legacy.import_chain import import_encoder
from llm2vec.recipe.files import merged
from llm2vec.report.html import write_report
from llm2vec.runtime import files, fingerprint
from llm2vec.runtime.lock import locked
from llm2vec.runtime.progress import Recorder, Silent

UNTRAINED = {"mntp": {"steps": 0}, "simcse": {"steps": 0}, "encoder": {"max_length": 64}}
THESIS = "years of work"
SENTENCES = [
    TaggedSentence((animal, "runs"), ("NOUN", "VERB"))
    for animal in ("cat", "dog", "cow", "hen", "pig", "rat", "ape", "bee", "elk", "fox")
]


def recipe(corpus, **changes):
    named = {"decoder": str(DECODERS / "gpt2"), "corpus": {"source": str(corpus)}}
    return Recipe.read(merged(UNTRAINED, named, changes))


def thesis_in(folder, name="thesis.txt"):
    """A file of somebody's."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(THESIS)
    return folder / name


def names_in(folder):
    return sorted(each.name for each in folder.iterdir())


def vector(folder):
    return LLM2Vec.from_pretrained(folder).encode("a cat")


@pytest.fixture(scope="module")
def tiny():
    return LLM2Vec.from_pretrained(DECODERS / "gpt2")


@pytest.fixture(scope="module")
def probed(tiny):
    return probe(tiny, SENTENCES, SENTENCES, seeds=1)


# --- fingerprints


def flip_in_the_middle(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_one_bit_in_the_middle_of_a_large_file_changes_its_fingerprint_and_its_folders(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(5 << 20))
    before = fingerprint.of_file(weights), fingerprint.of_folder(tmp_path)
    assert before == (fingerprint.of_file(weights), fingerprint.of_folder(tmp_path))
    flip_in_the_middle(weights)
    after = fingerprint.of_file(weights), fingerprint.of_folder(tmp_path)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_what_describes_a_model_is_not_a_part_of_it(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint.of_folder(tmp_path)
    for name in ("README.md", ".gitattributes", "notes/more.json"):
        thesis_in(tmp_path, name)
    assert fingerprint.of_folder(tmp_path) == before


def test_a_file_is_read_once_in_a_process_and_again_when_it_changed(tmp_path, monkeypatch):
    reads, read = [], fingerprint._read
    monkeypatch.setattr(fingerprint, "_read", lambda path: reads.append(path) or read(path))
    file = thesis_in(tmp_path)
    long_ago = time.time() - 3600
    os.utime(file, (long_ago, long_ago))
    assert len({fingerprint.of_file(file) for _ in range(3)}) == 1
    assert len(reads) == 1
    file.write_text(THESIS[::-1])  # a moment ago: the next change may have the same time stamp
    first = fingerprint.of_file(file)
    file.write_text(THESIS)
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    assert fingerprint.of_file(file) != first


def test_a_conversion_hashes_each_file_of_its_corpora_once(corpus, tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"query": f"a {n}", "positive": f"b {n}"}) + "\n" for n in range(8))
    )
    opened = []
    read = fingerprint._read
    monkeypatch.setattr(fingerprint, "_read", lambda path: opened.append(path) or read(path))
    texts = {"steps": 1, "batch_size": 2, "corpus": {"source": str(corpus)}}
    pairs = {"steps": 1, "batch_size": 2, "corpus": {"source": str(rows)}}
    convert(recipe(corpus, simcse=texts, supervised=pairs), tmp_path / "out")
    assert (opened.count(corpus), opened.count(rows)) == (1, 1)


def test_every_number_of_a_model_counts_and_its_precision_does_not():
    torch.manual_seed(0)
    model = torch.nn.Linear(3000, 3000).bfloat16()
    before = fingerprint.of_weights(model)
    assert fingerprint.of_weights(model.float()) == before
    with torch.no_grad():
        model.weight[1234, 567] += 1
    assert fingerprint.of_weights(model) != before


def test_a_decoder_that_changed_in_the_middle_of_its_weights_is_refused(tmp_path, corpus):
    shutil.copytree(BUNDLED_FOLDER, tmp_path / "decoder")
    chosen = recipe(corpus, decoder=str(tmp_path / "decoder"))

    def work():
        return RunFolder(chosen, Source.of(tmp_path / "decoder"), tmp_path / "out", Silent())

    work().folder.mkdir()
    work().begin()
    (work().folder / "0-bi").mkdir()
    work().begin()
    flip_in_the_middle(tmp_path / "decoder" / "model.safetensors")
    with pytest.raises(RunError, match="the decoder's files"):
        work().begin()


def changed_in_one_number(encoder):
    weight = max(encoder.model.parameters(), key=lambda each: each.numel())
    with torch.no_grad():
        weight.view(-1)[weight.numel() // 2 + 1] += 1


def test_an_encoder_that_changed_in_one_number_is_another_to_a_probe_and_to_mteb(tmp_path, probed):
    encoder = LLM2Vec.from_pretrained(DECODERS / "gpt2")
    encoder.save(tmp_path / "encoder")
    save_probe(probed, tmp_path / "probe", encoder=str(tmp_path / "encoder"), model=encoder)
    assert Tagger.open(tmp_path / "probe")
    revision = as_mteb(encoder, name="a/b").mteb_model_meta.revision
    changed_in_one_number(encoder)
    assert as_mteb(encoder, name="a/b").mteb_model_meta.revision != revision
    encoder.save(tmp_path / "encoder")
    with pytest.raises(ModelError, match="is not the encoder"):
        Tagger.open(tmp_path / "probe")


# --- probes and reports


def test_a_probe_is_never_saved_over_something_else(tmp_path, probed):
    thesis = thesis_in(tmp_path / "mine")
    with pytest.raises(RunError, match="exists already"):
        save_probe(probed, tmp_path / "mine", encoder="bundled")
    assert thesis.read_text() == THESIS
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_is_no_probe_is_refused_before_any_work(tmp_path):
    thesis_in(tmp_path / "mine")
    command = ["probe", "nowhere", "--train", "no", "--test", "no", "--save", tmp_path / "mine"]
    done = subprocess.run(
        [sys.executable, "-m", "llm2vec", *map(str, command)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "mine exists already" in done.stderr


def test_a_probe_replaces_a_probe_and_nothing_beside_it(tmp_path, probed):
    save_probe(probed, tmp_path / "probe", encoder=str(DECODERS / "qwen3"))
    thesis = thesis_in(tmp_path / "probe")
    save_probe(probed, tmp_path / "probe", encoder=str(DECODERS / "gpt2"))
    assert thesis.read_text() == THESIS
    assert Tagger.open(tmp_path / "probe").tag(["a cat"])


def test_a_report_never_replaces_a_page_of_somebody_elses(tmp_path):
    page = thesis_in(tmp_path, "report.html")
    with pytest.raises(RunError, match=r"report.html was not written by this program"):
        write_report({"encoder": "out"}, tmp_path)
    assert page.read_text() == THESIS


def test_an_import_never_replaces_a_folder(tmp_path):
    thesis = thesis_in(tmp_path / "mine")
    with pytest.raises(RunError, match="exists already"):
        import_encoder(find_chain(Source.of(DECODERS / "gpt2")), tmp_path / "mine")
    assert thesis.read_text() == THESIS


# --- saving an encoder


def test_saving_removes_nothing_that_somebody_else_put_there(tiny, tmp_path):
    names = ("1_notes/a.txt", "2_Pooling/b.txt", "adapter_notes.txt", "model.safetensors.bak")
    backups = [thesis_in(tmp_path / name) for name in ("run.old", "run.partial")]
    tiny.save(tmp_path / "run")
    there = [*backups, *(thesis_in(tmp_path / "run", name) for name in names)]
    tiny.save(tmp_path / "run")
    assert [each.read_text() for each in there] == [THESIS] * len(there)
    assert torch.equal(vector(tmp_path / "run"), tiny.encode("a cat"))


@pytest.mark.parametrize("name", ["adapter_config.json", "model-00001-of-00002.safetensors"])
def test_saving_where_a_model_of_somebody_elses_would_be_read_is_refused(name, tiny, tmp_path):
    thesis = thesis_in(tmp_path / "run", name)
    with pytest.raises(ModelError, match=f"holds {name}"):
        tiny.save(tmp_path / "run")
    assert thesis.read_text() == THESIS
    assert [each.name for each in (tmp_path / "run").iterdir()] == [name]


def test_an_encoder_saved_in_parts_is_replaced_as_a_whole(tiny, tmp_path):
    tiny.save(tmp_path / "run")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    names = sorted(weights)
    parts = {
        f"model-0000{number}-of-00002.safetensors": names[number - 1 :: 2] for number in (1, 2)
    }
    for file, part in parts.items():
        save_file({name: weights[name] * 0.5 for name in part}, tmp_path / "run" / file)
    index = {"metadata": {}, "weight_map": {name: file for file in parts for name in parts[file]}}
    (tmp_path / "run" / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "run" / "model.safetensors").unlink()
    assert not torch.equal(vector(tmp_path / "run"), tiny.encode("a cat"))
    tiny.save(tmp_path / "run")
    assert not {*parts, "model.safetensors.index.json"} & {*names_in(tmp_path / "run")}
    assert torch.equal(vector(tmp_path / "run"), tiny.encode("a cat"))


def test_a_save_that_is_cut_short_leaves_a_folder_that_is_refused(tiny, tmp_path, monkeypatch):
    tiny.save(tmp_path / "run")
    moved = []

    def cut(file, place):
        moved.append(place)
        if len(moved) == 3:
            raise KeyboardInterrupt
        file.replace(place)

    with monkeypatch.context() as patched:
        patched.setattr(files, "_move", cut)
        with pytest.raises(KeyboardInterrupt):
            tiny.save(tmp_path / "run")
    with pytest.raises(LLM2VecError):
        LLM2Vec.from_pretrained(tmp_path / "run")
    assert [each.name for each in tmp_path.iterdir()] == ["run"]
    tiny.save(tmp_path / "run")
    assert torch.equal(vector(tmp_path / "run"), tiny.encode("a cat"))


def test_files_go_to_another_file_system_too(tmp_path, monkeypatch):
    from pathlib import Path

    replace = Path.replace

    def elsewhere(self, target):
        if self.parent != Path(target).parent:
            raise OSError(18, "Invalid cross-device link")
        return replace(self, target)

    thesis_in(tmp_path / "built", "a/b.txt")
    monkeypatch.setattr(Path, "replace", elsewhere)
    files.put_files(tmp_path / "built", tmp_path / "there")
    assert (tmp_path / "there" / "a" / "b.txt").read_text() == THESIS
    assert files.files_in(tmp_path / "there") == ["a/b.txt"]


# --- where an encoder goes


def test_a_conversion_leaves_backups_alone(corpus, tmp_path):
    backups = [thesis_in(tmp_path / name) for name in ("enc.old", "enc.partial", "enc.stages.old")]
    convert(recipe(corpus), tmp_path / "enc")
    convert(recipe(corpus), tmp_path / "enc", start_over=True)
    assert [each.read_text() for each in backups] == [THESIS] * 3
    assert names_in(tmp_path) == [
        *("enc", "enc.old", "enc.partial", "enc.stages.old", "texts.txt"),
    ]


def test_a_link_a_dot_and_a_slash_lead_to_the_folder_that_they_name(
    corpus, tmp_path, monkeypatch, tiny
):
    (tmp_path / "big" / "here").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "big" / "enc")
    monkeypatch.chdir(tmp_path / "big" / "here")
    for out, place in (
        (tmp_path / "link", tmp_path / "big" / "enc"),
        (".", tmp_path / "big" / "here"),
        ("../slash/", tmp_path / "big" / "slash"),
    ):
        assert convert(recipe(corpus), out).folder == place
        assert torch.equal(vector(place), tiny.encode("a cat"))
    assert (tmp_path / "link").is_symlink()
    assert names_in(tmp_path / "big") == ["enc", "here", "slash"]


@pytest.mark.parametrize("out", ["/", "texts.txt", "texts.txt/enc"])
def test_a_place_where_no_folder_can_be_is_refused_before_any_work(
    out, corpus, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    listener = Recorder()
    with pytest.raises(UsageError, match="--out"):
        convert(recipe(corpus), out, progress=listener)
    assert not listener.tasks
    assert names_in(tmp_path) == ["texts.txt"]


def test_other_names_of_the_same_files_are_the_same_run(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DECODERS / "gpt2", tmp_path / "dec")
    convert(recipe("texts.txt", decoder="dec"), "enc")
    for decoder, texts in (("dec/", "./texts.txt"), (str(tmp_path / "dec"), str(corpus))):
        listener = Recorder()
        convert(recipe(texts, decoder=decoder), "./enc/", progress=listener)
        assert "finished already" in listener.notes[0]
    shutil.copytree(DECODERS / "qwen3", tmp_path / "other")
    with pytest.raises(RunError, match=r"decoder: 'dec' -> 'other'\. Say"):
        convert(recipe("texts.txt", decoder="other"), "enc")
    (tmp_path / "more.txt").write_text("Another text.\n")
    with pytest.raises(RunError, match=r"corpus.source: 'texts.txt' -> 'more.txt'\. Say"):
        convert(recipe("more.txt", decoder="dec"), "enc")


def test_a_run_that_was_killed_while_it_filled_an_empty_folder_goes_on(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    chosen = recipe(corpus)
    whole = convert(chosen, tmp_path / "whole", keep_stages=True)
    shutil.copytree(tmp_path / "whole.stages", tmp_path / "out.stages")
    names = [*whole.provenance["files"], "provenance.json"]
    (tmp_path / "out.stages" / "publishing.json").write_text(json.dumps(names))
    shutil.copy(tmp_path / "whole" / "config.json", tmp_path / "out")
    convert(chosen, tmp_path / "out")
    assert files.files_in(tmp_path / "out") == files.files_in(tmp_path / "whole")
    assert torch.equal(vector(tmp_path / "out"), vector(tmp_path / "whole"))
    assert not (tmp_path / "out.stages").exists()


# --- run folders


HOLDING = """
import sys, time
from pathlib import Path
from llm2vec.runtime.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_told_who_holds_the_folder_and_a_dead_one_does_not_block(corpus, tmp_path):
    folder = tmp_path / "out.stages"
    folder.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=rf"out.stages is in use by process {holder.pid} on "):
        convert(recipe(corpus), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert (folder / "holder.json").is_file()
    convert(recipe(corpus), tmp_path / "out")
    assert not folder.exists()


def test_a_lock_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path):
            raise ZeroDivisionError
    assert not names_in(tmp_path)


def test_a_decoder_that_does_not_load_leaves_nothing_and_another_is_taken(corpus, tmp_path):
    shutil.copytree(DECODERS / "gpt2", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError):
        convert(recipe(corpus, decoder=str(tmp_path / "broken")), tmp_path / "out")
    assert names_in(tmp_path) == ["broken", "texts.txt"]
    convert(recipe(corpus), tmp_path / "out")


def test_a_start_that_was_killed_before_its_first_stage_claims_nothing(corpus, tmp_path):
    other = recipe(corpus, decoder=str(DECODERS / "qwen3"))
    work = RunFolder(other, Source.of(DECODERS / "qwen3"), tmp_path / "out", Silent())
    work.folder.mkdir()
    work.begin()
    convert(recipe(corpus), tmp_path / "out")


def test_starting_over_is_refused_where_it_would_remove_somebodys_file(corpus, tmp_path):
    convert(recipe(corpus), tmp_path / "out", keep_stages=True)
    for folder in (tmp_path / "out", tmp_path / "out.stages" / "0-bi"):
        thesis = thesis_in(folder, "notes/thesis.txt")
        with pytest.raises(RunError, match=r"holds notes/thesis.txt, which was not written"):
            convert(recipe(corpus), tmp_path / "out", start_over=True)
        assert torch.equal(vector(tmp_path / "out"), vector(tmp_path / "out.stages" / "0-bi"))
        shutil.rmtree(thesis.parent)
    again = convert(recipe(corpus, seed=1), tmp_path / "out", start_over=True)
    assert again.provenance["recipe"]["seed"] == 1
    assert not (tmp_path / "out.stages").exists()


def test_what_somebody_put_into_the_run_folder_stays(corpus, tmp_path):
    convert(recipe(corpus), tmp_path / "out", keep_stages=True)
    thesis = thesis_in(tmp_path / "out.stages")
    convert(recipe(corpus, seed=1), tmp_path / "out", start_over=True)
    assert thesis.read_text() == THESIS
    assert names_in(tmp_path / "out.stages") == ["thesis.txt"]


def test_vectors_are_not_written_where_a_folder_is(tmp_path):
    (tmp_path / "v.npy").mkdir()
    command = [sys.executable, "-m", "llm2vec", "encode", "bundled", "a", "--out"]
    done = subprocess.run([*command, str(tmp_path / "v.npy")], capture_output=True, text=True)
    assert (done.returncode, "this is a folder" in done.stderr) == (2, True)


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    files.write_json(tmp_path / "link.json", [1])
    assert (tmp_path / "link.json").is_symlink()
    assert files.read_json(tmp_path / "real.json") == [1]
    assert names_in(tmp_path) == ["link.json", "real.json"]


def test_a_file_that_is_read_is_not_written_over(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "hello"}\n')
    (tmp_path / "link.jsonl").symlink_to(rows)
    for read in (rows, tmp_path, tmp_path / "*.jsonl"):
        with pytest.raises(UsageError, match="this file is read"):
            check_target(tmp_path / "link.jsonl", str(read))
    for read in (None, "s3://bucket/rows.jsonl", "hub:NAME", str(tmp_path / "other.jsonl")):
        check_target(rows, read)

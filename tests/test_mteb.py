"""MTEB's own task classes on slices of local data, run against the bundled decoder."""

import csv
import itertools
import json
import math
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from llm2vec import Encoder
from llm2vec.errors import CorpusError, UsageError
from llm2vec.evaluation.mteb import (
    PAPER15,
    as_mteb,
    chosen_tasks,
    instruction_for,
    run_mteb,
    shipped_instructions,
)
from llm2vec.evaluation.sentence_tasks import sts

mteb = pytest.importorskip("mteb")
pytest.importorskip("datasets")

from datasets import Dataset, DatasetDict  # noqa: E402
from mteb.abstasks import (  # noqa: E402
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.aggregate_task_metadata import AggregateTaskMetadata  # noqa: E402
from mteb.abstasks.aggregated_task import AbsTaskAggregate  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.get_tasks import TASK_LIST  # noqa: E402

QUERY = "Given a scientific claim, retrieve documents that support or refute the claim:"


class Recording(Encoder):
    """An encoder that keeps what it was given."""

    calls: list

    def encode(self, texts, *, prompt=None, batch_size=None, **options):
        self.calls.append((prompt, list(texts), batch_size))
        return super().encode(texts, prompt=prompt, batch_size=batch_size, **options)


@pytest.fixture
def recording(encoder):
    found = Recording(
        encoder.model, encoder.tokenizer, settings=encoder.settings, switch=encoder.switch
    )
    found.calls = []
    return found


@pytest.fixture(scope="session")
def sent(shared):
    if not (shared / "data" / "sent").is_dir():
        pytest.skip("needs shared/data/sent beside the checkout")
    return shared / "data" / "sent"


@pytest.fixture(scope="session")
def benchmarks():
    """mteb's benchmarks, made where the stack is short: their 2,000 tasks seed torch, which writes the stack down."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(mteb.get_benchmarks).result()


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def made(base, name, kind, metric, load, **settings):
    """A task of mteb's class `base`, its data from `load`, its class attributes changed by `settings`."""

    class Local(base):
        metadata = TaskMetadata(
            name=name,
            description="A slice of local data.",
            dataset={"path": "local/none", "revision": "1"},
            type=kind,
            category="t2t",
            eval_langs=["eng-Latn"],
            main_score=metric,
        )
        loads = 0

        def load_data(self, *args, **options):
            self.loads += 1
            self.dataset = load()
            self.data_loaded = True

    for key, value in settings.items():
        setattr(Local, key, value)
    return Local()


def split(texts, **columns):
    return DatasetDict({"test": Dataset.from_dict({**texts, **columns})})


def sts_rows(sent):
    with (sent / "sts" / "stsb.test.tsv").open(encoding="utf8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[::14]


def sts_task(sent, name="LocalSTS"):
    found = sts_rows(sent)
    return made(
        AbsTaskSTS,
        name,
        "STS",
        "cosine_spearman",
        lambda: split(
            {"sentence1": [row[1] for row in found], "sentence2": [row[2] for row in found]},
            score=[float(row[0]) for row in found],
        ),
    )


def classification_task(sent):
    def load():
        parts = {"train": rows(sent / "classification" / "trec6.train.jsonl")[:400]}
        every = rows(sent / "classification" / "trec6.test.jsonl")
        labels = sorted({row["label"] for row in every})
        parts["test"] = [
            row for label in labels for row in [row for row in every if row["label"] == label][:9]
        ]
        return DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()})

    return made(
        AbsTaskClassification,
        "LocalClassification",
        "Classification",
        "accuracy",
        load,
        n_experiments=3,
    )


def clustering_task(sent):
    def load():
        part = rows(sent / "clustering" / "stackoverflow_titles.jsonl")[:150]
        return split(
            {"sentences": [row["text"] for row in part]}, labels=[row["label"] for row in part]
        )

    return made(
        AbsTaskClustering,
        "LocalClustering",
        "Clustering",
        "v_measure",
        load,
        n_clusters=3,
        max_documents_per_cluster=150,
    )


def pairs_task(sent):
    def load():
        part = rows(sent / "nli" / "snli_triplets.dev.jsonl")[:50]
        return split(
            {
                "sentence1": [row["anchor"] for row in part] * 2,
                "sentence2": [row["positive"] for row in part] + [row["negative"] for row in part],
            },
            labels=[1] * len(part) + [0] * len(part),
        )

    return made(AbsTaskPairClassification, "LocalPairs", "PairClassification", "max_ap", load)


def retrieval_task(sent, name="SciFact"):
    folder = sent / "retrieval" / "scifact"
    lines = (folder / "qrels" / "test.tsv").read_text().splitlines()[1:21]
    relevant = {}
    for query, document, grade in (line.split("\t") for line in lines):
        relevant.setdefault(query, {})[document] = int(grade)
    wanted = {document for grades in relevant.values() for document in grades}

    def load():
        every = rows(folder / "corpus.jsonl")
        corpus = [row for row in every if row["_id"] in wanted] + [
            row for row in every if row["_id"] not in wanted
        ][:40]
        queries = [row for row in rows(folder / "queries.jsonl") if row["_id"] in relevant]
        documents = [
            {"id": row["_id"], "title": row["title"], "text": row["text"][:400]} for row in corpus
        ]
        return {
            "default": {
                "test": {
                    "corpus": Dataset.from_list(documents),
                    "queries": Dataset.from_list(
                        [{"id": row["_id"], "text": row["text"]} for row in queries]
                    ),
                    "relevant_docs": relevant,
                    "top_ranked": None,
                }
            }
        }

    return made(AbsTaskRetrieval, name, "Retrieval", "ndcg_at_10", load)


def reranking_task(sent):
    def load():
        part = rows(sent / "nli" / "snli_triplets.test.jsonl")[:30]
        documents = {f"p{place}": row["positive"] for place, row in enumerate(part)}
        documents |= {f"n{place}": row["negative"] for place, row in enumerate(part)}
        draw = random.Random(0)
        ranked = {
            f"q{place}": draw.sample(
                [f"p{place}", f"n{place}", f"p{(place + 1) % 30}", f"n{(place + 2) % 30}"], 4
            )
            for place in range(len(part))
        }
        return {
            "default": {
                "test": {
                    "corpus": Dataset.from_list(
                        [{"id": key, "text": text} for key, text in documents.items()]
                    ),
                    "queries": Dataset.from_list(
                        [{"id": f"q{i}", "text": row["anchor"]} for i, row in enumerate(part)]
                    ),
                    "relevant_docs": {f"q{place}": {f"p{place}": 1} for place in range(len(part))},
                    "top_ranked": ranked,
                }
            }
        }

    return made(AbsTaskRetrieval, "SciDocsRR", "Reranking", "map_at_1000", load)


TASKS = (sts_task, classification_task, clustering_task, pairs_task, retrieval_task, reranking_task)


def test_every_type_of_task_runs_and_gives_a_finite_main_score(encoder, sent, tmp_path):
    tasks = [make(sent) for make in TASKS]
    told = []
    found = run_mteb(encoder, tasks, out=tmp_path, name="bundled", on_score=told.append)
    assert found == told
    assert [(row.task, row.type, row.metric) for row in found] == [
        (task.metadata.name, task.metadata.type, task.metadata.main_score) for task in tasks
    ]
    assert all(math.isfinite(row.value) and -1 <= row.value <= 1 for row in found)
    by_task = {row.task: row.value for row in found}
    assert by_task["LocalSTS"] > 0.3, "an untrained decoder still sees shared words"
    assert by_task["LocalClassification"] > 1 / 6
    folders = {path.parent for path in tmp_path.glob("results/*/*/*.json")}
    assert [folder.parent.name for folder in folders] == ["llm2vec__bundled"]
    again = mteb.results.TaskResult.from_disk(next(iter(folders)) / "LocalSTS.json")
    assert again.get_score() == pytest.approx(by_task["LocalSTS"], abs=1e-5), (
        "mteb rounds what it writes"
    )


def test_the_sts_score_is_that_of_our_own_task(encoder, sent, tmp_path):
    (score,) = run_mteb(encoder, [sts_task(sent)], out=tmp_path, name="bundled", instructions={})
    data = tmp_path / "pairs.tsv"
    data.write_text("".join("\t".join(row) + "\n" for row in sts_rows(sent)), encoding="utf8")
    own = sts(lambda texts, prompt=None: encoder.encode(texts, convert_to_numpy=True), data)
    # The cosines are summed in another order, which can swap ranks of pairs that are all but equal.
    assert score.value == pytest.approx(own.value, abs=1e-4)


@pytest.mark.parametrize("make", [retrieval_task, reranking_task])
def test_only_queries_get_the_instruction(recording, sent, tmp_path, make):
    task = make(sent)
    run_mteb(recording, [task], out=tmp_path, name="bundled")
    task.load_data()
    part = task.dataset["default"]["test"]
    prompts = dict(
        itertools.chain.from_iterable(
            ((t, prompt) for t in texts) for prompt, texts, _ in recording.calls
        )
    )
    wanted = f"{instruction_for(task.metadata.name)}:"
    assert {prompts.pop(text) for text in part["queries"]["text"]} == {wanted}
    assert len(prompts) >= 40
    assert set(prompts.values()) == {None}


def test_documents_are_encoded_with_their_titles_in_front(recording, sent, tmp_path):
    task = retrieval_task(sent)
    run_mteb(recording, [task], out=tmp_path, name="bundled")
    task.load_data()
    row = task.dataset["default"]["test"]["corpus"][0]
    given = {text for prompt, texts, _ in recording.calls if prompt is None for text in texts}
    assert f"{row['title']} {row['text']}" in given


def test_every_text_of_a_task_without_queries_gets_the_instruction(recording, sent, tmp_path):
    run_mteb(recording, [sts_task(sent, "STSBenchmark")], out=tmp_path, name="bundled")
    assert {prompt for prompt, _, _ in recording.calls} == {"Retrieve semantically similar text:"}
    assert sum(len(texts) for _, texts, _ in recording.calls) == 2 * len(sts_rows(sent))


def test_a_task_without_an_instruction_gets_none(recording, sent, tmp_path):
    run_mteb(recording, [sts_task(sent)], out=tmp_path / "unknown", name="bundled")
    run_mteb(
        recording, [retrieval_task(sent)], out=tmp_path / "empty", name="bundled", instructions={}
    )
    assert {prompt for prompt, _, _ in recording.calls} == {None}


def test_a_batch_size_is_an_upper_limit(recording, sent, tmp_path):
    run_mteb(recording, [sts_task(sent)], out=tmp_path, name="bundled", batch_size=7)
    assert {size for _, _, size in recording.calls} == {7}
    assert {len(texts) for _, texts, _ in recording.calls} == {len(sts_rows(sent))}


def test_a_finished_task_is_not_run_again(recording, sent, tmp_path):
    (first,) = run_mteb(recording, [sts_task(sent)], out=tmp_path, name="bundled")
    recording.calls.clear()
    again = sts_task(sent)
    found = run_mteb(recording, [again, pairs_task(sent)], out=tmp_path, name="bundled")
    assert again.loads == 0
    assert found[0].value == pytest.approx(first.value, abs=1e-5)
    assert not {row[1] for row in sts_rows(sent)} & {
        text for _, texts, _ in recording.calls for text in texts
    }
    assert found[1].task == "LocalPairs"


def test_a_killed_run_goes_on_where_it_was(recording, sent, tmp_path):
    class Killed(Recording):
        def encode(self, sentences, *args, **options):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().encode(sentences, *args, **options)

    killed = Killed(recording.model, recording.tokenizer, settings=recording.settings)
    killed.calls = []
    tasks = [sts_task(sent), pairs_task(sent)]
    with pytest.raises(KeyboardInterrupt):
        run_mteb(killed, tasks, out=tmp_path, name="bundled")
    found = run_mteb(recording, tasks, out=tmp_path, name="bundled")
    assert [row.task for row in found] == ["LocalSTS", "LocalPairs"]
    assert [task.loads for task in tasks] == [1, 2]
    assert len(recording.calls) == 2


def test_a_task_of_several_tasks_has_the_mean_of_their_scores(recording, sent, tmp_path):
    parts = [sts_task(sent, "STS12"), pairs_task(sent)]

    class Both(AbsTaskAggregate):
        metadata = AggregateTaskMetadata(
            name="LocalBoth",
            description="Two tasks.",
            tasks=parts,
            main_score="mean",
            type="STS",
            eval_splits=["test"],
        )

    (whole,) = run_mteb(recording, [Both()], out=tmp_path, name="bundled")
    calls = len(recording.calls)
    found = run_mteb(recording, [*parts, Both()], out=tmp_path, name="bundled")
    assert len(recording.calls) == calls == 4
    assert found[2].value == pytest.approx((found[0].value + found[1].value) / 2, abs=1e-5)
    assert whole.value == pytest.approx(found[2].value, abs=1e-5)


def test_another_encoder_never_answers_with_old_results(encoder, sent, tmp_path):
    other = Encoder(
        encoder.model, encoder.tokenizer, settings=encoder.settings.changed(pooling="last")
    )
    (first,) = run_mteb(encoder, [sts_task(sent)], out=tmp_path, name="bundled")
    (second,) = run_mteb(other, [sts_task(sent)], out=tmp_path, name="bundled")
    assert abs(first.value - second.value) > 0.01
    revisions = [
        as_mteb(encoder, name="bundled", instructions=i).mteb_model_meta.revision
        for i in (None, {}, None)
    ]
    assert revisions[0] == revisions[2] != revisions[1]


def test_a_changed_weight_changes_the_fingerprint():
    first, second = Encoder.from_pretrained("bundled"), Encoder.from_pretrained("bundled")
    revisions = [as_mteb(first, name="a/b").mteb_model_meta.revision]
    revisions.append(as_mteb(second, name="a/b").mteb_model_meta.revision)
    next(second.parameters()).data += 1e-4
    revisions.append(as_mteb(second, name="a/b").mteb_model_meta.revision)
    assert revisions[0] == revisions[1] != revisions[2]


def test_data_that_cannot_be_loaded_are_told_after_the_other_tasks_have_run(
    encoder, sent, tmp_path
):
    def unreachable():
        raise ConnectionError("Couldn't reach 'mteb/stsbenchmark-sts' on the Hub")

    told = []
    tasks = [
        made(AbsTaskSTS, "STSBenchmark", "STS", "cosine_spearman", unreachable),
        sts_task(sent),
    ]
    with pytest.raises(
        CorpusError, match=r"mteb's STSBenchmark cannot be loaded: Couldn't reach"
    ) as caught:
        run_mteb(encoder, tasks, out=tmp_path, name="bundled", on_score=told.append)
    assert [row.task for row in told] == ["LocalSTS"]
    assert "scores of other tasks: 1, kept in" in str(caught.value)
    assert list(tmp_path.glob("results/*/*/LocalSTS.json"))


def test_similarity_is_the_cosine(encoder):
    model = as_mteb(encoder, name="org/bundled")
    assert model.mteb_model_meta.name == "org/bundled"
    vectors_BD = encoder.encode(["A cat sat.", "Two dogs ran.", "Rain fell all day."])
    unit_BD = vectors_BD / vectors_BD.norm(dim=-1, keepdim=True)
    cosine_BB = model.similarity(3 * vectors_BD, vectors_BD)
    assert cosine_BB.numpy() == pytest.approx((unit_BD @ unit_BD.T).numpy(), abs=1e-5)


def test_every_name_is_one_of_mteb():
    known = {task.metadata.name for task in TASK_LIST}
    assert set(PAPER15) <= known
    assert set(shipped_instructions()) <= known
    assert len(PAPER15) == len(set(PAPER15)) == 15


@pytest.mark.parametrize("benchmark", ["MTEB(eng, v1)", "MTEB(eng, v2)"])
def test_every_english_task_has_an_instruction(benchmark, benchmarks):
    whole = chosen_tasks(benchmark)
    tasks = [
        part for task in whole for part in (task.metadata.tasks if task.is_aggregate else [task])
    ]
    assert len(whole) == {"MTEB(eng, v1)": 56, "MTEB(eng, v2)": 41}[benchmark]
    assert not [task.metadata.name for task in tasks if instruction_for(task.metadata.name) is None]


def test_instructions_end_without_a_colon():
    assert not [
        text
        for text in shipped_instructions().values()
        if text != text.strip() or text[-1] in ":;."
    ]


def test_a_revision_has_the_instruction_of_its_task():
    assert instruction_for("STSBenchmark.v2") == instruction_for("STSBenchmark")
    assert instruction_for("FEVERHardNegatives") == instruction_for("FEVER")
    assert instruction_for("BornholmBitextMining") is None
    assert instruction_for("Mine", instructions={"Mine": "Find mine"}) == "Find mine"


def test_the_paper_s_tasks_are_english_and_on_the_splits_that_count(benchmarks):
    tasks = chosen_tasks("paper15")
    assert tuple(task.metadata.name for task in tasks) == PAPER15
    assert all(task.languages == ["eng"] and list(task.eval_splits) == ["test"] for task in tasks)
    assert [task.hf_subsets for task in tasks if task.metadata.name == "STS17"] == [["en-en"]]


def test_tasks_are_chosen_by_name_and_each_once(benchmarks):
    names = [task.metadata.name for task in chosen_tasks("STS22, CQADupstackRetrieval,STS22")]
    assert names == ["STS22", "CQADupstackRetrieval"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            "SciFact,STSBenchmrk",
            r"no task or benchmark 'STSBenchmrk'; close to it is .*STSBenchmark",
        ),
        ("qqqqqqqq", "close to it is nothing"),
        ("BornholmBitextMining", "no English subset"),
        ("STS13VisualSTS", "not about texts alone"),
        (" , ", "no task is named"),
    ],
)
def test_a_wrong_task_is_told_with_what_is_close(names, told, benchmarks):
    with pytest.raises(UsageError, match=told):
        chosen_tasks(names)


def test_without_mteb_the_extra_is_named(monkeypatch, encoder):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(UsageError, match=r"pip install 'llm2vec-next\[mteb\]'"):
        as_mteb(encoder, name="bundled")


def test_importing_the_module_does_not_import_mteb():
    program = "import sys, llm2vec.evaluation.mteb; sys.exit('mteb' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

"""The report of a run, whole: what is measured, and the page, its Markdown and its JSON."""

import copy
import json
import re
import shutil
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import pytest
import torch
from conftest import DECODERS
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from llm2vec import Recipe, convert
from llm2vec.backbone.loading import load_decoder
from llm2vec.corpus.tagged import TaggedSentence
from llm2vec.errors import ModelError, RunError
from llm2vec.evaluation import analysis
from llm2vec.evaluation.subjects import open_encoder
from llm2vec.report.figures import PALETTE, Bar, bars, cells, histograms, ranking
from llm2vec.report.html import to_html, to_markdown, write_report
from llm2vec.report.measure import WordTask, bundled_words, measure
from llm2vec.report.sections import sections
from llm2vec.report.task_facts import UNTRAINED

RUN = {
    "decoder": str(DECODERS / "qwen3"),
    "mntp": {"steps": 4, "batch_size": 4, "max_length": 48, "eval_blocks": 4, "keep_every": 2},
    "simcse": {"steps": 2, "batch_size": 8, "max_length": 32},
    "encoder": {"max_length": 64},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    texts = folder / "texts.txt"
    texts.write_text(
        "\n".join(f"The {a} {b} near the old bridge." for a in ("cat", "nurse") for b in range(40))
        + "\n"
    )
    recipe = Recipe.read({**RUN, "corpus": {"source": str(texts)}})
    return convert(recipe, folder / "out", keep_stages=True).folder


@pytest.fixture(scope="module")
def report(run):
    task = bundled_words()[0]
    few = WordTask(
        "part-of-speech", task.train[:60], task.test[:30], "accuracy", "a few <bundled> sentences"
    )
    return measure(run, words=[few], baselines=["auto:" + str(DECODERS / "gpt2")])


def test_every_stage_is_measured_under_the_papers_names(report):
    names = ["Uni", "Bi", "Bi+MNTP", "Bi+MNTP+SimCSE"]
    rows = report["words"][0]["rows"]
    assert [row["model"] for row in rows if not row["baseline"]] == names
    assert [row["model"] for row in rows if row["baseline"]] == ["gpt2"]
    assert all(0 < row["low"] <= row["value"] <= row["high"] < 1 for row in rows)
    assert [row["model"] for row in report["future"]] == names
    assert [row["model"] for row in report["sentences"][0]["rows"]][:7] == [
        "tf-idf",
        "random weights",
        "Uni, last token",
        "Uni, weighted mean",
        *UNTRAINED,
    ]
    assert report["words"][0]["floors"]["majority"] < report["words"][0]["floors"]["word identity"]


def test_changes_between_stages_are_measured_on_the_same_items(report):
    stages = ["Uni", "Bi", "Bi+MNTP", "Bi+MNTP+SimCSE"]
    steps = [("Uni", each) for each in stages[1:]] + list(pairwise(stages[1:]))
    words, sentences = report["words"][0], report["sentences"][0]
    assert [(each["before"], each["after"]) for each in words["changes"]] == steps
    assert [(each["before"], each["after"]) for each in sentences["changes"]] == [
        *steps,
        *((each, stages[-1]) for each in ("Uni, weighted mean", *UNTRAINED)),
    ]
    for entry in (words, sentences):
        values = {row["model"]: row["value"] for row in entry["rows"]}
        for each in entry["changes"]:
            assert each["value"] == pytest.approx(values[each["after"]] - values[each["before"]])
            assert each["clear"] == (each["low"] > 0 or each["high"] < 0)
    text = to_markdown(sections(report))
    assert "95% of the paired difference" in text
    change = words["changes"][1]
    assert (
        f"| Uni to Bi+MNTP | {100 * change['value']:+.1f} | {100 * change['low']:.1f} to " in text
    )


def test_a_causal_model_knows_nothing_of_the_ending_and_the_others_do(report):
    gaps = {
        row["model"]: max(abs(1 - value) for value in row["different"]) for row in report["future"]
    }
    assert gaps["Uni"] < 1e-6
    assert min(value for name, value in gaps.items() if name != "Uni") > 1e-4


def test_encoders_kept_along_the_way_are_measured_by_step(run, report):
    assert [(row["stage"], row["step"]) for row in report["efficiency"]] == [
        ("1-mntp", 2),
        ("1-mntp", 4),
    ]
    last = next(row for row in report["words"][0]["rows"] if row["model"] == "Bi+MNTP")
    if last["reading"] == "own":
        assert report["efficiency"][-1]["scores"]["part-of-speech"] == pytest.approx(
            last["value"], abs=1e-6
        )
    kept = run.with_name("out.stages") / "checkpoints"
    ends = [
        load_file(place / "model.safetensors")
        for place in (kept / "1-mntp-4", run.with_name("out.stages") / "1-mntp")
    ]
    assert all(
        torch.equal(weight, ends[1][name]) for name, weight in ends[0].items() if name in ends[1]
    )
    half = load_file(kept / "1-mntp-2" / "model.safetensors")
    assert any(not torch.equal(weight, ends[0][name]) for name, weight in half.items())


def test_the_mask_changes_nothing_before_the_first_layer(report):
    assert report["layers"]["by_layer"][0] == pytest.approx(1.0)
    assert report["layers"]["by_layer"][-1] < 0.9999


class Page(HTMLParser):
    """Counts what a page is made of and what it would load."""

    def __init__(self):
        super().__init__()
        self.tags, self.loads, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href") and not value.startswith("#")
        ]
        if tag not in ("meta", "rect", "path", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(report):
    page = Page()
    page.feed(to_html(report))
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags
    assert page.tags.count("svg") >= 8
    assert "a few &lt;bundled&gt; sentences" in to_html(report)


def test_the_markdown_holds_every_table_of_the_page(report):
    parts = sections(report)
    text = to_markdown(parts)
    for part in parts:
        assert f"## {part.title}" in text
    value = f"{100 * report['words'][0]['rows'][0]['value']:.1f}"
    assert f"| Uni | {value} |" in text


def test_the_json_is_the_report(report, tmp_path):
    page = write_report(report, tmp_path / "there")
    assert page.name == "report.html"
    assert json.loads((tmp_path / "there" / "report.json").read_text()) == json.loads(
        json.dumps(report)
    )


def test_a_run_without_its_stages_is_still_compared_with_its_decoder(run, report, tmp_path):
    shutil.copytree(run, tmp_path / "alone")
    task = WordTask(
        "x",
        [TaggedSentence(("a", "cat"), ("D", "N"))] * 30,
        [TaggedSentence(("a", "dog"), ("D", "N"))],
        "accuracy",
        "",
    )
    found = measure(tmp_path / "alone", words=[task])
    assert [row["model"] for row in found["words"][0]["rows"]] == ["Uni", "Bi", "Bi+MNTP+SimCSE"]


@pytest.fixture
def adapter(tmp_path):
    """An adapter of the tiny qwen3 with an effect."""
    torch.manual_seed(0)
    model = load_decoder(DECODERS / "qwen3", head=False, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def test_a_run_is_called_what_was_done_in_it(adapter, corpus, tmp_path):
    """Adapters merged first, no MNTP, no stage kept: Bi is the decoder with its adapters."""
    changes = {"adapters": [adapter], "corpus": {"source": str(corpus)}, "mntp": {"steps": 0}}
    run = convert(Recipe.read({**RUN, **changes}), tmp_path / "out").folder
    sentence = [TaggedSentence(("a", "cat"), ("D", "N"))]
    found = measure(run, words=[WordTask("x", sentence * 30, sentence, "accuracy", "")])
    names = ["Uni", "Bi with adapters", "Bi with adapters+SimCSE"]
    assert [row["model"] for row in found["future"]] == names
    opened = open_encoder(RUN["decoder"], adapters=[adapter])
    expected = analysis.future_tokens(opened, analysis.bundled_triples())
    assert found["future"][1]["different"] == pytest.approx(expected.different, abs=1e-6)
    text = to_markdown(sections(found))
    assert "Uni to Bi with adapters+SimCSE" in text
    assert "+MNTP" not in text


def test_what_is_no_run_or_has_lost_its_decoder_is_said(run, tmp_path):
    with pytest.raises(RunError, match="no finished conversion"):
        measure(tmp_path)
    lost = json.loads((run / "provenance.json").read_text())
    lost["recipe"]["decoder"] = str(tmp_path / "gone")
    lost["places"]["decoder"] = "./gone"
    (tmp_path / "provenance.json").write_text(json.dumps(lost))
    with pytest.raises(ModelError, match="was made from it"):
        measure(tmp_path)


def test_the_first_screen_says_what_was_gained_and_shows_every_model(report):
    first = sections(report)[0]
    assert len(first.figures) == 2
    words = report["words"][0]
    last = [row for row in words["rows"] if not row["baseline"]][-1]
    change = next(
        each
        for each in words["changes"]
        if (each["before"], each["after"]) == ("Uni", last["model"])
    )
    kind = f"a clear {'gain' if change['value'] > 0 else 'loss'}"
    assert (kind if change["clear"] else "no clear change") in first.points[0]
    assert f"to {100 * last['value']:.1f}" in first.points[0]
    better = [
        row["model"] for row in words["rows"] if row["baseline"] and row["value"] > last["value"]
    ]
    assert all(f"{name} in part-of-speech" in first.points[2] for name in better)
    assert 2 <= len(first.points) <= 3
    for name in [row["model"] for row in words["rows"]] + list(words["floors"]):
        assert f">{name}<" in first.figures[0]


def test_a_conversion_that_does_not_beat_an_untrained_prompt_says_so(report):
    def said(low, value):
        entry = copy.deepcopy(report["sentences"][0])
        for change in entry["changes"]:
            if change["before"] in UNTRAINED:
                change |= {"low": low, "value": value, "high": 0.3, "clear": low > 0}
        return sections({**report, "sentences": [entry]})[0].points[-1]

    assert "does not beat its own decoder" not in said(0.05, 0.1)
    assert "does not beat its own decoder" in said(-0.05, 0.1)
    assert "train longer" in said(-0.5, -0.2)


def test_histograms_that_are_compared_share_an_axis(report):
    text = to_html(report)
    cosines = [
        value
        for row in report["future"]
        for kind in ("paraphrase", "different")
        for value in row[kind]
    ]
    assert text.count(f">{min(cosines):.2f}</text>") >= len(report["future"])


def test_figures_hold_their_values_and_escape_names():
    drawn = bars("a & b", [Bar("<i>", 0.5, 0.4, 0.6, PALETTE[0])], lines={"BERT": 0.55})
    assert ">50.0<" in drawn
    assert "&lt;i&gt;" in drawn
    assert "a &amp; b" in drawn
    assert ">BERT<" in drawn
    assert "nan" not in histograms("same", [1.0], [1.0], names=("one", "other"))
    shaded = cells("map", [[1.0] * 100, [0.0] * 100], names=["a", "b"])
    assert shaded.count("<path") >= 96


def test_figures_are_drawn_in_the_colours_of_the_page():
    drawn = ranking("x", [Bar("own", 0.5, 0.4, 0.6, PALETTE[2]), Bar("other", 0.3, 0.3, 0.3)])
    assert "var(--c2)" in drawn
    assert "var(--faint)" in drawn
    style = (files("llm2vec") / "assets" / "report.css").read_text()
    assert all(re.search(rf"--(c\d|\w+): {color}", style) for color in PALETTE)
    colors = set(re.findall(r"(?:fill|stroke): (#\w+)", drawn))
    assert colors <= {"#000000", "#ffffff"}, colors


def test_the_same_figure_is_drawn_the_same_way_twice():
    one, other = (bars("twice", [Bar("a", 0.5, 0.4, 0.6, PALETTE[0])], lines={}) for _ in range(2))
    assert one == other

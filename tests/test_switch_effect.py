"""Whether a decoder will need MNTP: measured, with a verdict for sentences and for words."""

import json

import pytest
from conftest import DECODERS
from typer.testing import CliRunner

from llm2vec.cli.info import _print_effects
from llm2vec.cli.main import app
from llm2vec.evaluation.analysis import BUNDLED_SETS
from llm2vec.evaluation.bootstrap import PairedDifference
from llm2vec.evaluation.sentence_tasks import sts
from llm2vec.evaluation.subjects import open_embedder
from llm2vec.evaluation.switch_effect import SwitchEffect

HARMED = SwitchEffect("sentences", "similarity", 0.57, 0.26, PairedDifference(-0.31, -0.42, -0.2))
HELPED = SwitchEffect("words", "part-of-speech", 0.8, 0.9, PairedDifference(0.1, 0.05, 0.15))
UNCLEAR = SwitchEffect("words", "part-of-speech", 0.8, 0.81, PairedDifference(0.01, -0.01, 0.03))


@pytest.mark.parametrize(
    ("effect", "verdict", "said"),
    [
        (HARMED, "harms", "sentences: the switch alone harms them, so they need MNTP"),
        (HELPED, "helps", "not needed; a larger test may still find a loss"),
        (UNCLEAR, "no clear effect", "no clear effect on them in so small a test"),
    ],
)
def test_the_verdict_follows_the_interval_of_the_difference(effect, verdict, said, capsys):
    assert effect.verdict == verdict
    _print_effects([effect])
    printed = capsys.readouterr().out
    assert said in printed
    assert "The evidence is thin" in printed


def test_a_decoder_is_measured_under_both_masks():
    decoder = str(DECODERS / "qwen3")
    done = CliRunner().invoke(app, ["info", decoder, "--analyse", "--json"])
    found = json.loads(done.stdout)
    sentences, words = found["switch_effects"]
    assert (sentences["vectors"], words["vectors"]) == ("sentences", "words")
    for name, value in ((f"uni:{decoder}", sentences["uni"]), (decoder, sentences["bi"])):
        assert sts(open_embedder(name), BUNDLED_SETS / "pairs.jsonl").value == pytest.approx(value)
    assert sentences["verdict"] == "helps"
    assert words["difference"]["value"] == pytest.approx(words["bi"] - words["uni"])
    assert len(found["similarity"]) == 4


def test_a_hybrid_has_no_verdict(capsys):
    _print_effects([])
    assert "is not measured here" in capsys.readouterr().out

"""What tests share: small real decoders, and a place to skip what needs more."""

from pathlib import Path

import pytest

from llm2vec import LLM2Vec

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
ASSETS = Path(__file__).parent / "assets"
DECODERS = ASSETS / "decoders"


@pytest.fixture(scope="session")
def shared():
    """The folder of data beside the checkout, which is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def encoder():
    """The bundled decoder, bidirectional and untrained."""
    return LLM2Vec.from_pretrained("bundled")


@pytest.fixture
def corpus(tmp_path):
    """A hundred and twenty short texts in a file."""
    place = tmp_path / "texts.txt"
    subjects = ("The old miller", "A tired nurse", "My brother", "The youngest pupil", "Nobody")
    verbs = ("opened", "painted", "sold", "forgot", "mended", "carried")
    objects = ("the green door", "a heavy box", "two red boats", "the broken clock")
    lines = [f"{a} {b} {c} before the rain came." for a in subjects for b in verbs for c in objects]
    place.write_text("\n".join(lines) + "\n")
    return place

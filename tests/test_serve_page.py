"""The page in a real browser, where there is one: Chromium without a window."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from servers import on_a_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def url(encoder):
    with on_a_port(encoder) as (url, _):
        yield url


def drawn(url, folder):
    """The page as it is once its script has done its work."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    waits = ["--timeout=20000", "--virtual-time-budget=20000", "--dump-dom"]
    command = [CHROMIUM, *options, *waits, url]
    return subprocess.run(command, capture_output=True, check=True, timeout=120, text=True).stdout


def test_the_page_asks_the_server_and_draws_the_similarities(url, encoder, tmp_path):
    page = drawn(f"{url}/#compare", tmp_path)
    assert "small: 192 numbers a vector" in page
    assert '<label id="key-label" hidden' in page
    cells = [float(each) for each in re.findall(r"<td[^>]*rgba[^>]*>([^<]*)</td>", page)]
    found = np.asarray(cells).reshape(5, 5)
    texts = re.search(r'<textarea id="sentences"[^>]*>(.*?)</textarea>', page, re.DOTALL).group(1)
    vectors = encoder.encode(texts.splitlines(), normalize=True)
    want = np.asarray(vectors) @ np.asarray(vectors).T
    assert np.abs(found - want).max() < 0.006  # two decimals are shown


def test_the_page_searches_lines(url, tmp_path):
    page = drawn(f"{url}/#search", tmp_path)
    scores = [float(each) for each in re.findall(r"<li><span>([^<]*)</span>", page)]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)

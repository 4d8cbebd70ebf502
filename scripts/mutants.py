"""Change the code in small ways and look whether a test notices: mutation testing of what matters most.

    python scripts/mutants.py [--sample N] [--seed N] [MODULE ...]

Each mutant is one change in one module: a comparison, an operator, a number, a condition, a statement left out. The
tests that cover the module (`COVERED`) run on it in a copy of the tree, until one fails. What no test notices is
printed, a line each, unless docs/mutants.md lists it with a reason. Killed, the same command goes on: fates are kept
in .mutants/fates.jsonl as long as the function and its tests stay as they are.

Mutants run in processes forked from one that has imported the libraries, which takes longer than most of the tests.
The mutation testers at hand start Python anew for each mutant, or run the whole suite in one process first.
"""

import argparse
import ast
import copy
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".mutants" / "fates.jsonl"
LISTED = ROOT / "docs" / "mutants.md"

COVERED = {
    "encoder.pooling": ("test_pooling",),
    "evaluation.word_metrics": ("test_word_metrics",),
    "encoder.batching": ("test_batching", "test_threads"),
    "encoder.tokenization": ("test_tokens", "test_drop_in"),
    "evaluation.sentence_tasks": ("test_sentences", "test_scores"),
    "backbone.proofs": ("test_proofs", "test_blame"),
    "training.stage": ("test_simcse", "test_mntp", "test_supervised", "test_adapters"),
}
"""The tests that are about a module, in this order. Others may notice a mutant too, but are slow to do so."""

PRELOADED = (
    "transformers",
    "peft",
    "sentence_transformers",
    "sklearn.linear_model",
    "scipy.stats",
)

REWRITTEN = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"

WAIT_S = 900
"""Longest time that a mutant may run for where it neither computes nor ends."""

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        module: The module without the package's name.
        function: The function that is changed, with its class.
        old: The source that is changed.
        new: What stands there instead.
        nth: Which of several equal places in the function, from 0.
        state: A digest of the function and of the tests that cover it.
    """

    module: str
    function: str
    old: str
    new: str
    nth: int
    state: str

    def __str__(self) -> str:
        which = f" ({self.nth + 1})" if self.nth else ""
        return f"{self.module}: {self.function}{which}: `{self.old}` -> `{self.new}`"


def main() -> None:
    """Run the mutants whose fate is not known, and print those that no test noticed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, metavar="N", help="at most N mutants of a module")
    parser.add_argument("--seed", type=int, default=0, help="which ones a sample takes")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(COVERED)}")
    chosen = parser.parse_args()
    if unknown := set(chosen.modules) - set(COVERED):
        parser.error(f"no tests are named for {', '.join(unknown)}")
    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        survivors = []
        for module in chosen.modules or COVERED:
            survivors += survivors_of(module, copied(Path(folder) / module), chosen)
    listed = LISTED.read_text(encoding="utf8")
    if new := [mutant for mutant in survivors if str(mutant) not in listed]:
        print(f"no test noticed, and {LISTED.relative_to(ROOT)} does not list:")
        print("\n".join(f"- {mutant}" for mutant in new))
    sys.exit(1 if new else 0)


def copied(place: Path) -> Path:
    """A copy of what tests read, for a module's mutants to be written into."""
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


def survivors_of(module: str, tree: Path, chosen: argparse.Namespace) -> list[Mutant]:
    """Run a module's mutants, and return those that passed every test."""
    file = tree / "src" / "llm2vec" / (module.replace(".", "/") + ".py")
    source = ast.parse(file.read_text(encoding="utf8"))
    mutants = dict(mutants_of(module, source))
    order = list(mutants)
    random.Random(chosen.seed).shuffle(order)
    order = order[: chosen.sample]
    fates = known_fates()
    waiting = [mutant for mutant in order if mutant not in fates]
    if waiting:
        fate, seconds = run(COVERED[module], tree, cpu_s=WAIT_S)
        if fate != "survived":
            sys.exit(f"{module}: its tests {fate} without any change: {tail(tree)}")
        most_s = 4 * seconds + 10
        print(f"{module}: {len(mutants)} mutants, {len(waiting)} to run, {seconds:.0f} s each")
    for number, mutant in enumerate(waiting, start=1):
        file.write_text(ast.unparse(mutants[mutant]), encoding="utf8")
        fates[mutant], seconds = run(COVERED[module], tree, cpu_s=most_s)
        keep(mutant, fates[mutant])
        print(
            f"{number}/{len(waiting)} {fates[mutant]} in {seconds:.0f} s: {mutant}",
            flush=True,
        )
    found = [mutant for mutant in order if fates[mutant] == "survived"]
    print(
        f"{module}: {len(order)} of {len(mutants)} mutants, {len(found)} not noticed",
        flush=True,
    )
    return found


# --- running


def run(tests: tuple[str, ...], tree: Path, *, cpu_s: float) -> tuple[str, float]:
    """Run tests in a process of their own: `survived`, `killed` or `timed out`, and the seconds it computed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = multiprocessing.get_context("fork").Process(target=test, args=(tests, tree, cpu_s))
    child.start()
    child.join(WAIT_S)
    if child.exitcode is None:
        os.killpg(child.pid or 0, signal.SIGKILL)
        child.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if (child.exitcode or 0) < 0:
        return "timed out", seconds
    return ("killed" if child.exitcode else "survived"), seconds


def test(tests: tuple[str, ...], tree: Path, cpu_s: float) -> None:
    """In the child: end with pytest's exit code, 0 where all tests passed."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s) + 1, int(cpu_s) + 1))
    output = os.open(output_of(tree), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(tree)
    sys.path[:] = [
        str(tree / "src"),
        *(each for each in sys.path if each != str(ROOT / "src")),
    ]
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    files = [f"tests/{name}.py" for name in tests]
    sys.exit(
        pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", "-W", REWRITTEN, *files])
    )


def tail(tree: Path) -> str:
    """The end of what pytest said."""
    return "\n".join(output_of(tree).read_text(errors="replace").splitlines()[-20:])


def output_of(tree: Path) -> Path:
    """The file that pytest's output goes to."""
    return tree.parent / f"{tree.name}.txt"


def known_fates() -> dict[Mutant, str]:
    """What became of the mutants of earlier calls."""
    if not KEPT.exists():
        return {}
    fates = {}
    for line in KEPT.read_text(encoding="utf8").splitlines():
        values = json.loads(line)
        fate = values.pop("fate")
        fates[Mutant(**values)] = fate
    return fates


def keep(mutant: Mutant, fate: str) -> None:
    """Note what became of a mutant."""
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a", encoding="utf8") as kept:
        kept.write(json.dumps(asdict(mutant) | {"fate": fate}, ensure_ascii=False) + "\n")


# --- mutants


def mutants_of(module: str, source: ast.Module) -> Iterator[tuple[Mutant, ast.Module]]:
    """Each mutant of a module, with its whole source."""
    tests = b"".join((ROOT / "tests" / f"{name}.py").read_bytes() for name in COVERED[module])
    seen: dict[tuple[str, str, str], int] = {}
    for function, place in functions(source):
        state = hashlib.sha256(ast.unparse(place).encode() + tests).hexdigest()[:12]
        for old, new, around in changes(place):
            texts = (function, shown(around), shown(replaced(around, old, new)))
            nth = seen.get(texts, 0)
            seen[texts] = nth + 1
            yield Mutant(module, *texts, nth, state), replaced(source, old, new)  # type: ignore[misc]


def functions(source: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions of a module and methods of its classes; a function in a function belongs to it."""
    for node in source.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    yield f"{node.name}.{method.name}", method


def changes(function: ast.FunctionDef) -> Iterator[tuple[ast.AST, ast.AST, ast.AST]]:
    """Nodes of a function's body, each with what may stand in its place, and a node that shows where it is."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    defaults = [each for each in (*function.args.defaults, *function.args.kw_defaults) if each]
    for statement in (*defaults, *body):
        around = {
            child: node for node in ast.walk(statement) for child in ast.iter_child_nodes(node)
        }
        for node in ast.walk(statement):
            place = around.get(node, node) if isinstance(node, ast.Constant) else node
            for new in alternatives(node):
                yield node, ast.copy_location(new, node), place


def alternatives(node: ast.AST) -> Iterator[ast.AST]:
    """What a node may be changed to."""
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            changed = copy.deepcopy(node)
            changed.ops[index] = SWAPPED[type(operator)]()  # type: ignore[call-overload]
            yield changed
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        yield ast.BinOp(node.left, SWAPPED[type(node.op)](), node.right)  # type: ignore[arg-type]
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(SWAPPED[type(node.op)](), node.values)  # type: ignore[arg-type]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from other_constants(node.value)
    elif isinstance(node, ast.IfExp | ast.If | ast.While) and not is_swapped_alone(node.test):
        changed = copy.copy(node)
        changed.test = ast.UnaryOp(ast.Not(), node.test)
        yield changed
    elif isinstance(node, ast.Raise | ast.Continue | ast.Break) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield ast.Pass()


def is_swapped_alone(test: ast.expr) -> bool:
    """Whether a condition has a change of its own that turns it into its opposite."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return isinstance(test.ops[0], ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn)
    return isinstance(test, ast.UnaryOp)


def other_constants(value: object) -> Iterator[ast.Constant]:
    """Another value of the same kind; texts stay as they are."""
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 2 if value else 1.0)


def replaced(source: ast.AST, old: ast.AST, new: ast.AST) -> ast.AST:
    """A tree with one node in another's place; the tree itself is not changed."""

    class Replacing(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return new if node is old else self.generic_visit(copy.copy(node))

        def generic_visit(self, node: ast.AST) -> ast.AST:
            for name, value in ast.iter_fields(node):
                if isinstance(value, list):
                    changed = [self.visit(v) if isinstance(v, ast.AST) else v for v in value]
                    setattr(node, name, changed)
                elif isinstance(value, ast.AST):
                    setattr(node, name, self.visit(value))
            return node

    return ast.fix_missing_locations(Replacing().visit(source))


def shown(node: ast.AST) -> str:
    """A node's first line, as a person would look for it."""
    first, *rest = ast.unparse(node).splitlines()
    return f"{first} ..." if rest else first


if __name__ == "__main__":
    main()

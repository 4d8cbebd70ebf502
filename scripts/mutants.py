"""Change the code in small ways and look whether a test notices: mutation testing of what matters most.

    python scripts/mutants.py [--sample N] [--seed N] [--seconds S] [MODULE ...]

Each mutant is one change in one function: a comparison, an operator, a number, a condition, a statement left out. The
tests of the module (`COVERED`) run once unchanged, watched for the functions that each one calls. A mutant meets the
tests that call its function, the quickest first, until one fails or they have computed for S seconds (4); all this in
a copy of the tree. What no test notices is printed, a line each. What docs/mutants.md lists with a reason is not run.

Stopped, the same command goes on: fates are kept in .mutants/fates.jsonl. A mutant that a test has killed stays killed
as long as its function is the same, and one that survived as long as the module's tests are the same too.

Mutants run in processes forked from one that has collected the tests, where the function's code is replaced. Imports
and collecting take longer than most of the tests; the mutation testers at hand do them anew for each mutant.
"""

import argparse
import ast
import compileall
import copy
import gc
import hashlib
import importlib
import inspect
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import types
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".mutants" / "fates.jsonl"
LISTED = ROOT / "docs" / "mutants.md"

COVERED = {
    "encoder.pooling": ("test_pooling.py",),
    "evaluation.word_metrics": ("test_word_metrics.py",),
    "encoder.batching": ("test_batching.py", "test_threads.py", "test_positions.py"),
    "encoder.tokenization": ("test_tokens.py", "test_drop_in.py"),
    "evaluation.sentence_tasks": ("test_sentences.py", "test_scores.py"),
    "backbone.proofs": (
        "test_proofs.py",
        "test_partial.py",
        "test_varlen.py",
        "test_positions.py::test_packing_is_proven_on_either_side_of_the_border",
        "test_simcse.py::test_dropout_is_off_in_a_loaded_decoder_and_live_where_the_stage_sets_it",
        "test_blame.py::test_states_too_large_for_their_type_are_blamed_on_the_type",
        "test_blame.py::test_a_family_whose_code_fails_on_packed_rows_alone_is_padded",
    ),
    "training.stage": (
        "test_stage.py",
        "test_mntp.py::test_mask_tokens_leave_tokenizer_and_embeddings_as_they_were",
        "test_distill.py::test_a_student_comes_nearer_to_its_teacher_and_keeps_no_projection",
        "test_train_supervised.py::test_training_goes_on_with_the_adapter_of_simcse_on_what_was_there_before_it",
        "test_train_supervised.py::test_a_decoder_can_stay_causal",
        "test_train_supervised.py::test_the_weights_of_the_best_evaluation_are_kept",
        "test_train_supervised.py::test_training_stops_when_the_held_out_score_no_longer_rises",
    ),
    "conversion.stage_folder": ("test_stage.py",),
}
"""The tests that are about a module. Others may notice a mutant too, but are slow to do so."""

REWRITTEN = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"

IDLE_S = 60
"""How long a mutant may neither compute nor end: its threads wait for each other."""

START_S = 10
"""Seconds that a mutant may compute for beside twice what its tests need: imports, and collecting the tests."""

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
        state: A digest of the function.
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
    parser.add_argument(
        "--seconds", type=float, default=4, metavar="S", help="how long a mutant's tests may take"
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(COVERED)}")
    chosen = parser.parse_args()
    if unknown := set(chosen.modules) - set(COVERED):
        parser.error(f"no tests are named for {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as folder:
        survivors = []
        for module in chosen.modules or COVERED:
            survivors += survivors_of(module, copied(Path(folder) / module), chosen)
    if survivors:
        print(f"no test noticed, and {LISTED.relative_to(ROOT)} does not list:")
        print("\n".join(f"- {mutant}" for mutant in survivors))
    sys.exit(1 if survivors else 0)


def copied(place: Path) -> Path:
    """A copy of what tests read, for a module's mutants to be written into."""
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    compileall.compile_dir(place / "src", quiet=1)
    return place


def survivors_of(module: str, tree: Path, chosen: argparse.Namespace) -> list[Mutant]:
    """Run a module's mutants, and return those that passed every test."""
    file = tree / "src" / "llm2vec" / (module.replace(".", "/") + ".py")
    mutants = dict(mutants_of(module, ast.parse(file.read_text(encoding="utf8"))))
    listed = LISTED.read_text(encoding="utf8").splitlines()
    order = [mutant for mutant in mutants if f"- {mutant}" not in listed]
    random.Random(chosen.seed).shuffle(order)
    order = order[: chosen.sample]
    tests = digest_of_tests(module, tree)
    fates = known_fates(tests)
    waiting = {mutant: mutants[mutant] for mutant in order if mutant not in fates}
    if waiting:
        print(f"{module}: {len(mutants)} mutants, {len(waiting)} to run", flush=True)
        work = Running(module, file, waiting, most_s=chosen.seconds, tests=tests)
        child = forked(run_pytest, module, work, tree)
        child.join()
        if child.exitcode:
            sys.exit(f"{module}: its tests cannot be run: {tail(tree)}")
        fates = known_fates(tests)
    found = [mutant for mutant in order if fates[mutant] == "survived"]
    print(
        f"{module}: {len(order)} of {len(mutants)} mutants run, {len(found)} not noticed",
        flush=True,
    )
    return found


# --- running


def forked(work: Callable[..., object], *arguments: object) -> ForkProcess:
    """A process that does some work, begun."""
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    return child


def run_pytest(module: str, plugin: object, tree: Path) -> None:
    """In a process of its own: collect the tests of a module in a copy of the tree, and let a plugin run them."""
    output = os.open(said(tree), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 2)
    os.chdir(tree)
    sys.path[:] = [
        str(tree / "src"),
        *(each for each in sys.path if each != str(ROOT / "src")),
    ]
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile(
        "mutants",
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        max_examples=25,
    )
    hypothesis.settings.load_profile("mutants")
    options = ["-s", "-qq", "-p", "no:cacheprovider", "--no-summary", "-W", REWRITTEN]
    files = [f"tests/{name}" for name in COVERED[module]]
    sys.exit(pytest.main([*options, "--basetemp", "tmp", *files], plugins=[plugin]))


class Running:
    """A plugin of pytest that runs mutants, each in a process of its own."""

    def __init__(
        self,
        module: str,
        file: Path,
        mutants: Mapping[Mutant, ast.Module],
        *,
        most_s: float,
        tests: str,
    ) -> None:
        self._name = f"llm2vec.{module}"
        self._file = file
        self._mutants = mutants
        self._most_s = most_s
        self._tests = tests

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all tests unchanged once, then for each mutant those that call its function."""
        items = {item.nodeid: item for item in session.items}
        importlib.import_module(self._name)
        callers = self._watched(session.items)
        for number, (mutant, source) in enumerate(self._mutants.items(), start=1):
            names, expected_s = quickest(callers[mutant.function], self._most_s)
            self._file.write_text(ast.unparse(source), encoding="utf8")
            arguments = (mutant, source, [items[name] for name in names])
            fate, seconds = "survived", 0.0
            if names:
                fate, seconds = fate_of(self._run, *arguments, most_s=2 * expected_s + START_S)
            keep(mutant, fate, self._tests)
            print(
                f"{number}/{len(self._mutants)} {fate} in {seconds:.1f} s, {len(names)} tests: {mutant}",
                flush=True,
            )
        return True

    def _watched(self, items: Sequence[pytest.Item]) -> defaultdict[str, list[tuple[float, str]]]:
        """For each function the tests that call it, with the seconds that each computes; imports what they import."""
        seen = Path("seen.json")
        child = forked(watch, items, self._name, self._file, seen)
        child.join()
        if child.exitcode:
            pytest.exit("the tests fail without any change", returncode=1)
        found = json.loads(seen.read_text(encoding="utf8"))
        for name in found["imported"]:
            with suppress(ImportError):
                importlib.import_module(name)
        gc.freeze()  # a collection in a child would copy the memory that it shares with this process
        callers: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
        callers.update(found["callers"])
        return callers

    def _run(self, mutant: Mutant, source: ast.Module, items: Sequence[pytest.Item]) -> None:
        """In the child: put the mutant in its place, and run tests until one fails."""
        put_in_place(self._name, mutant.function, source, self._file)
        run_items(items)


def function_of(module: types.ModuleType, name: str) -> types.FunctionType:
    """The plain function of this name, with its class, whatever decorates it."""
    found: Any = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    if isinstance(found, property):
        found = found.fget
    function: types.FunctionType = inspect.unwrap(found)
    return function


def fate_of(work: Callable[..., object], *arguments: object, most_s: float) -> tuple[str, float]:
    """`survived`, `killed` or `timed out`, and the seconds that the work in a process of its own computed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = forked(limited, work, arguments, int(most_s))
    wait_for(child)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if (child.exitcode or 0) < 0:
        return "timed out", seconds
    return ("killed" if child.exitcode else "survived"), seconds


def wait_for(child: ForkProcess) -> None:
    """Wait until a process ends, and end it with all that it started where it does nothing any more."""
    process, computed, since = psutil.Process(child.pid), -1.0, time.monotonic()
    while child.exitcode is None:
        child.join(5)
        with suppress(psutil.NoSuchProcess):
            family = [process, *process.children(recursive=True)]
            now = sum(sum(each.cpu_times()[:2]) for each in family)
            if now != computed:
                computed, since = now, time.monotonic()
        if child.exitcode is None and time.monotonic() - since > IDLE_S:
            os.killpg(process.pid, signal.SIGKILL)
            child.join()


def limited(work: Callable[..., object], arguments: Sequence[object], cpu_s: int) -> None:
    """In the child: do the work, in a session of its own, within so many seconds of computing."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    os.dup2(2, 1)
    work(*arguments)


def run_items(items: Sequence[pytest.Item], *plugins: object) -> None:
    """Run tests in this order; end the process where one fails."""
    for plugin in (Failing, *plugins):
        items[0].config.pluginmanager.register(plugin)
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)


class Failing:
    """A plugin of pytest that ends the process where a test fails."""

    @staticmethod
    def pytest_runtest_logreport(report: pytest.TestReport) -> None:
        """Look at a test's outcome."""
        if report.failed:
            print(report.longreprtext, file=sys.stderr, flush=True)
            os._exit(1)


class Watching:
    """A plugin of pytest that sees which functions each test calls, and how long it computes by itself.

    A fixture that tests share counts as each one's own: a mutant may meet one of these tests alone.
    """

    def __init__(self, called: set[str]) -> None:
        self._called = called
        self._shared_s: dict[str, float] = {}
        self._set_up_s = 0.0
        self.callers: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Function) -> Generator[None, object, object]:
        """Note what a test calls, and the seconds that it computes."""
        self._called.clear()
        self._set_up_s = 0.0
        before = computed_s()
        result = yield
        seconds = computed_s() - before - self._set_up_s
        seconds += sum(self._shared_s.get(name, 0.0) for name in item.fixturenames)
        for function in self._called:
            self.callers[function].append((seconds, item.nodeid))
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object]
    ) -> Generator[None, object, object]:
        """Note the seconds that a fixture computes which several tests share."""
        before = computed_s()
        result = yield
        if fixturedef.scope != "function":
            self._shared_s[fixturedef.argname] = computed_s() - before
            self._set_up_s += computed_s() - before
        return result


def computed_s() -> float:
    """The seconds that this process and its children have computed."""
    return sum(os.times()[:4])


def watch(items: Sequence[pytest.Item], name: str, file: Path, seen: Path) -> None:
    """In a process of its own: run tests, and write which of them call each function of a module."""
    os.dup2(2, 1)
    called: set[str] = set()
    before = set(sys.modules)
    source = ast.parse(file.read_text(encoding="utf8"))
    for function, place in functions(source):
        place.body.insert(0, ast.parse(f"called_by_test({function!r})").body[0])
    sys.modules[name].__dict__["called_by_test"] = called.add
    for function, _ in functions(source):
        put_in_place(name, function, source, file)
    watching = Watching(called)
    run_items(items, watching)
    imported = [each for each in sys.modules if each not in before]
    found = {"callers": watching.callers, "imported": imported}
    seen.write_text(json.dumps(found), encoding="utf8")


def put_in_place(name: str, function: str, source: ast.Module, file: Path) -> None:
    """Give a function of a module the code and the defaults that it has in a changed source."""
    changed = types.ModuleType(name)
    exec(compile(ast.unparse(source), file, "exec"), changed.__dict__)
    new, live = function_of(changed, function), function_of(sys.modules[name], function)
    live.__code__ = new.__code__
    live.__defaults__ = new.__defaults__
    live.__kwdefaults__ = new.__kwdefaults__


def quickest(tests: Sequence[tuple[float, str]], most_s: float) -> tuple[list[str], float]:
    """The quickest tests that together take `most_s` seconds, one at least, file by file; and what they take."""
    taken: list[tuple[float, str]] = []
    for seconds, name in sorted(tests):
        if taken and sum(each for each, _ in taken) + seconds > most_s:
            break
        taken.append((seconds, name))
    by_file: defaultdict[str, list[str]] = defaultdict(list)
    for _, name in taken:
        by_file[name.split("::")[0]].append(name)
    return [name for names in by_file.values() for name in names], sum(each for each, _ in taken)


def tail(tree: Path) -> str:
    """The end of what pytest said."""
    return "\n".join(said(tree).read_text(errors="replace").splitlines()[-20:])


def said(tree: Path) -> Path:
    """The file of what pytest says of a tree's tests."""
    return tree.parent / f"{tree.name}.txt"


def known_fates(tests: str) -> dict[Mutant, str]:
    """What became of the mutants of earlier calls; those that survived other tests than these are to be run again."""
    if not KEPT.exists():
        return {}
    fates = {}
    for line in KEPT.read_text(encoding="utf8").splitlines():
        values = json.loads(line)
        fate, survived = values.pop("fate"), values.pop("tests")
        if fate != "survived" or survived == tests:
            fates[Mutant(**values)] = fate
    return fates


def keep(mutant: Mutant, fate: str, tests: str) -> None:
    """Note what became of a mutant."""
    KEPT.parent.mkdir(exist_ok=True)
    values = asdict(mutant) | {"fate": fate, "tests": tests}
    with KEPT.open("a", encoding="utf8") as kept:
        kept.write(json.dumps(values, ensure_ascii=False) + "\n")


def digest_of_tests(module: str, tree: Path) -> str:
    """A digest of a module's tests."""
    files = [tree / "tests" / name.split("::")[0] for name in COVERED[module]]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


# --- mutants


def mutants_of(module: str, source: ast.Module) -> Iterator[tuple[Mutant, ast.Module]]:
    """Each mutant of a module, with its whole source."""
    seen: dict[tuple[str, str, str], int] = {}
    for function, place in functions(source):
        state = hashlib.sha256(ast.unparse(place).encode()).hexdigest()[:12]
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

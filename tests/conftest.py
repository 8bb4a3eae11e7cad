"""Real models for the tests, through the project's own catalogue and download code."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cache import cache_folder
from hypothesis import settings

from hw.lab import LabError, namespaces
from picoedge.errors import PicoedgeError
from picoedge.kernels import loader
from picoedge.registry.catalogue import CatalogueEntry, built_in_folder, load_entry
from picoedge.registry.download import fetch
from picoedge.registry.paths import lock_file

# The same examples each time, however slow the machine: a run tells of the change, not of luck.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

ENTRY_FILES = {
    "smollm2": built_in_folder() / "smollm2-135m.toml",
    "gemma": Path(__file__).parent / "data" / "gemma3-270m.toml",
}
PACKING_ROOMS = ("store", "text", "kernels")
NATIVE_FIXTURES = {"native", "backends", "backend"}
LAB_FIXTURES, LAB_FILES = {"lab"}, {"test_lab.py", "test_lab_cluster.py"}
LONGEST_NAME = 200
# Real boards, real models, or thousands of examples: seconds a test.
SLOW = {
    *("bench", "cluster", "lab"),
    *("test_call_path.py", "test_packaging.py", "test_model_transformers.py"),
    "test_documented_runs.py",
    *("test_window.py", "test_window_faults.py", "test_window_page_cache.py"),
    *("test_locality.py", "test_window_plan.py", "test_export_gguf_models.py", "test_links.py"),
    *("test_native.py", "test_kv_cache.py", "test_packer.py", "test_packer_faults.py"),
    *("test_huggingface.py", "test_huggingface_config.py", "test_huggingface_refused.py"),
    *("test_gguf.py", "test_gguf_refused.py", "test_transfer.py"),
    *("test_donor.py", "test_schedule.py", "test_piece_table.py", "test_assignment.py"),
    *("test_cluster_plan.py", "test_cluster_plan_properties.py", "test_shelf.py"),
    *("test_chat_signals.py", "test_cli_chats.py"),
    *("test_simulator.py", "test_histories.py", "test_mutants.py"),
    *("test_chat_terminal.py", "test_link_faults.py", "test_standing_links.py"),
}
# The longest files, which begin first: a long file at the end would leave the other cores idle.
LONGEST = (
    *("test_cluster_faults.py", "test_cluster_golden.py", "test_cluster_life.py"),
    *("test_window_faults.py", "test_worker_faults.py", "test_model_transformers.py"),
    *("test_cluster_stragglers.py", "test_cluster_lab.py", "test_packaging.py"),
    *("test_links.py", "test_window.py", "test_disk_faults.py", "test_lab.py", "test_native.py"),
    *("test_packer.py", "test_cluster_relay.py", "test_window_plan.py", "test_locality.py"),
    *("test_bench.py", "test_bench_reference.py", "test_huggingface.py", "test_allreduce.py"),
    *("test_cluster_versions.py", "test_transfer.py", "test_reference.py", "test_cli_ps.py"),
    *("test_export_gguf_models.py", "test_cli_run.py", "test_call_path.py"),
)
PACKS_KEPT = 4  # of one model: sessions of other versions may be running
FETCH_ERRORS = pytest.StashKey[dict[str, PicoedgeError]]()


def gguf_path(entry: CatalogueEntry) -> Path:
    return cache_folder() / f"{entry.name}.gguf"


def fetch_model(entry: CatalogueEntry) -> None:
    """Place the model's GGUF in the test cache, once for all sessions."""
    target = gguf_path(entry)
    with lock_file(target.with_suffix(".lock"), lambda: None):
        if not target.exists():  # whatever is there under this name was checked when it came
            fetch(entry, target)


def pytest_configure() -> None:
    """A job in the background ignores Ctrl-C, and so would every program a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark slow folders, leave out what this machine lacks, order files, refuse names too long.

    Without a C compiler there are no C kernels, without root no emulated boards. Where there is
    what they need they are never left out: kernels that do not build are a failure. CI
    has it all. A name that carries a whole file (a parameter without `ids=`) would be in every log.
    """
    unwieldy = [item.nodeid[:LONGEST_NAME] for item in items if len(item.name) >= LONGEST_NAME]
    if unwieldy:
        raise pytest.UsageError(
            f"tests with names of {LONGEST_NAME} characters or more, give ids=: {unwieldy}"
        )
    for item in items:
        if SLOW & {item.path.parent.name, item.path.name}:
            item.add_marker(pytest.mark.slow)
    without = [
        item
        for item in items
        if (needs(item, NATIVE_FIXTURES) and not has_native())
        or ((needs(item, LAB_FIXTURES) or item.path.name in LAB_FILES) and not has_boards())
    ]
    if without and os.environ.get("CI"):
        raise pytest.UsageError(f"this machine lacks what {len(without)} tests need: {without[0]}")
    config.hook.pytest_deselected(items=without)
    order = {name: place for place, name in enumerate(LONGEST)}
    items[:] = sorted(
        (item for item in items if item not in without),
        key=lambda item: order.get(item.path.name, len(order)),
    )


def needs(item: pytest.Item, fixtures: set[str]) -> bool:
    return bool(fixtures & set(getattr(item, "fixturenames", ())))


def has_native() -> bool:
    compilers = ("cc", "gcc", "clang")
    return any(shutil.which(compiler) for compiler in compilers) or bool(built_kernels())


def has_boards() -> bool:
    """Whether boards can be emulated here (root, tools, /dev/net/tun)."""
    try:
        namespaces.check(with_switch=True)
    except LabError:
        return False
    return True


def built_kernels() -> list[Path]:
    return list(Path(loader.__file__).parent.glob("_native_*.so"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch before the first test, so that no test's time limit pays for a slow network."""
    needed = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    errors = session.config.stash.setdefault(FETCH_ERRORS, {})
    for name, file in ENTRY_FILES.items():
        if needed & {f"{name}_gguf", f"{name}_pack"} and not session.config.option.collectonly:
            try:
                fetch_model(load_entry(file))
            except PicoedgeError as error:
                errors[name] = error


def _gguf(name: str, config: pytest.Config) -> Path:
    error = config.stash[FETCH_ERRORS].get(name)
    if error is not None:
        raise error
    return gguf_path(load_entry(ENTRY_FILES[name]))


@pytest.fixture
def libraries_anew() -> Iterator[None]:
    """The library of the kernels is chosen and opened anew by this test, and after it."""
    loader._open_here.cache_clear()
    yield
    loader._open_here.cache_clear()


@pytest.fixture(scope="session")
def smollm2_gguf(pytestconfig: pytest.Config) -> Path:
    """The GGUF of SmolLM2-135M-Instruct (Q4_1, byte-level BPE)."""
    return _gguf("smollm2", pytestconfig)


@pytest.fixture(scope="session")
def gemma_gguf(pytestconfig: pytest.Config) -> Path:
    """The GGUF of Gemma 3 270M (Q4_K_M, SentencePiece)."""
    return _gguf("gemma", pytestconfig)


@pytest.fixture(scope="session")
def smollm2_pack(smollm2_gguf: Path) -> Path:
    """SmolLM2, packed by this very code; read it only."""
    return pack_once(smollm2_gguf)


@pytest.fixture(scope="session")
def gemma_pack(gemma_gguf: Path) -> Path:
    """Gemma 3 270M, packed by this very code; read it only."""
    return pack_once(gemma_gguf)


def pack_once(gguf: Path) -> Path:
    """The model's pack in the test cache, keyed by the file and by the code that packs."""
    from picoedge.registry.packing import pack_model
    from picoedge.store.sources.source import open_source

    key = hashlib.blake2b(open_source(gguf).fingerprint.encode(), digest_size=8)
    package = built_in_folder().parent / "picoedge"
    for room in PACKING_ROOMS:
        for file in sorted((package / room).rglob("*.py")):
            key.update(file.read_bytes())
    out = gguf.with_name(f"{gguf.stem}-{key.hexdigest()}.pico")
    with lock_file(gguf.with_suffix(".pack.lock"), lambda: None):
        if not out.exists():
            pack_model(gguf, out)
            packs = sorted(gguf.parent.glob(f"{gguf.stem}-*.pico"), key=os.path.getmtime)
            for old in packs[:-PACKS_KEPT]:
                shutil.rmtree(old)
    return out

"""Which kernels a processor gets: never an instruction it lacks, and a reason people can read."""

from __future__ import annotations

import ctypes as ct
import importlib
from dataclasses import replace
from pathlib import Path

import pytest
from kernel_levels import built_levels

from picoedge.errors import PicoedgeError, UsageError
from picoedge.kernels import loader, native, sums, training_abi
from picoedge.kernels.loader import (
    choose_library,
    cpu_flags,
    default_threads,
    describe_kernels,
    load_kernels,
    load_training_kernels,
    load_training_library,
    usable_levels,
)

# Feature lines as /proc/cpuinfo of these processors has them.
A72 = "fp asimd evtstrm crc32 cpuid"  # Raspberry Pi 4
A76 = (  # Raspberry Pi 5
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
    "asimddp"
)
A78AE = (  # Jetson Orin
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
    "asimddp uscat ilrcpc flagm paca pacg"
)
A720 = A78AE + " sve sve2 i8mm bf16"
HASWELL = "fpu sse sse2 ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt avx f16c bmi1 avx2 bmi2"
ALDER_LAKE = HASWELL + " gfni vaes vpclmulqdq avx_vnni"
SKYLAKE_X = HASWELL + " avx512f avx512dq avx512cd avx512bw avx512vl"
ICE_LAKE = SKYLAKE_X + " avx512_vnni avx512_bitalg"
SAPPHIRE_RAPIDS = ICE_LAKE + " avx_vnni avx512_bf16"


@pytest.mark.parametrize(
    ("machine", "flags", "levels"),
    [
        ("aarch64", A72, ["neon"]),
        ("aarch64", A76, ["dotprod", "neon"]),
        ("aarch64", A78AE, ["dotprod", "neon"]),
        ("arm64", A76, ["dotprod", "neon"]),
        ("x86_64", HASWELL, ["avx2"]),
        ("x86_64", ALDER_LAKE, ["avxvnni", "avx2"]),
        ("x86_64", SKYLAKE_X, ["avx2"]),
        ("x86_64", ICE_LAKE, ["avx512", "avx2"]),
        ("x86_64", SAPPHIRE_RAPIDS, ["avx512", "avxvnni", "avx2"]),
        ("AMD64", HASWELL, ["avx2"]),
        ("x86_64", HASWELL.replace("f16c", ""), []),
        ("x86_64", "", []),
        ("aarch64", "fp", []),
        ("armv7l", "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt", []),
        ("riscv64", "rv64imafdc", []),
    ],
)
def test_a_processor_gets_the_levels_it_can_run_best_first(
    machine: str, flags: str, levels: list[str]
) -> None:
    assert usable_levels(machine, flags.split()) == levels


def test_a_newer_arm_core_runs_at_least_dot_products() -> None:
    assert usable_levels("aarch64", A720.split())[-2:] == ["dotprod", "neon"]


def test_no_level_of_one_architecture_runs_on_another() -> None:
    assert not set(usable_levels("x86_64", [*A720.split(), *SAPPHIRE_RAPIDS.split()])) & set(
        usable_levels("aarch64", [*A720.split(), *SAPPHIRE_RAPIDS.split()])
    )


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd crc32\n", "fp asimd crc32"),
        ("processor\t: 0\nflags\t\t: fpu avx2 fma\nbugs\t\t: spectre_v1\n", "fpu avx2 fma"),
        ("flags : one two\n\nflags : three\n", "one two"),
        ("processor : 0\nvmx flags\t: vnmi\n", ""),
        ("no colon here\n", ""),
        ("", ""),
    ],
)
def test_flags_are_those_of_the_first_processor(text: str, flags: str) -> None:
    assert cpu_flags(text) == set(flags.split())


@pytest.fixture
def built(tmp_path: Path) -> Path:
    for level in ("avx512", "avx2"):
        (tmp_path / f"_native_{level}.so").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "levels", "name"),
    [
        (None, ["avx512", "avxvnni", "avx2"], "_native_avx512.so"),
        (None, ["avxvnni", "avx2"], "_native_avx2.so"),  # avxvnni was not built
        ("native", ["avx512", "avx2"], "_native_avx512.so"),
        ("avx2", ["avx512", "avx2"], "_native_avx2.so"),
    ],
)
def test_the_best_level_that_is_built_is_chosen(
    built: Path, kind: str | None, levels: list[str], name: str
) -> None:
    path, reason = choose_library(kind, levels, built)
    assert path == built / name
    assert path.stem.removeprefix("_native_") in reason


@pytest.mark.parametrize(
    ("kind", "levels", "reason"),
    [
        (None, ["neon"], "not built (neon)"),
        (None, [], "none of the instruction sets"),
        ("numpy", ["avx2"], "asked for"),
    ],
)
def test_numpy_runs_otherwise_and_says_why(
    built: Path, kind: str | None, levels: list[str], reason: str
) -> None:
    path, why = choose_library(kind, levels, built)
    assert path is None
    assert reason in why


@pytest.mark.parametrize(
    ("kind", "levels", "message"),
    [
        ("native", ["neon"], "not built (neon)"),
        ("native", [], "none of the instruction sets"),
        ("avx512", ["avx2"], "cannot run avx512; it can run avx2"),  # never by crashing
        ("avxvnni", ["avxvnni", "avx2"], "not built (avxvnni)"),
        ("cuda", ["avx2"], "no kernels named 'cuda'"),
        ("", ["avx2"], "no kernels named ''"),
    ],
)
def test_kernels_asked_for_that_cannot_run_are_an_error(
    built: Path, kind: str, levels: list[str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        choose_library(kind, levels, built)
    assert message in caught.value.message
    assert "numpy" in (caught.value.hint or "")


def test_numpy_can_be_forced() -> None:
    kernels = load_kernels("numpy", threads=1)
    assert kernels.name.lower().startswith("numpy")
    kernels.close()


def test_threads_default_to_the_cores_this_process_may_use() -> None:
    assert default_threads() >= 1
    kernels = load_kernels("numpy")
    assert kernels.threads == default_threads()
    kernels.close()


@pytest.mark.usefixtures("libraries_anew")
def test_a_library_that_cannot_be_loaded_is_not_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "_native_avx2.so"
    broken.write_bytes(b"\x7fELF, but no more than that")
    choice = broken, "best level built that this processor has (avx2)"
    monkeypatch.setattr(loader, "choose_library", lambda kind, levels, folder: choice)
    kernels = load_kernels(None, threads=1)
    assert kernels.name.lower().startswith("numpy")
    kernels.close()
    with pytest.raises(PicoedgeError, match=r"_native_avx2\.so cannot be loaded"):
        load_kernels("native", threads=1)


def swapped(struct: type[ct.Structure], one: str, other: str) -> type[ct.Structure]:
    """The structure with two of its fields in each other's place."""
    names = {one: other, other: one}
    fields = [(names.get(field[0], field[0]), field[1]) for field in struct._fields_]
    return type(struct.__name__, (ct.Structure,), {"_fields_": fields})


@pytest.fixture(params=["meaning", "size", "room", "order", "format"])
def other_sources(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, libraries_anew: None
) -> None:
    """As if the libraries here had been built from sources that differ in this."""
    if request.param == "meaning":
        monkeypatch.setattr(native, "_ABI", native._ABI + 1)
    elif request.param == "size":
        monkeypatch.setattr(native, "_XBLOCK_BYTES", 40)
    elif request.param == "room":
        monkeypatch.setattr(native, "LOW_RANK_TOKENS", 2 * native.LOW_RANK_TOKENS)
    elif request.param == "order":
        attend = swapped(native._STRUCTS["attend_t"], "keys", "values")
        monkeypatch.setitem(native._STRUCTS, "attend_t", attend)
    else:
        monkeypatch.setitem(native.FORMATS, "q5", replace(native.FORMATS["q5"], code=4))


@pytest.mark.usefixtures("other_sources")
def test_a_library_of_other_sources_is_refused_not_run() -> None:
    with pytest.raises(PicoedgeError, match="was built from other sources") as caught:
        load_kernels("native", threads=1)
    assert (caught.value.hint or "").startswith("build the kernels again: ")
    kernels = load_kernels(None, threads=1)
    assert kernels.name.lower().startswith("numpy")
    kernels.close()
    assert "build the kernels again" in describe_kernels()


def test_a_library_that_lacks_a_function_is_refused() -> None:
    with pytest.raises(PicoedgeError, match=r"was built from other sources .*pe_level"):
        native.open_library(Path("libc.so.6"))


SWAPPED = {"attention_t": ("q", "k"), "adamw_t": ("beta1", "rest1"), "sums_t": ("plane", "wide")}


@pytest.fixture(params=["meaning", "rows", "block", *SWAPPED])
def other_training(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, libraries_anew: None
) -> None:
    """As if the libraries' kernels of training had been built from sources that differ in this."""
    if request.param == "meaning":
        monkeypatch.setattr(training_abi, "_ABI", training_abi._ABI + 1)
    elif request.param == "rows":
        monkeypatch.setattr(training_abi, "QUERIES", 32)
    elif request.param == "block":
        monkeypatch.setattr(training_abi, "SUM_BLOCK", 128)
    else:
        struct = swapped(training_abi._STRUCTS[request.param], *SWAPPED[request.param])
        monkeypatch.setitem(training_abi._STRUCTS, request.param, struct)


@pytest.mark.usefixtures("other_training")
def test_a_library_of_other_sources_trains_nothing_and_infers() -> None:
    native_library = native.open_library(built_levels()[0])
    for refused in (
        load_training_library,
        load_training_kernels,
        lambda: sums.GradientSums(native_library, sums.padded(1), 1),
    ):
        with pytest.raises(PicoedgeError, match="was built from other sources") as caught:
            refused()
        assert (caught.value.hint or "").startswith("build the kernels again: ")
    kernels = load_kernels("native", threads=1)
    assert kernels.name.startswith("native")
    kernels.close()


def test_every_structure_that_the_c_files_read_is_compared() -> None:
    folder = Path(loader.__file__).parent
    modules = {f"picoedge.kernels.{path.stem}" for path in folder.glob("[a-z]*.py")}
    for name in modules:
        importlib.import_module(name)
    ours = {each for each in ct.Structure.__subclasses__() if each.__module__ in modules}
    rows = {native.Field, native._Format}  # of the tables themselves
    assert ours - rows == {*native._STRUCTS.values(), *training_abi._STRUCTS.values()}

"""The doctor's checks on boards as they may be, and its report on this one."""

from __future__ import annotations

import ast
import json
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

import picoedge
from picoedge.cli.main import main
from picoedge.engine import doctor
from picoedge.errors import StorageError
from picoedge.files import parse_toml
from picoedge.host.disk_speed import StorageSpeed
from picoedge.kernels import training_abi
from picoedge.registry.catalogue import FetchSettings
from picoedge.registry.shelf import Shelf

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
PROJECT = parse_toml(PYPROJECT.read_text(encoding="utf-8"))["project"]


def test_python_must_be_new_and_should_be_64_bit() -> None:
    assert doctor.check_python((3, 9, 2), 2**63 - 1).status == "fail"
    assert doctor.check_python((3, 11, 2), 2**31 - 1).status == "warn"
    assert doctor.check_python((3, 10, 0), 2**63 - 1).status == "ok"


@pytest.mark.parametrize(
    ("flags", "status", "text"),
    [
        ("0\n", "ok", "no throttling since boot"),
        ("50000\n", "warn", "since boot: under-voltage, throttled"),
        ("50005\n", "fail", "now: under-voltage, throttled"),
        ("80008\n", "fail", "now: soft temperature limit"),
    ],
)
def test_the_firmwares_word_on_power(tmp_path: Path, flags: str, status: str, text: str) -> None:
    assert list(doctor.check_power(tmp_path)) == []
    firmware = tmp_path / "devices/platform/soc/soc:firmware"
    firmware.mkdir(parents=True)
    (firmware / "get_throttled").write_text(flags)
    (check,) = doctor.check_power(tmp_path)
    assert (check.status, check.text) == (status, text)


def test_swap_on_a_disk_is_warned_of_and_zram_is_not() -> None:
    head = "Filename\tType\tSize\tUsed\tPriority\n"
    card = "/dev/mmcblk0p3 partition 204796 51200 -2\n"
    zram = "/dev/zram0 partition 1000000 900000 100\n"
    assert doctor.check_swaps("").status == "ok"
    assert doctor.check_swaps(head + zram).status == "ok"
    assert doctor.check_swaps(head + card.replace("51200", "0")).status == "ok"
    check = doctor.check_swaps(head + card + zram)
    assert check.status == "warn"
    assert check.text == "50 MB used on /dev/mmcblk0p3"


def test_little_memory_is_warned_of() -> None:
    assert doctor.check_memory(100 << 20, 1 << 30, 100 << 20).status == "warn"
    assert doctor.check_memory(800 << 20, 1 << 30, 800 << 20).status == "ok"
    limited = doctor.check_memory(400 << 20, 1 << 30, 800 << 20)
    assert limited.text == "400 MB free of 1 GB, by its cgroup's limit (else 800 MB)"


def test_a_hot_board_is_warned_of(tmp_path: Path) -> None:
    assert list(doctor.check_heat(tmp_path)) == []
    for i, degrees in enumerate(("45123\n", "83200\n")):
        zone = tmp_path / "class" / "thermal" / f"thermal_zone{i}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(degrees)
    (check,) = doctor.check_heat(tmp_path)
    assert (check.status, check.text) == ("warn", "83 °C")


def test_a_shelf_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert doctor.check_disk(tmp_path / "file" / "models").status == "fail"
    assert doctor.check_disk(tmp_path / "new" / "models").status in ("ok", "warn")


def test_an_empty_shelf_names_the_command(tmp_path: Path) -> None:
    check = doctor.check_model(Shelf(tmp_path, {}, FetchSettings()))
    assert (check.status, check.remedy) == ("warn", "picoedge pull")


def imported() -> set[str]:
    """Libraries that some module of picoedge imports, anywhere in it."""
    names: set[str] = set()
    for path in Path(picoedge.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    return names - sys.stdlib_module_names - {"picoedge"}


def declared(requirements: list[str]) -> set[str]:
    """The names in requirements like "pyzmq>=25"."""
    return {re.split(r"[<=>; \[]", each)[0] for each in requirements}


def test_libraries_are_those_that_are_imported_and_declared() -> None:
    optional = {"matplotlib", "zeroconf", "tomli", "tomllib"}  # extras; Python before 3.11, since
    assert doctor.LIBRARIES.keys() - optional == imported() - optional
    packages = declared(PROJECT["dependencies"])
    assert set(doctor.LIBRARIES.values()) - optional == packages - optional


def test_each_library_is_named_as_pip_knows_it() -> None:
    packages = {
        module: {name.lower() for name in names}
        for module, names in packages_distributions().items()
    }
    wrong = {
        module: package
        for module, package in doctor.LIBRARIES.items()
        if package not in packages[module]
    }
    assert wrong == {}


def test_missing_libraries_are_named() -> None:
    check = doctor.check_libraries(["nacl", "numpy", "zmq"])
    assert (check.status, check.text) == ("fail", "missing: nacl, numpy, zmq")
    assert check.remedy == "pip install pynacl numpy pyzmq"


def test_packages_that_messages_name_are_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    known = declared(PROJECT["dependencies"]).union(*map(declared, extras.values()))
    known |= {f"picoedge[{name}]" for name in extras}
    named = {
        name
        for path in Path(picoedge.__file__).parent.rglob("*.py")
        for name in re.findall(r"pip install (?:-U )?'?([\w\[\]-]+)", path.read_text("utf-8"))
    }
    assert {"zeroconf", "picoedge[plot]", "gguf"} <= named <= known


def test_kernels_that_are_not_there_fail() -> None:
    assert doctor.check_kernels("sse9").status == "fail"
    assert doctor.check_kernels("numpy").status == "ok"


@pytest.mark.usefixtures("libraries_anew")
def test_kernels_of_training_of_other_sources_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_abi, "_ABI", training_abi._ABI + 1)
    check = doctor.check_kernels(None)
    assert check.status == "fail"
    assert check.remedy.startswith("build the kernels again")


def test_the_report_has_a_line_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PICOEDGE_HOME", str(tmp_path))
    code = main(["doctor", "--json"])
    checks = json.loads(capsys.readouterr().out)
    assert code == (1 if any(check["status"] == "fail" for check in checks) else 0)
    names = "python libraries numpy kernels compiler cores memory swap disk models"
    assert set(names.split()) <= {check["name"] for check in checks}
    assert main(["doctor"]) == code
    assert len(capsys.readouterr().out.splitlines()) == len(checks)


def test_a_failed_check_is_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PICOEDGE_HOME", str(tmp_path / "file"))
    assert main(["doctor"]) == 1
    assert "fail  disk" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("direct", "limit", "status", "remedy"),
    [
        (90e6, None, "ok", ""),
        (11e6, None, "warn", "A2 card"),
        (90e6, 10e6, "warn", "control group"),
        (9.9e6, 10e6, "warn", "control group"),
        (6e6, 20e6, "warn", "A2 card"),
        (90e6, 50e6, "ok", ""),
    ],
)
def test_the_doctor_on_cards(direct: float, limit: float | None, status: str, remedy: str) -> None:
    check = doctor.check_speed(StorageSpeed(direct, 5e6, limit, 0, "179:2 mmcblk0p2 SC32G"))
    assert check.status == status
    assert remedy in check.remedy
    assert bool(check.remedy) is (status == "warn")
    assert "179:2 mmcblk0p2 SC32G" in check.text


def test_the_doctor_does_not_judge_by_a_few_bytes() -> None:
    speed = StorageSpeed(1e5, 1e5, None, 0, "179:2", enough=False)
    assert doctor.check_speed(speed).status == "ok"


def test_the_doctor_without_a_pack(tmp_path: Path) -> None:
    check = doctor.check_storage(Shelf(tmp_path / "models", {}, FetchSettings()))
    assert (check.status, check.remedy) == ("ok", "")
    assert "once a model is packed" in check.text
    assert not list(tmp_path.iterdir())


def test_the_doctor_reads_the_largest_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "home" / "models"
    for name in ("small", "large"):
        (models / f"{name}.pico").mkdir(parents=True)
        (models / f"{name}.pico" / "a.safetensors").write_bytes(bytes(len(name)))
    (models / "large.pico" / "b.safetensors").write_bytes(bytes(1 << 20))
    asked = []

    def speed(path: Path, **options: Any) -> StorageSpeed:
        asked.append((path, options["cache"]))
        raise StorageError("the card hangs", "pull it")

    monkeypatch.setattr(doctor, "storage_speed", speed)
    check = doctor.check_storage(Shelf(models, {}, FetchSettings()))
    assert asked == [(models / "large.pico", tmp_path / "home")]
    assert (check.status, check.text, check.remedy) == ("warn", "the card hangs", "pull it")

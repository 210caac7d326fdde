"""The wheel that is built from the checkout holds the packages and plugins, and nothing else."""

from __future__ import annotations

import re
import sys
import tomllib
import zipfile
from pathlib import Path

import pages
import pytest


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built by its backend without network."""
    pytest.importorskip("hatchling", reason="building the wheel needs hatchling: pip install hatchling")
    target = tmp_path_factory.mktemp("wheel")
    pages.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)], cwd=pages.ROOT)
    [file] = target.glob("*.whl")
    return zipfile.ZipFile(file)


def _names(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_module_of_the_packages_and_the_plugins_beside_them(wheel: zipfile.ZipFile) -> None:
    expected = {
        path.relative_to(pages.ROOT).as_posix()
        for top in ("iostack", "trainer")
        for path in (pages.ROOT / top).rglob("*.py")
    }
    expected |= {path.name for path in (pages.ROOT / "plugins").glob("*.py")}
    assert {name for name in _names(wheel) if name.endswith(".py")} == expected


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    allowed = re.compile(r"(iostack|trainer)/.*\.(py|pyi|typed)|iostack_\w+\.py|(iostack|trainer)/py\.typed")
    assert [name for name in _names(wheel) if not allowed.fullmatch(name)] == []


def test_the_entry_points_of_the_wheel_are_its_plugins(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    text = wheel.read(name).decode()
    plugins = {f"{Path(module).stem}" for module in _names(wheel) if module.startswith("iostack_")}
    assert set(re.findall(r"^\w+ = (iostack_\w+)$", text, re.MULTILINE)) == plugins
    assert re.search(r"^iostack = iostack\.cli:main$", text, re.MULTILINE)


def test_the_version_of_the_wheel_is_that_of_the_package(wheel: zipfile.ZipFile) -> None:
    version = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'__version__ = "{version}"' in wheel.read("iostack/__init__.py").decode()
    assert f"iostack-{version}-" in Path(str(wheel.filename)).name

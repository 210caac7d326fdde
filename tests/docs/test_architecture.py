"""docs/architecture.md: its numbers are computed, its table names every package, its picture is sound."""

from __future__ import annotations

import doctest
import re
from xml.etree import ElementTree

import numpy as np
import pages

from iostack.plan.indexed import IndexedPlan

PAGE = pages.read_page("architecture.md")


def test_the_worked_example_computes_what_the_page_shows() -> None:
    text = "\n".join(block.text for block in pages.blocks(PAGE, "python"))
    example = doctest.DocTestParser().get_doctest(text, {}, "architecture", "architecture.md", 0)
    assert len(example.examples) > 10
    told: list[str] = []
    assert doctest.DocTestRunner(verbose=False).run(example, out=told.append).failed == 0, "".join(told)


def test_each_epoch_of_the_worked_example_holds_every_sample_once() -> None:
    plan = IndexedPlan(np.array([5, 4, 3]), seed=1, lanes=2, window=3)
    everything = [(shard, row) for shard, count in enumerate([5, 4, 3]) for row in range(count)]
    for epoch in range(3):
        rows = plan.locate(np.arange(12 * epoch, 12 * (epoch + 1)))
        assert sorted(zip(rows.shards.tolist(), rows.rows.tolist(), strict=True)) == everything


def test_every_package_has_a_paragraph() -> None:
    table = pages.section(PAGE, "The packages")
    packages = [path.parent for top in ("iostack", "trainer") for path in (pages.ROOT / top).rglob("__init__.py")]
    for package in packages:
        name = package.relative_to(pages.ROOT).as_posix()
        assert name == "iostack" or f"[{name}](../{name})" in table, name
    for module in (pages.ROOT / "iostack").glob("[!_]*.py"):
        assert module.name == "sizes.py" or f"[iostack/{module.name}]" in table, module.name


def test_what_the_page_names_in_code_exists() -> None:
    sources = "\n".join(
        path.read_text("utf-8") for top in ("iostack", "trainer") for path in (pages.ROOT / top).rglob("*.py")
    )
    for name in re.findall(r"`(\w+(?:\.\w+)?)`", pages.section(PAGE, "Where to start reading")):
        for part in name.split("."):
            assert re.search(rf"(class|def) {part}\b", sources), name


def test_no_text_of_the_picture_lies_outside_of_it_or_of_its_panels() -> None:
    root = ElementTree.parse(pages.DOCS / "data-flow.svg").getroot()
    kind = "{http://www.w3.org/2000/svg}"
    panels = [
        tuple(float(each.attrib[key]) for key in ("x", "y", "width", "height"))
        for each in root.findall(f"{kind}rect")
        if each.attrib["fill"] != "#ffffff"
    ]
    texts = root.findall(f"{kind}text")
    assert len(panels) == 3
    assert len(texts) > 30
    for text in texts:
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        # Text outside of a panel would be dark on dark where the page is.
        assert any(left < x < left + width and top + 10 < y < top + height for left, top, width, height in panels), (
            text.text
        )


def test_the_picture_names_folders_that_exist() -> None:
    root = ElementTree.parse(pages.DOCS / "data-flow.svg").getroot()
    where = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text") if text.get("class") == "where"]
    for name in where:
        folder, _, inner = name.partition("/")
        for part in inner.strip("{}").split(","):
            assert (pages.ROOT / folder / part).is_dir(), name

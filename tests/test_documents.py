"""The links between the documents lead somewhere, and their commands can be read."""

import re
import subprocess
from urllib.parse import unquote

import pytest
from documents import FILES, LEFT_OUT, ROOT, SHELL, blocks, pasted, prose

pytestmark = pytest.mark.one_engine


def links(file):
    """Return the targets of the links of a document that stay in the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(file))
    return [one for one in targets if not re.match(r"https?://", one)]


def anchors(file):
    """Return the anchors of a document, made from its headings as GitHub makes them."""
    made = []
    for heading in re.findall(r"^#+ (.*)$", prose(file), re.MULTILINE):
        text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        made.append(f"{slug}-{made.count(slug)}" if slug in made else slug)
    return made


LINKS = [(file, target) for file in FILES for target in links(file)]


@pytest.mark.parametrize(
    ("file", "target"),
    LINKS,
    ids=[f"{file.name}: {target}" for file, target in LINKS],
)
def test_a_link_leads_to_a_file_and_an_anchor_that_exist(file, target):
    path, _, anchor = unquote(target).partition("#")
    aim = (file.parent / path).resolve() if path else file

    assert aim.is_relative_to(ROOT)
    assert aim.exists()
    if anchor:
        assert anchor in anchors(aim)


def test_every_document_can_be_reached_from_the_front_page():
    reached, to_read = set(), [ROOT / "README.md"]
    while to_read:
        file = to_read.pop()
        if file not in reached:
            reached.add(file)
            paths = [link.partition("#")[0] for link in links(file)]
            named = [(file.parent / path).resolve() for path in paths if path]
            to_read.extend(one for one in named if one.suffix == ".md")

    assert reached == set(FILES)
    assert len(LINKS) >= 40


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_every_block_of_code_is_fenced_and_names_its_language(file):
    text = file.read_text()

    assert len(blocks(file)) * 2 == len(re.findall("^```", text, re.MULTILINE))
    assert all(block.language for block in blocks(file))
    assert not re.search(r"^$\n^    \S", prose(file), re.MULTILINE), "an indented block"


def test_a_block_that_is_not_pasted_is_on_the_list_and_no_other_is():
    commands = [block for found in SHELL.values() for block in found]
    for one in LEFT_OUT:
        assert sum(map(one.is_about, commands)) == one.times, one

    tried = sum(len(pasted(name)) for name in SHELL)
    assert tried + sum(one.times for one in LEFT_OUT) == len(commands)
    assert tried > len(commands) / 2


@pytest.mark.parametrize(
    "block",
    [block for found in SHELL.values() for block in found],
    ids=lambda block: f"{block.document}: {block.text.partition(chr(10))[0][:40]}",
)
def test_a_block_of_commands_is_read_by_the_shell(block):
    read = subprocess.run(
        ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
    )

    assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_every_target_of_make_that_a_document_names_exists(file):
    makefile = (ROOT / "Makefile").read_text()
    written = "".join(block.text for block in blocks(file) if block.language == "sh")
    named = re.findall(r"`make ([a-z-]+)", prose(file))
    named += re.findall(r"^make ([a-z-]+)", written, re.MULTILINE)

    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


# Files of this repository, as a text names them.
PLACES = re.compile(
    r"(?<![\w./-])((?:bench|clients|converters|deploy|docs|tests)/[\w./*-]*[\w*])"
)
NAMING = [*FILES, *sorted((ROOT / "deploy").iterdir())]


@pytest.mark.parametrize("file", NAMING, ids=[file.name for file in NAMING])
def test_every_file_of_the_repository_that_a_text_names_exists(file):
    text = re.sub(r"\]\([^)]*\)", "]", file.read_text())  # links have their own test
    for name in PLACES.findall(re.sub(r"https?://\S+", "", text)):
        assert list(ROOT.glob(name)), name

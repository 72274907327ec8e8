"""The links between the documents lead somewhere."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    file
    for folder in (ROOT, ROOT / "docs", ROOT / "demo", *(ROOT / "clients").iterdir())
    for file in folder.glob("*.md")
)


def prose(file):
    """Return the text of a document without its blocks of code."""
    text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


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


LINKS = [(file, target) for file in DOCUMENTS for target in links(file)]


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

    assert reached == set(DOCUMENTS)
    assert len(LINKS) >= 40

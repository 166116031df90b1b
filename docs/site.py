"""What the site needs beyond mkdocs: README.md as its start page, and the files outside of docs/ that pages link to."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

START = "index.md"
LINK = re.compile(r"\[([^\[\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the start page and every file of the repository that a page links to."""
    root = Path(config.docs_dir).parent
    files.append(File.generated(config, START, content=(root / "README.md").read_text()))
    for page in files.documentation_pages():
        for path in _linked(page.src_uri, page.content_string):
            outside = not path.startswith("docs/") and path != "README.md" and (root / path).is_file()
            if outside and files.get_file_from_path(path) is None:
                source = str(root / path)
                files.append(File.generated(config, path, abs_src_path=source, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links lead where the site has their targets; one to a folder, which a site cannot show, becomes its text."""
    root = Path(config.docs_dir).parent

    def moved(match: re.Match[str]) -> str:
        text, path = match[1], _repository_path(page.file.src_uri, match[2])
        if (root / path).is_dir():
            return text
        target = START if path == "README.md" else path.removeprefix("docs/")
        return f"[{text}]({posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or '.')}{match[3] or ''})"

    return LINK.sub(moved, markdown)


def _linked(page: str, text: str) -> Iterator[str]:
    """The repository's paths that a page links to."""
    return (_repository_path(page, match[2]) for match in LINK.finditer(text))


def _repository_path(page: str, link: str) -> str:
    """Where a relative link of a page leads; those of the start page are README.md's."""
    folder = "" if page == START else posixpath.join("docs", posixpath.dirname(page))
    return posixpath.normpath(posixpath.join(folder, link))

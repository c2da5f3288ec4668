"""What MkDocs is told beside docs/: pages that live elsewhere in the repository, generated ones, and their links.

Markdown links as it must in the repository (`../configs/README.md`), so that it can be read there. Where the target is
a page of the site, the link leads to it; any other file is copied into the site.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

import commands
import settings
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "configs/README.md": "recipes.md",
    "slurm/README.md": "slurm.md",
}
GENERATED = {"reference/settings.md": settings.page, "reference/commands.md": commands.page}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)(#[^)\s]*)?(?=\))")
MARK = re.compile(r'^(```\w+).*? no-run=".*"$', re.MULTILINE)


def outside() -> dict[str, str]:
    """Files of the repository, outside docs/, that are pages: file -> page."""
    reports = {f"benchmarks/reports/{file.name}": f"reports/{file.name}" for file in _reports()}
    return OUTSIDE | reports


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for source, uri in outside().items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text()))
    for uri, write in GENERATED.items():
        if in_repository := files.get_file_from_path(uri):  # says where the page is
            files.remove(in_repository)
        files.append(File.generated(config, uri, content=write()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where their targets are in the site."""
    uri = page.file.src_uri
    here = PurePosixPath(uri).parent
    if uri in GENERATED:
        return markdown
    homes = outside()
    source = next((source for source, its in homes.items() if its == uri), f"docs/{uri}")
    if uri == "benchmarks.md":
        markdown += _list_of_reports()
    markdown = MARK.sub(r"\1", markdown)

    def led(found: re.Match[str]) -> str:
        target = normpath(PurePosixPath(source).parent / found[1])
        for candidate in (target, f"{target}/README.md"):
            if candidate in homes:
                return relpath(homes[candidate], here) + (found[2] or "")
        if target.startswith("docs/"):
            return relpath(target.removeprefix("docs/"), here) + (found[2] or "")
        if not (ROOT / target).is_file():
            return found[0]  # MkDocs says what is wrong with it
        copy = f"files/{target}"
        if not files.get_file_from_path(copy):
            files.append(File.generated(config, copy, content=(ROOT / target).read_bytes()))
        return relpath(copy, here)

    return LINK.sub(led, markdown)


def _reports() -> list[Path]:
    return sorted((ROOT / "benchmarks/reports").glob("*.md"), reverse=True)


def _list_of_reports() -> str:
    titles = [(file.name, file.read_text().splitlines()[0].lstrip("# ")) for file in _reports()]
    return "\n## Reports\n\n" + "\n".join(f"- {name[:10]} [{title}](reports/{name})" for name, title in titles) + "\n"

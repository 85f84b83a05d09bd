"""Check every link of the built site: `python docs/check_links.py [docs/_build]`.

Files and anchors of the site must exist. Links to other sites are counted and not followed; `sphinx-build -b linkcheck
docs docs/_build/linkcheck` does that, with a network. The exit status is 1 when a link is broken.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what is an anchor, a link, a picture, a script."""
        for name, value in attrs:
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.links.append(value)


def broken_links(folder: Path) -> tuple[int, int, list[str]]:
    """Numbers of links checked and of links to other sites, and one sentence for each that is broken."""
    pages = {path.resolve(): Page(path) for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts}
    found = [(path, link) for path, page in pages.items() for link in page.links]
    inside = [(path, link) for path, link in found if not urlsplit(link).scheme and not link.startswith("//")]
    outside = {link for _, link in found if urlsplit(link).scheme in ("http", "https")}
    return len(inside), len(outside), list(_complaints(pages, inside))


def _complaints(pages: dict[Path, Page], links: list[tuple[Path, str]]) -> Iterator[str]:
    for path, link in links:
        parts = urlsplit(link)
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.exists():
            yield f"{path.name}: {link}: no such file"
        elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
            yield f"{path.name}: {link}: no such anchor"


def main() -> int:
    """Print figures and what is broken."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build"
    if not (folder / "index.html").exists():
        print(f"check_links: {folder} has no index.html; build the site first", file=sys.stderr)
        return 2
    checked, outside, broken = broken_links(folder)
    print("\n".join(broken), end="\n" if broken else "")
    print(f"{checked} links checked, {len(broken)} broken; {outside} addresses of other sites not followed")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())

"""Follows every link of built pages to a file, and to an id in it: `check_links.py DIR`.

Sphinx checks the links that the text has, this what became of them. Links to other sites are left
out: the check needs no network.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids, self.links = {""}, set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.add(value or "")
            elif name in ("href", "src"):
                self.links.add(value or "")


def broken(folder: Path) -> list[str]:
    pages = {path: Page(path) for path in sorted(folder.resolve().rglob("*.html"))}
    found = []
    for page in pages.values():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            where = f"{page.path.relative_to(folder.resolve())}: {link!r}"
            if not target.is_file():
                found.append(f"{where}: no such file")
            elif target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{where}: no such id in the page")
    if not pages:
        found.append(f"{folder}: no pages")
    return found


if __name__ == "__main__":
    problems = broken(Path(sys.argv[1]))
    print("\n".join(problems) or "all links lead somewhere")
    sys.exit(bool(problems))

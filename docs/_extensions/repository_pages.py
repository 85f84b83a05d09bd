"""Files that read well on a code host become pages of the site: Markdown and notebooks outside of docs/, and links."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# Pages that are files elsewhere in the repository: on a code host each is a link to that file, in the site its text.
ELSEWHERE = {
    "CHANGELOG.md": "project/changelog",
    "CONTRIBUTING.md": "project/contributing",
    "SECURITY.md": "project/security",
    "bench/README.md": "project/benchmarks",
    "examples/notebooks/torch_to_server.ipynb": "how-to/notebook",
    "kernels/README.md": "project/kernels",
    "kernels/LADDER.md": "project/ladder",
}
_PLACES = {
    **ELSEWHERE,
    "README.md": "index",
    "docs": "index",
    "examples": "gallery/index",
    "examples/gallery": "gallery/index",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def site_links(text: str, origin: Path, docname: str) -> str:
    """Links of a Markdown file that lies at `origin`, as links of the page `docname`; plain text where it has none."""

    def replaced(match: re.Match[str]) -> str:
        image, label, target, anchor = match.groups()
        path = (origin.parent / target).resolve()
        place = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        if place in _PLACES:
            found = _PLACES[place] + (".rst" if _PLACES[place].startswith("gallery/") else ".md")
        elif place.startswith("examples/gallery/") and place.endswith(".py"):
            found = f"gallery/{place.removeprefix('examples/gallery/').removesuffix('.py')}.rst"
        elif place.startswith("docs/"):
            found = place.removeprefix("docs/")
        else:
            return f"{label}"
        return f"{image}[{label}](/{found}{anchor or ''})"

    return _LINK.sub(replaced, text)


def notebook_markdown(path: Path) -> str:
    """A notebook as Markdown, with the outputs that are kept in it."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                image = data["image/png"].strip()
                parts.append(f'<img alt="Chart of the cell above" src="data:image/png;base64,{image}">')
            else:
                parts.append("```text\n" + "".join(output.get("text") or data["text/plain"]).strip("\n") + "\n```")
    parts.append(f"{{download}}`{path.name} </../{path.relative_to(ROOT).as_posix()}>`")
    return "\n\n".join(parts) + "\n"


def read_page(app: Any, docname: str, source: list[str]) -> None:
    """Give Sphinx the text of a Markdown page."""
    origin = Path(app.env.doc2path(docname))
    if origin.suffix == ".md":
        elsewhere = {page: ROOT / file for file, page in ELSEWHERE.items()}
        if docname in elsewhere:
            origin = elsewhere[docname]
            app.env.note_dependency(str(origin))
            source[0] = notebook_markdown(origin) if origin.suffix == ".ipynb" else origin.read_text("utf-8")
        source[0] = site_links(source[0], origin, docname)


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("source-read", read_page)
    return {"parallel_read_safe": True}

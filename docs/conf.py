"""How `make docs` turns these pages into a site, and lists them in `llms.txt` for programs that read."""

from importlib import metadata
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

project = "posttrain"
release = metadata.version("posttrain")
extensions = ["myst_parser"]
exclude_patterns = ["examples"]
html_theme = "furo"
html_title = project
html_show_copyright = False
html_copy_source = False
myst_heading_anchors = 4


def setup(app: Sphinx) -> None:
    """List the pages once they are written."""
    app.connect("build-finished", list_pages)


def list_pages(app: Sphinx, error: Exception | None) -> None:
    """Write `llms.txt` at the root of the site: a line a page, with its title and what it begins with."""
    if error is not None or app.builder.name != "html":
        return
    lines = [f"# {project}", "", "## Pages", ""]
    for name in sorted(app.env.found_docs - {"index"}):
        page = app.env.get_doctree(name)
        title = next(iter(page.findall(nodes.title))).astext()
        begins = " ".join(next(iter(page.findall(nodes.paragraph))).astext().split())
        lines.append(f"- [{title}]({name}.html): {begins}")
    (Path(app.outdir) / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

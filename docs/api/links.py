"""Links to files outside docs/, which the web pages do not have, become plain paths."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    docs = Path(config["docs_dir"]).resolve()
    folder = docs / PurePosixPath(page.file.src_uri).parent

    def replace(link: re.Match[str]) -> str:
        target = (folder / link[3]).resolve()
        if target.is_relative_to(docs) or not target.exists():
            return link[0]  # mkdocs checks these
        path = target.relative_to(docs.parent).as_posix()
        text = " ".join(link[2].split())
        return f"`{path}`" if PurePosixPath(text).name == target.name else f"{text} (`{path}`)"

    return _LINK.sub(replace, markdown)

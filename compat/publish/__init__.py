"""From stored runs to a folder of static pages and data: `compat publish RUNS... --out site/`.

In: stored runs. Out: a site that needs no server and no network, the same bytes for the same runs. Everything here is
pure but `tree.py` (writes the folder), `entries.py` (reads runs) and the front end `command.py`.
"""

from __future__ import annotations

SCHEMA = "compat-site/1"
"""Version of the site's data; `schema.json` of every site says what it holds."""


class PublishError(Exception):
    """Runs or a folder that cannot be used; the message names the file and what would be right."""

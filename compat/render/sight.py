"""What a report says of what its checks can see: the figure of the last self-test, in one line."""

from __future__ import annotations

from compat.render.figures import plural
from compat.render.inert import label, one_line


def in_one_line(figure: object) -> str:
    """What a report on a run says of the last self-test; `figure` is the run's setting `selftest`, if it has one."""
    if not isinstance(figure, dict) or not figure.get("faults"):
        return "none was run on this stack, device and depth: `compat selftest` says what these checks can see"
    killed, faults = int(figure.get("killed", 0)), int(figure["faults"])
    rate = f"{killed} of {plural(faults, 'fault')} killed ({100 * killed / faults:.0f}%)"
    benign = f"{plural(int(figure.get('benign_flagged', 0)), 'benign change')} flagged"
    when = one_line(str(figure.get("when", "")), 40).replace("T", " ").rstrip("Z")
    return f"{rate}, {benign}, at depth {label(str(figure.get('depth', '')), 20)}, {when} UTC"

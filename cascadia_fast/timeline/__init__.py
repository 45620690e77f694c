"""A picture of a simulated run: one HTML page that needs no network."""

from cascadia_fast.timeline.drawing import timeline_html as timeline_html
from cascadia_fast.timeline.drawing import write_timeline as write_timeline

__all__ = ["timeline_html", "write_timeline"]

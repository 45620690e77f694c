"""A comparison of serving systems as one HTML page that loads nothing and shows everything without JavaScript.

It is drawn from the results that a comparison writes as JSON and from nothing else; equal results give equal bytes.
"""

from cascadia_fast.report.page import report_html as report_html

__all__ = ["report_html"]

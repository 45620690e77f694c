"""Fronts: the records, as text, as JSON and CSV, and as a picture."""

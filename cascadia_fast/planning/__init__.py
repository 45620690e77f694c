"""How plans are found: tasks, cascades, searches, proofs, and what is said where there is none.

`cascadia_fast.planner` is the way in.
"""

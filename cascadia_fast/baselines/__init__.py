"""Other ways to serve the same models: the systems that a plan is compared with, each as a planner of its own.

`systems` names them all. What they share: `case` (what they plan), `loads` (from requests per model to deployments) and
`drawing` (from a deployment to a `Plan`).
"""

"""Serving systems compared on the same requests, GPUs and step times: cells, how they run, and what they say."""

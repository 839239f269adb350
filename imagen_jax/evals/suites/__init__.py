"""Prompt suites: files of prompts, samples in the layout that each suite's own scorer reads, scores taken in."""

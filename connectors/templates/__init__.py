"""Prompt templates, sandboxed and bounded."""

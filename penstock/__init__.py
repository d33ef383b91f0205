"""Penstock: an async message-queue batch engine for language-model work, on Ray."""

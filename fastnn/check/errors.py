"""What stops a check before it begins."""

from __future__ import annotations


class CheckError(Exception):
    """The check cannot run as asked; the text is for the user."""

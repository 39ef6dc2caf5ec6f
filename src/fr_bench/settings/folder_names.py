"""Names of folders that are made of settings."""

from __future__ import annotations

import hashlib
import os
import re

LONGEST = 120  # letters
MOST_BYTES = 240  # file systems allow 255 in a name


def folder_name(words: str) -> str:
    """``words`` as they are if a folder can be called so. Else cut off, without what a name may not have, and with a
    hash, so that no two have one name."""
    safe = re.sub(r"[^\w.,=+\[\]-]", "_", words)
    if len(os.fsencode(safe[:LONGEST])) > MOST_BYTES:  # letters of several bytes
        safe = re.sub(r"[^\x00-\x7f]", "_", safe)
    if safe == words and len(words) <= LONGEST:
        return words
    return f"{safe[:LONGEST]}-{hashlib.sha256(os.fsencode(words)).hexdigest()[:8]}"

"""``python -m libctrd.cli``: the same as ``ctrd``."""

from __future__ import annotations

from libctrd.cli import main

if __name__ == "__main__":
    main()

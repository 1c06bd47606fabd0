"""`python -m batchq` is `batchq`."""

from __future__ import annotations

from batchq.cli import main

if __name__ == "__main__":
    main()

"""Exit 0 if the address answers 200 within three seconds: the health check of every container of ours."""

from __future__ import annotations

import sys
import urllib.request

TIMEOUT_S = 3.0


def main() -> int:
    """Ask the address in the first argument; an image without curl has Python."""
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=TIMEOUT_S) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())

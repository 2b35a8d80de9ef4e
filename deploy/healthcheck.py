"""Exit 0 if the address answers 200 within three seconds: the health check of every container of ours.

Readiness is behind the query service's token, so the question carries MINDSTREAM_API_TOKEN where that is set.
"""

from __future__ import annotations

import os
import sys
import urllib.request

TIMEOUT_S = 3.0


def main() -> int:
    """Ask the address in the first argument; an image without curl has Python."""
    token = os.environ.get("MINDSTREAM_API_TOKEN")
    question = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(question, timeout=TIMEOUT_S) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())

#!/bin/sh
# Install the browser and the Prometheus tools that some tests drive, where apt-get and root allow it.
# Without them those tests skip and say so.
missing=""
command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
command -v chromedriver >/dev/null 2>&1 || missing="$missing chromium-driver"
command -v promtool >/dev/null 2>&1 || missing="$missing prometheus"
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
  echo "Not installed:$missing; the tests that need them will skip." >&2
  exit 0
fi
echo "Installing$missing for the browser and dashboard tests ..."
export DEBIAN_FRONTEND=noninteractive
# A package must not start its service: the tests start their own Prometheus on their own port.
policy=/usr/sbin/policy-rc.d
[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod +x "$policy" && made_policy=1; }
apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing > /dev/null ||
  echo "apt-get failed; the tests that need$missing will skip." >&2
[ -n "$made_policy" ] && rm -f "$policy"
exit 0

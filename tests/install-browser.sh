#!/bin/sh
# The report is tested in a real browser. Installs Debian's Chromium where that is possible and it is missing;
# elsewhere the browser tests skip and say so.
if command -v chromium >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    (apt-get update && apt-get install --yes --no-install-recommends chromium fonts-noto-core) >/dev/null 2>&1 && exit 0
fi
echo "no chromium here and it cannot be installed: the browser tests will be skipped"

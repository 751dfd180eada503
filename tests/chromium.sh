#!/bin/sh
# Chromium for the browser test: the one present, else the system's package, else Playwright's own.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" > /dev/null && exit 0
done
if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && apt-get install -y -qq chromium > /dev/null && exit 0
elif command -v apt-get > /dev/null && sudo -n true 2> /dev/null; then
    sudo apt-get update -qq && sudo apt-get install -y -qq chromium > /dev/null && exit 0
elif command -v dnf > /dev/null && sudo -n dnf install -y -q chromium; then
    exit 0
fi
.venv/bin/python -m playwright install chromium

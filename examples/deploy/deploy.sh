#!/bin/sh
# Bring the code in ./shop into service as a new release. If it does not boot, the old one goes on, and the exit
# status is 1.
set -eu
cd "$(dirname "$0")"

release="releases/$(date +%Y%m%d-%H%M%S)-$$"
mkdir -p releases
cp -R shop "$release" # in real life: git clone, python3 -m venv, pip install

before=$(readlink current || true)
ln -sfn "$release" current
if [ -z "$before" ]; then
    echo "start it: cd current && gunicorn"
    exit 0
fi

code=0
gunicorn-companion upgrade --wait --timeout 60 || code=$?
if [ "$code" = 1 ]; then
    # The old release goes on, and what starts from now on is the old one, too.
    ln -sfn "$before" current
    rm -r "$release"
fi
exit "$code"

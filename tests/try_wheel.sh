#!/usr/bin/env bash
# Builds the wheel and tries it far from the checkout: `make package`. PY is the development environment's Python,
# absolute or from the checkout.
# The trial's environment holds the wheel alone; dermrw's requirements come from the development environment, which
# constraints.txt pins, so that nothing is downloaded twice.
set -euo pipefail
cd "$(dirname "$0")/.."
case $PY in /*) ;; *) PY=$PWD/$PY ;; esac
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

# from a copy: a build folder in the checkout would put what was deleted since into the wheel
git ls-files -co --exclude-standard -z | tar --null -T - -cf - | tar -xf - -C "$place" --one-top-level=source
"$PY" -m pip wheel --quiet --no-deps --no-build-isolation -w "$place" "$place/source"
wheel=$(ls "$place"/dermrw-*.whl)
names=$("$PY" -m zipfile -l "$wheel" | awk 'NR > 1 {split($1, part, "/"); print part[1]}' | sort -u | grep -v '\.dist-info$')
[ "$names" = dermrw ] || { echo "the wheel claims other names than dermrw: $names" >&2; exit 1; }

"$PY" -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$wheel"
site=$("$place/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/requirements-of-development.pth"

cd "$place"
unset HAM10000_DIR
dermrw=$place/venv/bin/dermrw
"$dermrw" --version
"$place/venv/bin/python" -c 'import dermrw; assert dermrw.__file__.startswith("'"$place"'/venv"), dermrw.__file__'
# the configs are inside, and found by their names
"$dermrw" train ham train.epochs=1 train.batch_size=64 train.precision=fp32 train.channels_last=false
"$dermrw" eval
if "$dermrw" train absent 2> "$place/said"; then exit 1; fi
grep -q 'no config file absent' "$place/said"
if "$dermrw" predict absent.onnx . --csv out.csv 2> "$place/said"; then exit 1; fi
grep -q 'no model absent.onnx' "$place/said"
echo "The wheel works: $(basename "$wheel")"

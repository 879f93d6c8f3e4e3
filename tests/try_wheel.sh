#!/usr/bin/env bash
# Builds the wheel and tries it far from the checkout: `make package`. PY is the development environment's Python,
# absolute or from the checkout.
# Each trial's environment holds the wheel and the packages that it requires, and no other. They are links into the
# development environment, which constraints.txt pins, so that nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
case $PY in /*) ;; *) PY=$PWD/$PY ;; esac
place=$(mktemp -d)
trap 'kill $server 2>/dev/null || true; rm -rf "$place"' EXIT
server=

# from a copy: a build folder in the checkout would put what was deleted since into the wheel
git ls-files -co --exclude-standard -z | tar --null -T - -cf - | tar -xf - -C "$place" --one-top-level=source
"$PY" -m pip wheel --quiet --no-deps --no-build-isolation -w "$place" "$place/source"
wheel=$(ls "$place"/dermrw-*.whl)
names=$("$PY" -m zipfile -l "$wheel" | awk 'NR > 1 {split($1, part, "/"); print part[1]}' | sort -u | grep -v '\.dist-info$')
[ "$names" = dermrw ] || { echo "the wheel claims other names than dermrw: $names" >&2; exit 1; }

environment() {  # FOLDER EXTRAS
  "$PY" -m venv --without-pip "$place/$1"
  site=$("$place/$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$PY" -m pip --python "$place/$1/bin/python" install --quiet --disable-pip-version-check --no-deps "$wheel"
  "$PY" "$place/source/tests/tools/link_requirements.py" "$wheel" "$2" "$site"
  "$place/$1/bin/python" -c 'import dermrw; assert dermrw.__file__.startswith("'"$place/$1"'"), dermrw.__file__'
}
refuses() {  # SENTENCE COMMAND...
  sentence=$1; shift
  if "$@" 2> "$place/said"; then echo "it did not fail: $*" >&2; exit 1; fi
  grep -qF -- "$sentence" "$place/said" || { cat "$place/said" >&2; exit 1; }
  [ "$(wc -l < "$place/said")" = 1 ] || { cat "$place/said" >&2; exit 1; }
}
absent() {  # PYTHON PACKAGE...
  python=$1; shift
  for package in "$@"; do
    if "$python" -c "import $package" 2>/dev/null; then echo "$package is there" >&2; exit 1; fi
  done
}

mkdir "$place/work" && cd "$place/work"
unset HAM10000_DIR PYTHONPATH
cp "$place/source/docs/sample.jpg" one.jpg
"$PY" -c 'from PIL import Image; Image.open("one.jpg").resize((300, 240)).save("two.png")'

environment base ""
dermrw=$place/base/bin/dermrw
absent "$place/base/bin/python" torch pandas matplotlib scipy gradio onnx
"$dermrw" --version
"$dermrw" predict one.jpg two.png --csv out.csv
[ "$(wc -l < out.csv)" = 3 ]
# the README's example of a model
awk '/^```python/ {inside = 1; text = ""; next} /^```/ {if (inside && text ~ /Classifier\(/) printf "%s", text; inside = 0; next} inside {text = text $0 "\n"}' \
  "$place/source/README.md" > example.py
grep -q 'Classifier(' example.py
"$place/base/bin/python" -c 'exec(open("example.py").read()); print(probabilities.shape, verdict.refused)'
refuses "run \`pip install 'dermrw[train]'\`" "$dermrw" train ham
refuses "run \`pip install 'dermrw[train]'\`" "$dermrw" export
refuses "run \`pip install 'dermrw[demo]'\`" "$dermrw" demo
refuses "run \`pip install 'dermrw[score]'\`" "$dermrw" compare one two
refuses "run \`pip install 'dermrw[score]'\`" "$dermrw" score one.csv
refuses 'no model absent.onnx' "$dermrw" predict absent.onnx . --csv out.csv

environment demo demo
absent "$place/demo/bin/python" torch onnx
"$place/demo/bin/dermrw" demo --port 17861 > log 2>&1 &
server=$!
for _ in $(seq 120); do curl -fs --noproxy '*' http://127.0.0.1:17861/health && break; sleep 1; done
answers() {  # TEXT CURL-ARGUMENTS...  (through a file: `grep -q` closes a pipe early, and curl then fails)
  text=$1; shift
  curl -fsS --noproxy '*' -o answer "$@" && grep -qi -- "$text" answer || { cat log >&2; echo "no $text from $*" >&2; exit 1; }
}
answers '"probabilities"' -F image=@one.jpg http://127.0.0.1:17861/classify
printf 'image,label\none.jpg,mel\ntwo.png,nv\n' > mine.csv
"$place/demo/bin/dermrw" score mine.csv
[ -s score/mine/report.html ]
answers '<html' http://127.0.0.1:17861/
kill -TERM $server && wait $server
server=
refuses "run \`pip install 'dermrw[train]'\`" "$place/demo/bin/dermrw" train ham

environment train train
dermrw=$place/train/bin/dermrw
absent "$place/train/bin/python" gradio
# the configs are inside, and found by their names
"$dermrw" train ham train.epochs=1 train.batch_size=64 train.precision=fp32 train.channels_last=false --run runs/one
"$dermrw" eval
"$dermrw" export
"$dermrw" predict runs/one one.jpg --csv out.csv
"$dermrw" compare runs/one runs/one
refuses 'no config file absent' "$dermrw" train absent
echo "The wheel works: $(basename "$wheel")"

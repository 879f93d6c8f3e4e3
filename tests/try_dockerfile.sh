#!/usr/bin/env bash
# Does what the Dockerfile's steps do, without Docker: its RUN lines as they stand, its files in a folder of their own, its
# command as a user without a name or a home who may write to /tmp alone. Needs root, to become that user.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'kill $server 2>/dev/null || true; rm -rf "$work"' EXIT
server=
mkdir -p "$work/build" "$work/dermrw" "$work/tmp"
cp constraints.txt app/requirements.txt "$work/build/"
(
  cd "$work/build"
  sed -n 's/^RUN //p' "$OLDPWD/Dockerfile" | sed "s#/venv#$work/venv#g; s#--no-cache-dir##" > steps.sh
  bash -euxo pipefail steps.sh
)
git ls-files -z dermrw app | xargs -0 cp --parents -t "$work/dermrw"
chmod -R go+rX "$work" && chmod 1777 "$work/tmp"
read -ra command <<<"$(sed -n 's/^ENTRYPOINT \[\(.*\)\]/\1/p' Dockerfile | tr -d '",')"
cd "$work/dermrw"
env -i PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME="$work/tmp" TMPDIR="$work/tmp" PATH="$PATH" \
  setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all \
  "${command[0]/\/venv/$work/venv}" "${command[@]:1:${#command[@]}-2}" 17860 > "$work/log" 2>&1 &
server=$!
for _ in $(seq 120); do curl -fs --noproxy '*' http://127.0.0.1:17860/health && break; sleep 1; done
curl -fs --noproxy '*' -F image=@"$OLDPWD/docs/sample.jpg" http://127.0.0.1:17860/classify
kill -TERM $server && wait $server
cat "$work/log"
echo "Left behind: $(find "$work/tmp" -type f | wc -l) files"
[ "$(find "$work/tmp" -type f | wc -l)" = 0 ] || { find "$work/tmp" -type f | head; exit 1; }
du -sh "$work/venv"

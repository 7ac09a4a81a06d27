#!/usr/bin/env bash
# Start the API over $DATA, post a photo of the test split to it with curl, measure its answers over HTTP, stop it.
set -euo pipefail
url=http://127.0.0.1:$PORT
log=$DATA/api.log

if (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; then
  echo "error: something listens on port $PORT already: give another one with PORT=" >&2
  exit 1
fi
"$PYTHON" api.py --data "$DATA" --port "$PORT" >"$log" 2>&1 &
api=$!
trap 'kill $api 2>/dev/null; wait $api 2>/dev/null || true' EXIT
for _ in $(seq 300); do
  curl --silent --fail "$url/healthcheck" >/dev/null && break
  kill -0 $api 2>/dev/null || break
  sleep 0.2
done
curl --silent --show-error --fail "$url/healthcheck" >/dev/null || { tail -n 5 "$log" >&2; exit 1; }

photo=$("$PYTHON" demo/answer_quality.py --data "$DATA" --example)
echo
echo "\$ curl -F image=@$photo -F k=5 $url/predict/similar_images"
curl --silent --show-error --fail -F "image=@$photo" -F k=5 "$url/predict/similar_images" |
  "$PYTHON" demo/answer_quality.py --show
echo
"$PYTHON" demo/answer_quality.py --data "$DATA" --url "$url"

#!/usr/bin/env bash
# Try what an operator uses with the tools that he uses: DVC, promtool, systemd, nginx, and a container built with buildah.
# Run with: make check-deploy. Everything is in a scratch folder; only Debian packages that are missing stay on the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${BOUNDED:-}" ]; then
  BOUNDED=1 exec timeout --kill-after=120 "${LIMIT_S:-1500}" "$0"
fi

PYTHON=$(realpath --no-symlinks "${PYTHON:-.venv/bin/python}")
ROOT=$PWD
SUITE=bookworm
scratch=$(mktemp -d)
buildah=(buildah --root "$scratch/store" --runroot "$scratch/runroot")
started=()
stop() {
  for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
  wait
  umount --quiet --recursive "$scratch/base" || true
  umount --quiet --recursive "$scratch/store/overlay" || true
  rm -rf --one-file-system "$scratch"
}
trap stop EXIT
trap 'echo "error: deploy/check.sh line $LINENO: $BASH_COMMAND" >&2' ERR

begin() { echo "== $1 (${SECONDS} s)" >&2; }

fail() {
  echo "error: $1" >&2
  exit 1
}

answers() { # URL LOG: wait until the service that was started last answers
  for _ in $(seq 600); do
    curl --silent --fail --insecure --output /dev/null "$1" && return
    kill -0 "${started[-1]}" 2>/dev/null || break
    sleep 0.2
  done
  tail -n 20 "$2" >&2
  fail "nothing answers on $1"
}

begin "Debian packages"
missing=()
for package in buildah:buildah debootstrap:debootstrap systemd:systemd-analyze curl:curl openssl:openssl; do
  command -v "${package#*:}" >/dev/null || missing+=("${package%:*}")
done
apt-get update -qq
[ ${#missing[@]} = 0 ] || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
# Unpacked only: installed, they would start services.
mkdir "$scratch/debs"
(cd "$scratch/debs" && apt-get download -qq prometheus nginx nginx-common 2>/dev/null)
for package in "$scratch"/debs/*.deb; do dpkg-deb --extract "$package" "$scratch/tools"; done

begin "alerts"
"$scratch/tools/usr/bin/promtool" check config deploy/prometheus.yml
"$scratch/tools/usr/bin/promtool" test rules tests/deploy/alerts_test.yml

begin "systemd unit"
mkdir "$scratch/unit"
sed 's|^ExecStart=/opt/marketplace/.venv/bin/python|ExecStart='"$(command -v python3)"'|' deploy/marketplace.service >"$scratch/unit/marketplace.service"
systemd-analyze verify --man=no "$scratch/unit/marketplace.service"
systemd-analyze security --offline=true --threshold=20 --no-pager "$scratch/unit/marketplace.service" | tail -n 1

begin "DVC"
python3 -m venv "$scratch/dvc"
"$scratch/dvc/bin/python" -m pip install --quiet --no-warn-script-location dvc 2>&1 | grep -v 'is ignored' || true
mkdir "$scratch/checkout"
git ls-files -z | tar --create --null --files-from - | tar --extract --directory "$scratch/checkout"
cd "$scratch/checkout"
export DVC_NO_ANALYTICS=1 DVC_SITE_CACHE_DIR="$scratch/dvc-site" DVC_GLOBAL_CONFIG_DIR="$scratch/dvc-global"
export PATH="$(dirname "$PYTHON"):$scratch/dvc/bin:$PATH"
dvc init --quiet --no-scm
sed -i 's|train: ""|train: "--backbone efficientnet_lite0 --image-size 64 --epochs 3 --text-encoder none --workers 0"|' dvc.yaml
python -m demo.sample --out data/raw --listings 60
dvc repro >"$scratch/repro.log" 2>&1 || { tail -n 20 "$scratch/repro.log" >&2; fail "dvc repro"; }
listing=$(python -c 'import csv; print(next(csv.DictReader(open("data/tabular/products.csv", encoding="utf-8")))["product_id"])')
python hide.py "$listing"
before=$SECONDS
dvc repro >"$scratch/again.log" 2>&1
grep -q 'Data and pipelines are up to date' "$scratch/again.log" || fail "dvc repro ran a stage again that had nothing to do"
echo "the second dvc repro took $((SECONDS - before)) s"
find data -name manifest.json -o -name hidden.json -o -name current.json | sort | xargs sha256sum >"$scratch/state"
rm -r data/model
dvc checkout >"$scratch/again.log" 2>&1
dvc repro >>"$scratch/again.log" 2>&1
! grep -q 'Running stage' "$scratch/again.log" || fail "a stage ran again though dvc checkout had brought data/model back"
sha256sum --quiet --check "$scratch/state" || fail "dvc checkout brought back other files than were deleted"
rm -r data/tabular
dvc repro >"$scratch/again.log" 2>&1
grep -q "Running stage 'tabular'" "$scratch/again.log" && [ -s data/tabular/products.csv ] || fail "dvc repro did not run a deleted stage"
python hide.py --list | grep -q "$listing" || fail "DVC showed a hidden listing again"
python hide.py --unhide "$listing"
cd "$ROOT"
data=$scratch/checkout/data
photo=$(find "$data/images" -name '*.jpg' | sort | sed -n 1p)

begin "nginx in front of the API, under the unit's system calls"
port() { "$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
api_port=$(port) plain_port=$(port) tls_port=$(port)
direct=http://127.0.0.1:$api_port proxied=https://127.0.0.1:$tls_port
words=$(sed -n 's|^ExecStart=[^ ]* ||p' deploy/marketplace.service)
python3 deploy/check_sandbox.py deploy/marketplace.service "$PYTHON" $words --data "$data" --port "$api_port" 2>"$scratch/api.log" >/dev/null &
api=$!
started+=("$api")
answers "$direct/readyz" "$scratch/api.log"
openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=marketplace.example -days 2 -keyout "$scratch/privkey.pem" -out "$scratch/fullchain.pem" 2>/dev/null
sed -e "s|127.0.0.1:8080|127.0.0.1:$api_port|; s|listen 80;|listen 127.0.0.1:$plain_port;|; s|listen 443 |listen 127.0.0.1:$tls_port |" \
  -e "/listen \[::\]/d; s|/etc/marketplace/tls|$scratch|; s|/run/marketplace|$scratch/marketplace|; s|/var/log/nginx|$scratch|" deploy/nginx.conf >"$scratch/site.conf"
cat >"$scratch/nginx.conf" <<EOF
user root;
pid $scratch/nginx.pid;
events {}
http {
    include $scratch/tools/etc/nginx/mime.types;
    client_body_temp_path $scratch/body; proxy_temp_path $scratch/proxy; fastcgi_temp_path $scratch/fastcgi; uwsgi_temp_path $scratch/uwsgi; scgi_temp_path $scratch/scgi;
    include $scratch/site.conf;
}
EOF
nginx=("$scratch/tools/usr/sbin/nginx" -c "$scratch/nginx.conf" -e "$scratch/nginx.log" -g "daemon off;")
"${nginx[@]}" -t
"${nginx[@]}" &
started+=("$!")
answers "$proxied/readyz" "$scratch/nginx.log"
"$PYTHON" deploy/check_proxy.py "$direct" "$proxied" "http://127.0.0.1:$plain_port" "$photo" "$scratch/api.log"
kill "$api"
wait "$api" || true
status=$(curl --silent --insecure --output "$scratch/busy.json" --write-out '%{http_code} %header{retry-after}' "$proxied/search?q=x")
[ "$status" = "503 1" ] && "$PYTHON" -m json.tool "$scratch/busy.json" >/dev/null || fail "without the API, nginx answers $status"

begin "container"
mkdir "$scratch/base"
# In memory: dpkg waits for the disk after every file.
mount -t tmpfs tmpfs "$scratch/base"
mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | awk -v suite=$SUITE '$2 == suite && $3 == "main" {print $1; exit}')
debootstrap --variant=minbase --include=python3,python3-venv $SUITE "$scratch/base" "$mirror" >"$scratch/debootstrap.log" 2>&1 ||
  { tail -n 5 "$scratch/debootstrap.log" >&2; fail "debootstrap"; }
umount --quiet "$scratch/base/proc" "$scratch/base/sys" || true
tar --create --one-file-system --directory "$scratch/base" --file "$scratch/base.tar" .
umount --recursive "$scratch/base"
container=$("${buildah[@]}" from scratch)
"${buildah[@]}" add --quiet "$container" "$scratch/base.tar" / >/dev/null
"${buildah[@]}" commit --quiet --rm "$container" localhost/base >/dev/null
begin "image"
# What pip is set up with here is not known in there: it installs the files that pip finds here.
"$PYTHON" -m pip download --quiet --dest "$scratch/wheels" -r requirements-serve.txt -c constraints.txt 2>&1 | grep -v 'is ignored' || true
printf '[global]\nno-index = true\nfind-links = /wheels\n' >"$scratch/pip.conf"
"${buildah[@]}" build --quiet --isolation chroot --build-arg BASE=localhost/base --volume "$scratch/wheels:/wheels:ro" \
  --volume "$scratch/pip.conf:/etc/pip.conf:ro" --file deploy/Containerfile --tag localhost/marketplace . >"$scratch/build.log" 2>&1 ||
  { tail -n 20 "$scratch/build.log" >&2; fail "buildah build"; }
begin "the API in it"
container=$("${buildah[@]}" from localhost/marketplace)
inside=("${buildah[@]}" run --isolation chroot --volume "$data:/data:ro" "$container" --)
[ "$("${inside[@]}" id -u)" = 10001 ] || fail "the container runs as another user than 10001"
[ -z "$("${inside[@]}" sh -c 'pip list 2>/dev/null | grep -i -w torch; find /opt/marketplace -name "*.csv" -size +100k')" ] || fail "the image holds torch or data"
command=$("${buildah[@]}" inspect --format '{{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.Cmd}}' "$container" | tr -d '[]')
[ "$command" = "python api.py --data /data --host 0.0.0.0" ] || fail "the image runs $command"
"$PYTHON" api.py --data "$data" --port "$api_port" 2>"$scratch/api.log" >/dev/null &
started+=("$!")
answers "$direct/readyz" "$scratch/api.log"
boxed_port=$(port)
# On loopback only: the container shares this machine's network.
"${inside[@]}" $command --host 127.0.0.1 --port "$boxed_port" 2>"$scratch/boxed.log" >/dev/null &
started+=("$!")
answers "http://127.0.0.1:$boxed_port/readyz" "$scratch/boxed.log"
for url in "$direct" "http://127.0.0.1:$boxed_port"; do
  curl --silent --show-error --fail --form "image=@$photo" --form k=5 "$url/predict/similar_images"
  echo
done >"$scratch/answers"
[ "$(sort --unique "$scratch/answers" | wc -l)" = 1 ] && grep -q '"similar_index":\["' "$scratch/answers" ||
  { cat "$scratch/answers" >&2; fail "the container answers otherwise than the checkout"; }
echo "deploy/check.sh: all parts passed in $SECONDS s"

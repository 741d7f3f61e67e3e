#!/usr/bin/env bash
# A real S3 server for tests: Ceph's RADOS Gateway with one monitor and one OSD, on loopback, without root and
# without installing anything. The packages are Debian's own; they are unpacked into a folder of ours.
#
#   ceph_rgw.sh fetch            download and unpack the packages (about 70 MB; once)
#   ceph_rgw.sh init DATA PORT   make an empty cluster in DATA; its S3 keys go to DATA/credentials
#   ceph_rgw.sh run  DATA PORT   run it in the foreground until SIGTERM
#
# PORT is the gateway's; the monitor takes PORT+1 and PORT+2. DATA/credentials is an AWS shared credentials file.
# Environment: RANKWEAVE_CEPH_HOME  where the packages live (default .rankweave/ceph)
#              DEBIAN_PYTHON        Debian's own Python, which Ceph's C extensions need (default /usr/bin/python3)
set -euo pipefail

HOME_DIR=$(readlink -m "${RANKWEAVE_CEPH_HOME:-.rankweave/ceph}")
ROOT=$HOME_DIR/root
LIBS=$ROOT/usr/lib/$(uname -m)-linux-gnu

die() { echo "ceph_rgw.sh: $*" >&2; exit 1; }

use_packages() {
  [ -e "$HOME_DIR/complete" ] || die "no packages in $HOME_DIR; run '$0 fetch' first"
  local python=${DEBIAN_PYTHON:-/usr/bin/python3}
  [ -x "$python" ] || python=$ROOT/usr/bin/python3
  export PATH=$ROOT/usr/bin:$ROOT/usr/sbin:$PATH
  export PYTHONPATH=$ROOT/usr/lib/python3/dist-packages
  export LD_LIBRARY_PATH=$LIBS:$LIBS/ceph:$ROOT/lib/$(uname -m)-linux-gnu
  CEPH=("$python" "$ROOT/usr/bin/ceph" --connect-timeout 60)
}

# Images often ship without a package index, and refreshing the system's needs root: then keep an index of our own.
package_index() {
  APT=()
  if [ -z "$(apt-cache show radosgw 2>/dev/null)" ]; then
    mkdir -p "$HOME_DIR/apt/lists/partial" "$HOME_DIR/apt/cache/archives/partial"
    APT=(-o "Dir::State::lists=$HOME_DIR/apt/lists" -o "Dir::Cache=$HOME_DIR/apt/cache")
    apt-get -qq "${APT[@]}" update
  fi
}

fetch() {
  [ ! -e "$HOME_DIR/complete" ] || return 0
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || die "needs Debian or Ubuntu (apt-get, dpkg)"
  mkdir -p "$HOME_DIR/debs" "$ROOT"
  package_index
  local names
  # Simulating an install lists exactly what this machine lacks.
  names=$(apt-get "${APT[@]}" install -s --no-install-recommends ceph-mon ceph-osd radosgw ceph-common uuid-runtime \
    | awk '/^Inst/ {print $2}')
  # shellcheck disable=SC2086  # one word per package is meant
  (cd "$HOME_DIR/debs" && apt-get -qq "${APT[@]}" download $names)
  for package in "$HOME_DIR"/debs/*.deb; do dpkg -x "$package" "$ROOT"; done
  local missing
  missing=$(LD_LIBRARY_PATH=$LIBS:$LIBS/ceph:$ROOT/lib/$(uname -m)-linux-gnu \
    ldd "$ROOT/usr/bin/radosgw" "$ROOT/usr/bin/ceph-osd" "$ROOT/usr/bin/ceph-mon" | awk '/not found/ {print $1}' | sort -u)
  [ -z "$missing" ] || die "these libraries are still missing: $missing"
  rm -rf "$HOME_DIR/debs" "$HOME_DIR/apt"
  touch "$HOME_DIR/complete"
}

random_word() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }

write_config() {
  local monitors="[v2:127.0.0.1:$((PORT + 1)),v1:127.0.0.1:$((PORT + 2))]"
  # One copy of everything is what a test needs. The short heartbeat and lease make a restart after kill -9 take
  # seconds; without tcp_nodelay every small GET waits about 40 ms.
  cat > "$DATA/ceph.conf" <<CONF
[global]
fsid = $FSID
mon host = $monitors
public network = 127.0.0.0/8
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $DATA/keyring
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd crush chooseleaf type = 0
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd objectstore = bluestore
bluestore block size = 6442450944
osd memory target = 939524096
osd heartbeat interval = 1
osd heartbeat grace = 3
osd pool default read lease ratio = 0.2
run dir = $DATA/run
admin socket = $DATA/run/\$name.\$pid.asok
log file = $DATA/log/\$name.log
mon data = $DATA/mon
osd data = $DATA/osd
rgw data = $DATA/rgw
plugin dir = $LIBS/ceph
erasure code dir = $LIBS/ceph/erasure-code
osd class dir = $LIBS/rados-classes
rgw frontends = beast endpoint=127.0.0.1:$PORT tcp_nodelay=1
rgw sts key = $(random_word 8)
rgw s3 auth use sts = true
debug osd = 0
debug bluestore = 0
debug bluefs = 0
debug rocksdb = 0
debug bdev = 0
CONF
  monmaptool --create --addv a "$monitors" --fsid "$FSID" "$DATA/monmap"
}

write_keys() {
  ceph-authtool --create-keyring "$DATA/keyring" --gen-key -n mon. --cap mon 'allow *'
  for name in client.admin client.rgw osd.0; do
    ceph-authtool "$DATA/keyring" --gen-key -n "$name" --cap mon 'allow *' --cap osd 'allow *'
  done
  (umask 077 && printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' \
    "$ACCESS_KEY" "$SECRET_KEY" > "$DATA/credentials")
}

init() {
  FSID=$(uuidgen)
  local osd_id
  osd_id=$(uuidgen)
  ACCESS_KEY=$(random_word 10) SECRET_KEY=$(random_word 20)
  mkdir -p "$DATA"/{mon,osd,run,rgw,log}
  write_config
  write_keys
  ceph-mon -i a --mkfs --monmap "$DATA/monmap" --keyring "$DATA/keyring"
  ceph-mon -i a -f & MON=$!
  trap 'kill $MON ${OSD:-} 2>/dev/null || true; wait' EXIT
  timeout 60 "${CEPH[@]}" auth import -i "$DATA/keyring"
  timeout 60 "${CEPH[@]}" osd new "$osd_id"
  ceph-osd -i 0 --mkfs --osd-uuid "$osd_id"
  ceph-osd -i 0 -f & OSD=$!
  timeout 60 "${CEPH[@]}" osd crush add osd.0 1.0 host=local root=default
  for _ in $(seq 120); do "${CEPH[@]}" osd stat | grep -q '1 up' && break; sleep 0.5; done
  timeout 120 radosgw-admin user create --uid=server --display-name=server --caps='roles=*' \
    --access-key="$ACCESS_KEY" --secret="$SECRET_KEY" > /dev/null
}

osd_is_active() {
  "${CEPH[@]}" --admin-daemon "$DATA/run/osd.0.$OSD.asok" status 2>/dev/null | grep -q '"state": "active"'
}

# SIGTERM alone makes the gateway linger for seconds; everything acknowledged is on disk already.
stop() {
  kill "${GATEWAY:-}" 2>/dev/null || true
  sleep 1
  kill -9 "${GATEWAY:-}" 2>/dev/null || true
  kill "$OSD" "$MON" 2>/dev/null || true
  wait
  exit 0
}

run() {
  [ -e "$DATA/ceph.conf" ] || die "no cluster in $DATA; run '$0 init $DATA $PORT' first"
  rm -f "$DATA"/run/*.asok
  ceph-mon -i a -f & MON=$!
  ceph-osd -i 0 -f & OSD=$!
  trap stop TERM INT
  # A gateway that starts before its OSD is active waits about ten seconds longer.
  for _ in $(seq 300); do osd_is_active && break; sleep 0.1; done
  radosgw -n client.rgw -k "$DATA/keyring" -f & GATEWAY=$!
  wait
}

ACTION=${1:-}
case "$ACTION" in
  fetch) fetch ;;
  init | run)
    [ $# -eq 3 ] || die "usage: $0 $ACTION DATA PORT"
    DATA=$(readlink -m "$2") PORT=$3
    use_packages
    export CEPH_CONF=$DATA/ceph.conf
    "$ACTION"
    ;;
  *) die "usage: $0 fetch | init DATA PORT | run DATA PORT" ;;
esac

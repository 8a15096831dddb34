#!/usr/bin/env bash
# A Ray cluster on this machine, apart from any other Ray: own folder, own ports, own token, its dashboard on loopback.
# It is a head alone, or a head that takes no work and nodes with resources and object stores of their own.
# Its own processes are stopped by their ids; `ray stop` would end every Ray of this machine.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=${P2P_CLUSTER_HOME:-/tmp/p2p-cluster-$(id -u)} # short: Ray puts Unix sockets below it, whose paths are limited
bin=${P2P_CLUSTER_BIN:-$root/.venv/bin}
mark=$home/p2p-cluster # says that `up` made this folder, which only then is removed; locked while it is changed

usage() {
  cat <<'TEXT'
cluster/local.sh up       start a Ray head on this machine and say how to use it
cluster/local.sh up N     start a head that takes no work and N nodes that do; where it runs, the nodes missing from N
cluster/local.sh status   what runs, and its resources
cluster/local.sh env      the variables a shell needs: eval "$(cluster/local.sh env)"
cluster/local.sh down     stop it and remove its folder

P2P_CLUSTER_HOME  its folder (default /tmp/p2p-cluster-UID), new or empty; another folder is another cluster
P2P_CLUSTER_BIN   where ray and python lie (default .venv/bin of this repository)
P2P_CLUSTER_CPUS  logical CPUs of each node (default 4, or for a head alone this machine's if it has more)
TEXT
}

fail() {
  echo "error: $*" >&2
  exit "${status:-1}"
}

# Ends unless the folder is absent or this user's alone: its content is evaluated, and says which processes to stop. Below
# /tmp anybody can make a folder of that name first.
require_own_home() {
  [ -e "$home" ] || [ -L "$home" ] || return 0
  if [ -L "$home" ] || [ ! -d "$home" ] || [ ! -O "$home" ] || [ -n "$(find "$home" -maxdepth 0 -perm /022)" ]; then
    status=2 fail "$home is not a folder that you alone can write to; remove it, or set P2P_CLUSTER_HOME to another"
  fi
}

# Ends unless the folder is one that `up` made: somebody's files may lie in any other.
require_marked_home() {
  # One that was started before clusters had a mark is known by what is written down of it.
  if [ ! -e "$mark" ] && [ -O "$home/ports" ] && [ -O "$home/processes" ]; then (umask 077 && : >>"$mark"); fi
  [ -e "$mark" ] || status=2 fail "$home holds files and no cluster that $0 started; set P2P_CLUSTER_HOME to another folder"
}

is_empty_home() {
  local names
  names=$(ls -A "$home") && [ -z "$names" ]
}

# Waits until no other command starts or stops this cluster, and keeps others waiting until this one ends. Returns
# non-zero where the folder was removed meanwhile. Nothing that goes on running may inherit descriptor 9, the lock.
lock_home() {
  { exec 9<"$mark"; } 2>/dev/null || fail "$mark was removed, or cannot be read; try again"
  if ! flock --nonblock 9; then
    echo "waiting for another $0 to end" >&2
    flock 9
  fi
  [ "$mark" -ef /proc/self/fd/9 ]
}

# Makes the folder where there is none, and locks it.
own_home() {
  while true; do
    (umask 077 && mkdir -p "$home")
    require_own_home
    if is_empty_home; then (umask 077 && : >>"$mark"); fi
    require_marked_home
    if lock_home; then return; fi
  done
}

# Prints one free loopback port for each preferred one, that one itself where it is free.
free_ports() {
  "$bin/python" - "$@" <<'PY'
import socket, sys

held = []
for preferred in map(int, sys.argv[1:]):
    listener = socket.socket()
    try:
        listener.bind(("127.0.0.1", preferred))
    except OSError:
        listener.bind(("127.0.0.1", 0))
    held.append(listener)
print(*(listener.getsockname()[1] for listener in held))
PY
}

# Prints, of the process ids given, those still alive that are what they were when recorded: "id:start time".
still_ours() {
  local entry id
  for entry in "$@"; do
    id=${entry%%:*}
    if [ "$(started "$id")" = "${entry#*:}" ]; then echo "$id"; fi
  done
}

# The start time of a process in clock ticks since boot, and nothing if there is none (or only its zombie).
started() {
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 0
  stat=${stat##*) } # the command's name before it may hold blanks
  # shellcheck disable=SC2086  # split into fields on purpose: state is the 1st here, start time the 20th
  set -- $stat
  if [ "$1" != Z ]; then echo "${20}"; fi
}

# Adds our processes to the record: those whose environment carries our mark, and all their descendants, since some
# of Ray's processes write their title over their environment.
record() {
  local ids id start
  ids=$(grep -lsaF "P2P_CLUSTER_MARK=$home;" /proc/[0-9]*/environ | cut -d/ -f3 || true)
  touch "$home/processes"
  for id in $(with_descendants "$ids"); do
    start=$(started "$id")
    if [ -n "$start" ]; then echo "$id:$start"; fi
  done >>"$home/processes"
}

# Prints the process ids given and those of all their descendants.
with_descendants() {
  ps -e -o pid=,ppid= | awk -v roots="${1//$'\n'/ }" '
    BEGIN { split(roots, list); for (i in list) wanted[list[i]] = 1 }
    { parent[$1] = $2 }
    END {
      do {
        grew = 0
        for (id in parent) if (!(id in wanted) && parent[id] in wanted) grew = wanted[id] = 1
      } while (grew)
      for (id in wanted) if (id in parent) print id
    }'
}

environment() {
  local head_port dashboard_port
  read -r head_port dashboard_port <"$home/ports"
  [[ $head_port$dashboard_port =~ ^[0-9]+$ ]] || fail "$home/ports does not hold two ports; $0 down removes it"
  cat <<TEXT
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH='$home/token'
export RAY_ADDRESS=127.0.0.1:$head_port
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard_port
TEXT
}

up() {
  local nodes=${1:-0}
  [[ $nodes =~ ^[0-9]{1,2}$ ]] || status=2 fail "up $nodes: the number of nodes is a whole number below 100"
  [ -x "$bin/ray" ] || status=2 fail "no ray in $bin; run make install first, or set P2P_CLUSTER_BIN"
  own_home
  while [ -e "$home/ports" ] && ! is_alive head; do
    echo "the head was lost; starting anew" >&2
    stop
    own_home
  done
  if [ -e "$home/ports" ]; then
    echo "the head is up already; $0 down stops it" >&2
  else
    start_head "$nodes"
  fi
  local node
  for node in $(seq "$nodes"); do start_node "$node"; done
  say
}

start_head() {
  (umask 077 && mkdir -p "$home/tmp")
  (umask 077 && "$bin/python" -c 'import secrets; print(secrets.token_hex(32))' >"$home/token")
  local ports cpus
  read -ra ports < <(free_ports 6390 8275 52390 52391 52392)
  echo "${ports[@]:0:2}" >"$home/ports"
  cpus=0
  if [ "$1" = 0 ]; then
    # Ray places work by logical CPUs, and lets more of it wait than a small machine has to.
    cpus=$(getconf _NPROCESSORS_ONLN)
    cpus=${P2P_CLUSTER_CPUS:-$((cpus > 4 ? cpus : 4))}
  fi
  start head "$(memory_of "$1")" --head --port "${ports[0]}" --temp-dir "$home/ray" \
    --dashboard-host 127.0.0.1 --dashboard-port "${ports[1]}" --ray-client-server-port "${ports[3]}" \
    --dashboard-agent-listen-port "${ports[2]}" --metrics-export-port "${ports[4]}" --num-cpus "$cpus"
  core_of head gcs_server >"$home/head"
}

# A node that runs is left alone, so that `up N` replaces those that were lost.
start_node() {
  local head_port ports
  if is_alive "node$1"; then return; fi
  read -r head_port _ <"$home/ports"
  read -ra ports < <(free_ports 0 0)
  start "node$1" "$(memory_of "$nodes")" --address "127.0.0.1:$head_port" \
    --dashboard-agent-listen-port "${ports[0]}" --metrics-export-port "${ports[1]}" \
    --num-cpus "${P2P_CLUSTER_CPUS:-4}" --labels "p2p-node=$1" \
    --include-log-monitor false # all nodes log into one folder, which the head's follows
  core_of "node$1" raylet >"$home/node$1"
}

# core_of NAME PROGRAM: the process without which a head or a node is none.
core_of() {
  local id
  for id in $(grep -lsaF "P2P_CLUSTER_MARK=$home;$1;" /proc/[0-9]*/environ | cut -d/ -f3 || true); do
    if [ "$(cat "/proc/$id/comm" 2>/dev/null)" = "$2" ]; then echo "$id:$(started "$id")"; fi
  done
}

is_alive() {
  [ -e "$home/$1" ] && [ -n "$(still_ours "$(cat "$home/$1")")" ]
}

# start NAME BYTES OPTION...: `ray start` with what every node has in common.
start() {
  local name=$1 bytes=$2
  shift 2
  # Jobs run with the python that stands first on the PATH. A lost node is noticed after five refused questions: here one
  # a second, since machines of one's own do not go away for a moment; a busy node still has its time to answer. At Ray's
  # niceness of 15 workers would all but stand still beside a busy program. What killed jobs leave in TMPDIR goes with `down`.
  if ! PATH=$bin:$PATH TMPDIR=$home/tmp RAY_health_check_period_ms=1000 RAY_worker_niceness=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$home/token P2P_CLUSTER_MARK="$home;$name;" \
    "$bin/ray" start "$@" --node-ip-address 127.0.0.1 --object-store-memory "$bytes" --disable-usage-stats \
    >"$home/start.log" 2>&1 </dev/null 9<&-; then
    cat "$home/start.log" >&2
    stop
    fail "the Ray $name did not start"
  fi
  record
}

# Bytes of each object store: together a quarter of the memory, and at most a gigabyte each.
memory_of() {
  awk -v nodes="$1" '/^MemTotal/ { bytes = $2 * 1024 / 4 / (nodes + 1); print int(bytes < 2^30 ? bytes : 2^30) }' \
    /proc/meminfo
}

say() {
  local head_port dashboard_port
  read -r head_port dashboard_port <"$home/ports"
  cat <<TEXT
Ray head on port $head_port, $(nodes_alive) more node(s), dashboard http://127.0.0.1:$dashboard_port, token in $home/token

In each shell that uses it:
  eval "\$($0 env)"
Then:
  ray job submit --address http://127.0.0.1:$dashboard_port --working-dir . -- python jobs/train.py --data … --output …
  python jobs/train.py --data … --output …        (a driver in this shell, its work on the cluster)
Stop it with:
  $0 down
TEXT
}

nodes_alive() {
  local file count=0
  for file in "$home"/node*; do
    if is_alive "${file##*/}"; then count=$((count + 1)); fi
  done
  echo "$count"
}

show_status() {
  if [ ! -e "$home/ports" ]; then
    echo "down"
    return 1
  fi
  eval "$(environment)"
  "$bin/ray" status --address "$RAY_ADDRESS"
}

down() {
  while [ -d "$home" ] && ! is_empty_home; do
    require_marked_home
    if lock_home; then
      stop
      return
    fi
  done
  echo "nothing to stop"
}

# Stops what runs and removes the folder, which is locked.
stop() {
  record
  local recorded alive
  mapfile -t recorded < <(sort -u "$home/processes")
  for signal in TERM KILL; do
    alive=$(still_ours "${recorded[@]}")
    # shellcheck disable=SC2086  # one word for each id
    if [ -n "$alive" ]; then kill -s $signal $alive 2>/dev/null || true; fi
    for _ in $(seq 30); do
      [ -n "$(still_ours "${recorded[@]}")" ] || break
      sleep 0.1
    done
  done
  # The mark goes last: what is left after a kill can be removed by the same command.
  find "$home" -mindepth 1 -maxdepth 1 ! -name "${mark##*/}" -exec rm -rf {} +
  rm -rf "$home"
  echo "stopped"
}

require_own_home
case ${1:-} in
  up) up "${2:-}" ;;
  status) show_status ;;
  env) [ -e "$home/ports" ] || fail "it is not up; start it with $0 up"; environment ;;
  down) down ;;
  -h | --help | help) usage ;;
  *) usage >&2; exit 2 ;;
esac

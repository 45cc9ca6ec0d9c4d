# shellcheck shell=bash disable=SC2034
# Pods: a network namespace and a cgroup each, joined by a bridge in a namespace that stands for the node.
# The machine's own interfaces, routes and rules are not touched. To be sourced after host.sh.

PODS=(client reviews-v1 reviews-v2)
NODE=$NAME-node
NODE_IP=10.201.0.1
# Nobody has this address. Without capture a connection to it is refused by the node as unreachable.
SERVICE_IP=10.202.0.10
SERVICE_PORT=9080
SERVICE_URL=http://reviews:$SERVICE_PORT/

pod_ip() {
  case $1 in
    client) echo 10.201.0.10 ;;
    reviews-v1) echo 10.201.0.11 ;;
    reviews-v2) echo 10.201.0.12 ;;
  esac
}
pod_namespace() { echo "$NAME-$1"; }
pod_cgroup() { echo "$CGROUPS/$NAME/pods/$1"; }

make_pods() {
  local pod
  # The hooks go to the cgroup above pods and proxy (its connections are told apart by them, too): nobody else meets them.
  mkdir -p "$STATE" "$CGROUPS/$NAME/pods" "$CGROUPS/$NAME/proxy" "$CGROUPS/$NAME/bench"
  chmod 700 "$STATE"
  note_bpffs
  make_node || die "the node's namespace could not be made (does this kernel have bridge and veth devices?)"
  for pod in "${PODS[@]}"; do
    make_pod "$pod" || die "the pod $pod could not be made (does this kernel have veth devices?)"
  done
  write_client_script
}

make_node() {
  ip netns add "$NODE" \
    && ip -n "$NODE" link set lo up \
    && ip -n "$NODE" link add br0 type bridge \
    && ip -n "$NODE" address add "$NODE_IP/24" dev br0 \
    && ip -n "$NODE" link set br0 up \
    && ip netns exec "$NODE" sysctl -q net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0 \
    && ip -n "$NODE" route add unreachable "$SERVICE_IP/32"
}

make_pod() {
  local pod=$1 namespace
  namespace=$(pod_namespace "$pod")
  mkdir -p "$(pod_cgroup "$pod")" "/etc/netns/$namespace" \
    && printf '127.0.0.1 localhost\n%s reviews\n' "$SERVICE_IP" >"/etc/netns/$namespace/hosts" \
    && ip netns add "$namespace" \
    && ip -n "$NODE" link add "veth-$pod" type veth peer name eth0 netns "$namespace" \
    && ip -n "$NODE" link set "veth-$pod" master br0 up \
    && ip -n "$namespace" link set lo up \
    && ip -n "$namespace" address add "$(pod_ip "$pod")/24" dev eth0 \
    && ip -n "$namespace" link set eth0 up \
    && ip -n "$namespace" route add default via "$NODE_IP"
}

# become_in_cgroup CGROUP COMMAND...: replaces this (sub)shell; the command is in the cgroup before its first socket.
# The lock (9) is not handed on: what outlives a killed quickstart must not keep the next one out.
become_in_cgroup() {
  echo "$BASHPID" >"$1/cgroup.procs"
  exec "${@:2}" 9>&-
}

# become_in_pod POD COMMAND...: as a container runtime would start it: in the pod's cgroup, namespace and /etc/hosts.
become_in_pod() { become_in_cgroup "$(pod_cgroup "$1")" ip netns exec "$(pod_namespace "$1")" "${@:2}"; }

in_cgroup() { (become_in_cgroup "$@"); }
in_pod() { (become_in_pod "$@"); }

# The same for hands: `sh $STATE/client curl ...`.
write_client_script() {
  cat >"$STATE/client" <<END
echo \$\$ >$(pod_cgroup client)/cgroup.procs && exec ip netns exec $(pod_namespace client) "\$@"
END
}

# pod_listens POD PORT: asks the kernel, so that no request is spent on it.
pod_listens() {
  [ -n "$(ip netns exec "$(pod_namespace "$1")" ss -Hltn "sport = :$2")" ]
}

# --- the way back

# remove_everything: all that a run makes, whether this run made it or one that was killed. Fails when something stays.
remove_everything() {
  local pod
  stop_processes
  if [ -d "$BPF_DIR" ]; then rm -r "$BPF_DIR" 2>/dev/null || true; fi
  unmount_bpffs
  for pod in node "${PODS[@]}"; do
    if [ -e "/run/netns/$NAME-$pod" ]; then ip netns delete "$NAME-$pod" || true; fi
    rm -rf "/etc/netns/$NAME-$pod"
  done
  rmdir /etc/netns 2>/dev/null || true
  # A process that was killed leaves its cgroup a moment after it is gone.
  wait_until 5 "the cgroups to become empty" remove_cgroups || true
  rm -rf "$STATE"
  nothing_is_left
}

stop_processes() {
  local cgroup=$CGROUPS/$NAME
  [ -d "$cgroup" ] || return 0
  # culvert removes its own hooks and pins when it is asked to stop; the rest has nothing to say.
  signal_cgroup "$cgroup/proxy" TERM
  wait_until 15 "culvert to stop" cgroup_is_empty "$cgroup/proxy" || true
  local child
  while read -r child; do signal_cgroup "$child" KILL; done < <(find "$cgroup" -depth -type d)
}

signal_cgroup() {
  local pid
  while read -r pid; do kill "-$2" "$pid" 2>/dev/null || true; done < <(cat "$1/cgroup.procs" 2>/dev/null)
}

cgroup_is_empty() { [ -z "$(cat "$1/cgroup.procs" 2>/dev/null)" ]; }

remove_cgroups() {
  local cgroup=$CGROUPS/$NAME
  [ -d "$cgroup" ] || return 0
  find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
  [ ! -d "$cgroup" ]
}

# culvert mounts bpffs where there is none. One that was there before, or that others have begun to use, stays.
note_bpffs() {
  if ! mountpoint -q "$BPF_ROOT"; then touch "$STATE/bpffs-is-ours"; fi
}

unmount_bpffs() {
  [ -e "$STATE/bpffs-is-ours" ] && mountpoint -q "$BPF_ROOT" || return 0
  [ -z "$(ls -A "$BPF_ROOT")" ] || return 0
  umount "$BPF_ROOT" || true
}

nothing_is_left() {
  local left=() pod path
  for pod in node "${PODS[@]}"; do
    for path in "/run/netns/$NAME-$pod" "/etc/netns/$NAME-$pod"; do
      if [ -e "$path" ]; then left+=("$path"); fi
    done
  done
  for path in "$CGROUPS/$NAME" "$BPF_DIR" "$STATE"; do
    if [ -e "$path" ]; then left+=("$path"); fi
  done
  [ ${#left[@]} = 0 ] || { warn "could not remove: ${left[*]}"; return 1; }
}

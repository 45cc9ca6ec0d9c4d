# shellcheck shell=bash
# What the quickstart shows, and what makes it fail. To be sourced after config.sh.

# A check of chance fails a correct proxy with less than this probability; there are three of them in a run.
FALSE_ALARM=1e-7

# shellcheck disable=SC2016 # the dollars are Perl's
PEER_PROGRAM='
  my $socket = IO::Socket::INET->new(PeerAddr => $ARGV[0], Timeout => 5) or die "connect: $!\n";
  my $port = $socket->sockport;
  my $row = `ss -Htn "sport = :$port"`;
  print join(" ", $socket->peerhost . ":" . $socket->peerport, $port, (split " ", $row)[4]), "\n"'

run_checks() {
  check_capture
  check_split 99 1 4000
  check_cookie
  check_live_change
  check_source_address
}

# tally COUNT CURL-ARGUMENT...: sends requests from the client pod and prints "status version" for each. Four curls take
# turns with keep-alive connections of their own, so that connections and workers are mixed as well as requests.
tally() {
  local count=$1 part
  shift
  for part in 1 2 3 4; do
    in_pod client curl -sS --max-time 30 -D - -o /dev/null "$@" "$SERVICE_URL?$part-[1-$((count / 4))]" || true
  done | awk '
    { sub(/\r$/, "") }
    /^HTTP\/1/ { status = $2; version = "-" }
    tolower($1) == "x-served-by:" { version = $2 }
    /^$/ { print status, version }'
}

# count_versions: reads a tally and sets ANSWERED (with status 200), V1 and V2.
count_versions() {
  read -r ANSWERED V1 V2 < <(awk '
    $1 == 200 { answered++ } $2 == "reviews-v1" { v1++ } $2 == "reviews-v2" { v2++ }
    END { print answered + 0, v1 + 0, v2 + 0 }')
}

check_capture() {
  step "A plain 'curl $SERVICE_URL' in the client pod"
  local body peer local_port kernel_peer
  body=$(in_pod client curl -sS --max-time 5 "$SERVICE_URL") || die "curl in the client pod failed"
  printf '%s\n' "$body" | head -n 3 | sed 's/^/    | /'

  # getpeername(2) as the application sees it, and the kernel's own table for the same socket.
  read -r peer local_port kernel_peer < <(in_pod client perl -MIO::Socket::INET -e "$PEER_PROGRAM" "$SERVICE_IP:$SERVICE_PORT") || true
  [ "$peer" = "$SERVICE_IP:$SERVICE_PORT" ] \
    || die "getpeername in the client pod says '$peer' instead of $SERVICE_IP:$SERVICE_PORT"
  [[ $kernel_peer =~ ^(127\.|\[::1\]|\[::ffff:127\.) ]] \
    || die "the client's connection from port $local_port goes to '$kernel_peer': it was not captured"
  note "the application asked for $SERVICE_IP:$SERVICE_PORT and getpeername tells it so;"
  note "in truth it is connected to culvert at $kernel_peer, without an iptables rule: $(rules_in_client)"
}

# No rule of any kind may be in the pod: that is what eBPF capture is for.
rules_in_client() {
  local rules
  rules=$(ip netns exec "$(pod_namespace client)" iptables-save 2>/dev/null | grep -c '^-A' || true)
  [ "$rules" = 0 ] || die "there are $rules iptables rules in the client pod"
  echo "$rules rules"
}

# check_split V1 V2 COUNT: the split of COUNT requests is what the weights say, within the bounds of chance.
check_split() {
  local v1=$1 v2=$2 count=$3 low high
  step "Splitting $count requests $v1 : $v2"
  count_versions < <(tally "$count")
  [ "$ANSWERED" = "$count" ] || die "only $ANSWERED of $count requests were answered with 200"
  read -r low high < <(binomial_bounds "$count" "$v2" $((v1 + v2)) $FALSE_ALARM)
  note "reviews-v1 $V1, reviews-v2 $V2 (with these weights reviews-v2 gets $low to $high)"
  [ $((V1 + V2)) = "$count" ] || die "$((count - V1 - V2)) answers came from neither version"
  between "$low" "$V2" "$high" || die "reviews-v2 got $V2 of $count requests: that is not $v1 : $v2"
}

check_cookie() {
  step "Cookie user=jason (a regex match) goes to reviews-v2, others do not"
  local cookie
  for cookie in 'user=jason' 'a=b; user=jason; c=d'; do
    count_versions < <(tally 200 -H "cookie: $cookie")
    note "cookie '$cookie': reviews-v2 $V2 of 200"
    [ "$ANSWERED $V2" = "200 200" ] || die "with cookie '$cookie' $V2 of 200 requests went to reviews-v2 ($ANSWERED answered)"
  done
  count_versions < <(tally 400 -H 'cookie: user=jasonx')
  note "cookie 'user=jasonx': reviews-v2 $V2 of 400"
  local low high
  read -r low high < <(binomial_bounds 400 1 100 $FALSE_ALARM)
  between "$low" "$V2" "$high" || die "cookie 'user=jasonx' went to reviews-v2 $V2 times of 400"
}

# check_live_change: the file is edited while requests run; they all succeed, old and new.
check_live_change() {
  step "Editing the weights on disk to 50 : 50 while requests run"
  touch "$STATE/requests-go-on"
  run_requests_meanwhile &
  local requests=$!
  disown # so that bash does not comment on its end
  wait_until 10 "requests to run" test -s "$STATE/meanwhile.log" || die "requests could not be sent"

  set_weights 50 50
  local before=$EPOCHREALTIME
  wait_until 20 "the new weights to take effect" split_is 50 50 400 \
    || die "$STATE/rds.yaml says 50 : 50 and the split is still $V1 : $V2"
  note "took effect within $(awk "BEGIN { printf \"%.1f\", $EPOCHREALTIME - $before }") s (measuring it included)"
  check_split 50 50 2000

  rm -f "$STATE/requests-go-on"
  wait_until 15 "the last of them to end" is_over $requests || die "the requests sent meanwhile do not end"
  local failed total
  total=$(grep -c . "$STATE/meanwhile.log" || true)
  failed=$(grep -vc '^200$' "$STATE/meanwhile.log" || true)
  note "meanwhile $total requests were sent on new and kept connections, $failed failed"
  [ "$failed" = 0 ] || die "$failed of $total requests failed during the change: $(grep -v '^200$' "$STATE/meanwhile.log" | sort | uniq -c | head -n 3 | xargs)"
}

is_over() { ! kill -0 "$1" 2>/dev/null; }

# A shell in the pod's cgroup, so that it ends with the pod whatever happens to this one.
run_requests_meanwhile() {
  # shellcheck disable=SC2016 # the inner shell expands them
  become_in_pod client bash -c '
    while [ -e "$1" ]; do curl -sS --max-time 10 -o /dev/null -w "%{http_code}\n" "$2?[1-50]"; done' \
    requests "$STATE/requests-go-on" "$SERVICE_URL" >"$STATE/meanwhile.log" 2>&1
}

# split_is V1 V2 COUNT: the same test as check_split, as a question.
split_is() {
  local low high
  count_versions < <(tally "$3")
  read -r low high < <(binomial_bounds "$3" "$2" $(($1 + $2)) $FALSE_ALARM)
  between "$low" "$V2" "$high"
}

# check_source_address: two proxies stand between client and server, one captured outbound and one inbound.
check_source_address() {
  step "The source address that the servers see"
  local cookie seen expected inbound
  expected=$(pod_ip client)
  for cookie in 'user=jason' 'none=1'; do
    seen=$(in_pod client curl -sS --max-time 5 -H "cookie: $cookie" "${SERVICE_URL}addr") || die "GET /addr failed"
    note "cookie '$cookie': $seen"
    [[ $seen =~ (^|[^0-9.])"$expected"($|[^0-9.]) ]] || die "the server saw '$seen' instead of the client pod's $expected"
  done
  inbound=$(counter http.inbound.downstream_rq_completed)
  [ "${inbound:-0}" -gt 0 ] || die "no request went through the inbound listeners of the reviews pods"
  note "$inbound requests were captured a second time, inbound, in the reviews pods: the address went through both"
}

# counter NAME: one number from the admin's /stats.
counter() { curl -fsS "http://$(admin)/stats" | sed -n "s/^$1: \([0-9]*\)$/\1/p"; }

between() { [ "$1" -le "$2" ] && [ "$2" -le "$3" ]; }

# binomial_bounds COUNT PART WHOLE ALPHA: "low high", the narrowest range that a count of COUNT tries, each true with
# probability PART/WHOLE, leaves on either side with at most probability ALPHA.
binomial_bounds() {
  awk -v n="$1" -v p="$2" -v q="$3" -v alpha="$4" 'BEGIN {
    p /= q
    # The probabilities are far too small for a number at the ends, so they are carried as logarithms.
    logp = n * log(1 - p)
    for (k = 0; k <= n; k++) {
      prob[k] = logp < -700 ? 0 : exp(logp)
      logp += log(n - k > 0 ? (n - k) / (k + 1) : 1) + log(p / (1 - p))
    }
    for (low = 0; low < n && (tail += prob[low]) <= alpha; low++);
    tail = 0
    for (high = n; high > 0 && (tail += prob[high]) <= alpha; high--);
    print low, high
  }'
}

"""The checks, by name. Each gets the scene's culvert and raises AssertionError when something is wrong."""
import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse

from scene import HERE, NAME, Process, fetch, free_port, wait_for

# The cases of gRPC's interop description that need no credentials of a cloud.
INTEROP = (
    "empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
    "timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response", "status_code_and_message",
    "special_status_message", "custom_metadata", "unimplemented_method", "unimplemented_service",
)

# What promtool may say of names: Envoy's are what dashboards know, and they are not those that Prometheus recommends.
LINTS = (
    r"no help text",
    r'counter metrics should have "_total" suffix',
    r'non-counter metrics should not have "_total" suffix',
    r'use base unit "\w+" instead of "\w+"',
    r"metric names should not contain abbreviated units",
    r"non-histogram and non-summary metrics should not have \"_(count|sum|bucket)\" suffix",
    r'metric name should not include type',
)


def run(command, seconds=120, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, timeout=seconds, text=True, **options)


def interop(case, kind):
    def check(scene):
        command = [
            scene.tools / "grpc-interop/client", f"-test_case={case}", f"-server_host={HERE}", f"-server_port={scene.culvert.ports[kind]}",
        ]
        if kind == "tls":
            command += ["-use_tls", "-use_test_ca", f"-ca_file={scene.folder / 'ca.pem'}", f"-server_host_override={NAME}"]
        # A request that is cancelled at once may never be sent; its connection is made all the same.
        before = counter(scene, f"http.{kind}.downstream_cx_total")
        done = run(command, env={"GRPC_GO_LOG_SEVERITY_LEVEL": "error", "PATH": "/usr/bin"})
        assert done.returncode == 0, (done.stderr or done.stdout)[-1500:]
        assert counter(scene, f"http.{kind}.downstream_cx_total") > before, "it went past culvert"

    return check


def counter(scene, name):
    text = fetch(scene.culvert.admin, f"/stats?filter=^{re.escape(name)}$")
    found = re.search(r": (\d+)$", text, re.M)
    return int(found[1]) if found else 0


def everything_given_back(scene):
    """After all cases no stream, request or connection of theirs is left."""
    def rest():
        text = fetch(scene.culvert.admin, "/stats?filter=" + urllib.parse.quote(r"(h2c|tls)\.(down|up)stream_rq_(active|pending_active)$"))
        return all(line.endswith(": 0") for line in text.splitlines()) and text

    wait_for("all requests of the interop cases have ended", rest)


def traffic(scene):
    """Requests of every kind, so that every family of metrics has values."""
    ports = scene.culvert.ports
    for path in ["/", "/?100000", "/missing"] * 3 + ["/flaky"] * 6:
        try:
            fetch(ports["web"], path)
        except urllib.error.HTTPError as error:
            assert (path, error.code) == ("/missing", 404), f"{path}: {error}"
    for version in ("--http1.1", "--http2"):
        url = f"https://{NAME}:{ports['secure']}/"
        done = run(["curl", "-sS", version, "--cacert", scene.folder / "ca.pem", "--resolve", f"{NAME}:{ports['secure']}:{HERE}",
                    "-w", "%{http_version} %{response_code}", "-o", "/dev/null", url])
        assert done.stdout in ("1.1 200", "2 200"), f"{version}: {done.stdout} {done.stderr}"
    done = run(["curl", "-sS", "--http2-prior-knowledge", "-w", "%{http_version}", "-o", "/dev/null", f"http://{HERE}:{ports['web']}/"])
    assert done.stdout == "2", f"{done.stdout} {done.stderr}"
    with socket.create_connection((HERE, ports["opaque"]), 10) as one:
        one.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        with one.makefile("rb") as file:
            assert file.readline() == b"HTTP/1.1 200 OK\r\n"
    wait_for("a retry", lambda: counter(scene, "cluster.web.upstream_rq_retry"))
    wait_for("a health check", lambda: counter(scene, "cluster.web.health_check.success"))


def promtool(scene):
    """No parse error, no lint that Envoy's names do not force, and help for every family."""
    text = wait_for("histograms", lambda: with_buckets(scene))
    (scene.folder / f"metrics-{scene.driver}.txt").write_text(text)
    done = run(["promtool", "check", "metrics"], input=text)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    # 0 without a word, 3 with lints only; 1 is a parse error.
    assert done.returncode in (0, 3), "\n".join(lines[-20:])
    unexpected = [line for line in lines if not any(re.search(pattern, line) for pattern in LINTS)]
    assert not unexpected, "\n".join(unexpected[:20])
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    assert set(types.values()) == {"counter", "gauge", "histogram"}, set(types.values())
    names = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if line and line[0] != "#"}
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in types else name for name in names}
    assert bare <= set(types), f"without type: {sorted(bare - set(types))[:10]}"
    for wanted in (
        "envoy_http_downstream_rq_xx", "envoy_cluster_upstream_rq_time_bucket", "envoy_tcp_downstream_cx_total",
        "envoy_cluster_health_check_success", "envoy_cluster_upstream_rq_retry", "envoy_listener_ssl_handshake",
        "envoy_server_live",
    ):
        assert wanted in names, f"{wanted} is missing"


def with_buckets(scene):
    text = fetch(scene.culvert.admin, "/stats/prometheus")
    return text if "envoy_cluster_upstream_rq_time_bucket" in text else None


def prometheus(scene):
    """A real Prometheus scrapes, and its values are those of culvert."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s"},
        "scrape_configs": [{
            "job_name": "culvert", "metrics_path": "/stats/prometheus",
            "static_configs": [{"targets": [f"{HERE}:{scene.culvert.admin}"]}],
        }],
    }
    (scene.folder / "prometheus.yml").write_text(json.dumps(config))
    data = scene.folder / f"prometheus-{scene.driver}"
    server = Process(scene.folder, f"prometheus-{scene.driver}", [
        "prometheus", f"--config.file={scene.folder / 'prometheus.yml'}", f"--storage.tsdb.path={data}",
        f"--web.listen-address={HERE}:{port}",
    ])
    try:
        server.ready(port)

        def query(text):
            answer = json.loads(fetch(port, "/api/v1/query?" + urllib.parse.urlencode({"query": text})))
            assert answer["status"] == "success", answer
            return answer["data"]["result"]

        def value(text):
            result = query(text)
            return float(result[0]["value"][1]) if result else None

        wait_for("up == 1", lambda: value("up{job='culvert'}") == 1)
        # Both ways of counting agree once nothing moves any more.
        for stat, text in (
            ("http.web.downstream_rq_2xx", 'envoy_http_downstream_rq_xx{envoy_http_conn_manager_prefix="web",envoy_response_code_class="2"}'),
            ("cluster.web.upstream_rq_retry", 'envoy_cluster_upstream_rq_retry{envoy_cluster_name="web"}'),
            ("cluster.h2c.upstream_rq_total", 'envoy_cluster_upstream_rq_total{envoy_cluster_name="h2c"}'),
            ("tcp.opaque.downstream_cx_total", 'envoy_tcp_downstream_cx_total{envoy_tcp_prefix="opaque"}'),
        ):
            wait_for(f"{text} == {stat}", lambda: value(text) == counter(scene, stat))
        buckets = 'envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="web"}'
        count = wait_for("buckets", lambda: value('envoy_cluster_upstream_rq_time_count{envoy_cluster_name="web"}'))
        top = value('envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="web",le="+Inf"}')
        assert top == count and top > 0, (top, count)
        quantile = value(f"histogram_quantile(0.5, {buckets})")
        assert quantile is not None and 0 <= quantile < 10_000, quantile
        target = lambda: json.loads(fetch(port, "/api/v1/targets"))["data"]["activeTargets"][0]
        wait_for("a scrape without an error", lambda: (target()["health"], target()["lastError"]) == ("up", ""))
    finally:
        server.stop()
        shutil.rmtree(data, ignore_errors=True)


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def spans(scene):
    """A span of the trace that the client began is in what the receiver printed."""
    trace = TRACE[:-5] + ("feed0" if scene.driver == "uring" else "feed1")
    fetch(scene.culvert.ports["web"], "/traced", traceparent=f"00-{trace}-00f067aa0ba902b7-01")
    wait_for("the span arrives", lambda: trace in scene.receiver.output())
    output = scene.receiver.output()
    record = output[max(0, output.index(trace) - 2000) :][:6000]
    for part in ("00f067aa0ba902b7", "/traced", "service.name", "peers", "http.status_code"):
        assert part in record, f"{part} is not in {record}"
    wait_for("the export is counted", lambda: counter(scene, "tracing.opentelemetry.spans_sent"))


def h2spec(scene):
    """All 146 cases but the one that HAProxy fails too."""
    target = ["-h", HERE, "-o", "10", "-P", "/?100", "-p", scene.culvert.ports["web"]]
    for options in ([], ["-t", "-k"]):
        if options:
            target[-1] = scene.culvert.ports["secure"]
        done = run(["h2spec", *target, *options], 600)
        total = re.search(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed", done.stdout)
        failures = done.stdout.rpartition("Failures:")[2]
        assert total and int(total[2]) >= 145 and int(total[4]) <= 1, failures


def all_checks():
    """(name, function), in the order in which they run."""
    yield "traffic", traffic
    for kind in ("h2c", "tls"):
        for case in INTEROP:
            yield f"grpc-{kind}-{case}", interop(case, kind)
    yield "grpc-rest", everything_given_back
    yield "promtool", promtool
    yield "prometheus", prometheus
    yield "spans", spans
    if shutil.which("h2spec"):
        yield "h2spec", h2spec

"""What runs: the peers' processes, an upstream, certificates, and culvert with one configuration for all checks."""
import http.server
import json
import os
import socket
import subprocess
import threading
import time
import urllib.request

HERE = "127.0.0.1"
# The name in all certificates.
NAME = "peers.test"
TYPE = "type.googleapis.com/envoy."
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def free_port():
    with socket.socket() as one:
        one.bind((HERE, 0))
        return one.getsockname()[1]


def wait_for(what, condition, seconds=30):
    """Until the condition gives something; what that is."""
    end = time.monotonic() + seconds
    while True:
        try:
            value = condition()
        except OSError:
            value = None
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.05)


def fetch(port, path, timeout=10, **headers):
    request = urllib.request.Request(f"http://{HERE}:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return response.read().decode()


def listens(port):
    with socket.create_connection((HERE, port), 1):
        return True


class Process:
    """A program whose output is kept in a file."""

    def __init__(self, folder, name, command, environment=None):
        self.name, self.path = name, folder / f"{name}.log"
        with open(self.path, "wb") as output:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdout=output, stderr=subprocess.STDOUT, cwd=folder,
                env=os.environ | (environment or {}),
            )

    def output(self):
        return self.path.read_text(errors="replace")

    def ready(self, port):
        def check():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended: {self.output()[-2000:]}")
            return listens(port)

        wait_for(f"{self.name} listens", check, 60)

    def stop(self):
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Web(http.server.BaseHTTPRequestHandler):
    """An upstream: /flaky fails every other time, /missing is not there, all else is as long as ?N says."""

    protocol_version = "HTTP/1.1"
    flaky = 0

    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        path, _, size = self.path.partition("?")
        status = 404 if path == "/missing" else 200
        if path == "/flaky":
            Web.flaky += 1
            status = 503 if Web.flaky % 2 else 200
        body = b"x" * int(size or 100)
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        """A proxy may close at any time."""


def start_web():
    server = Server((HERE, 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def make_certificates(folder):
    """An authority, and a certificate of it for NAME, as `ca.pem`, `cert.pem` and `key.pem`."""

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority")
    openssl("req", *key, "-keyout", "key.pem", "-out", "cert.csr", "-subj", "/CN=server")
    (folder / "san").write_text(f"subjectAltName=DNS:{NAME}\n")
    openssl("x509", "-req", "-in", "cert.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "san", "-out", "cert.pem")


def address(port):
    return {"socket_address": {"address": HERE, "port_value": port}}


def cluster(name, port, http2=False, tls=None, **more):
    config = {
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}],
        },
    } | more
    if http2:
        options = {"explicit_http_config": {"http2_protocol_options": {}}}
        config["typed_extension_protocol_options"] = {HTTP_OPTIONS: {"@type": f"type.googleapis.com/{HTTP_OPTIONS}"} | options}
    if tls:
        config["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": TYPE + "extensions.transport_sockets.tls.v3.UpstreamTlsContext", "sni": NAME,
                "common_tls_context": {"validation_context": {
                    "trusted_ca": {"filename": str(tls / "ca.pem")},
                    "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": NAME}}],
                }},
            },
        }
    return config


def listener(name, port, filters, tls=None):
    chain = {"filters": filters}
    if tls:
        files = {"certificate_chain": {"filename": str(tls / "cert.pem")}, "private_key": {"filename": str(tls / "key.pem")}}
        chain["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": TYPE + "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {"tls_certificates": [files], "alpn_protocols": ["h2", "http/1.1"]},
            },
        }
    return {"name": name, "stat_prefix": name, "address": address(port), "filter_chains": [chain]}


def manager(name, to, **more):
    # An interop case may take as long as it likes; no deadline but its own applies.
    routes = [
        {"match": {"prefix": "/flaky"}, "route": {"cluster": to, "retry_policy": {"retry_on": "5xx", "num_retries": 2}}},
        {"match": {"prefix": "/"}, "route": {"cluster": to, "timeout": "0s"}},
    ]
    return [{
        "name": "http",
        "typed_config": {
            "@type": TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "route_config": {"name": name, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            "http_filters": [{"name": "router", "typed_config": {"@type": TYPE + "extensions.filters.http.router.v3.Router"}}],
        } | more,
    }]


class Culvert(Process):
    """Listeners `web`, `secure`, `opaque`, and for gRPC `h2c` and `tls`, each in front of a cluster of that name."""

    def __init__(self, folder, binary, driver, ports):
        self.admin = free_port()
        self.ports = {name: free_port() for name in ("web", "secure", "opaque", "h2c", "tls")}
        config = folder / f"culvert-{driver}.json"
        config.write_text(json.dumps(self.config(folder, ports), indent=1))
        command = [binary, "-c", config, "--io", driver, "--concurrency", "2", "--file-flush-interval-msec", "50"]
        super().__init__(folder, f"culvert-{driver}", command)
        self.ready(self.admin)
        wait_for("culvert is ready", lambda: "LIVE" in fetch(self.admin, "/ready"))

    def config(self, folder, ports):
        collector = {"envoy_grpc": {"cluster_name": "collector"}}
        tracing = {
            "random_sampling": {"value": 100},
            "provider": {
                "name": "otel",
                "typed_config": {"@type": TYPE + "config.trace.v3.OpenTelemetryConfig", "service_name": "peers", "grpc_service": collector},
            },
        }
        proxy = [{
            "name": "tcp",
            "typed_config": {"@type": TYPE + "extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "opaque", "cluster": "web"},
        }]
        check = {
            "timeout": "1s", "interval": "0.2s", "unhealthy_threshold": 2, "healthy_threshold": 1,
            "http_health_check": {"path": "/healthy"},
        }
        web = {"health_checks": [check], "outlier_detection": {"consecutive_5xx": 100}, "track_cluster_stats": {"timeout_budgets": True}}
        return {
            "node": {"id": "peers", "cluster": "peers"},
            "admin": {"address": address(self.admin)},
            "static_resources": {
                "listeners": [
                    listener("web", self.ports["web"], manager("web", "web", tracing=tracing)),
                    listener("secure", self.ports["secure"], manager("secure", "web"), folder),
                    listener("opaque", self.ports["opaque"], proxy),
                    listener("h2c", self.ports["h2c"], manager("h2c", "h2c")),
                    listener("tls", self.ports["tls"], manager("tls", "tls"), folder),
                ],
                "clusters": [
                    cluster("web", ports["web"], **web),
                    cluster("h2c", ports["h2c"], True),
                    cluster("tls", ports["tls"], True, folder),
                    cluster("collector", ports["collector"], True),
                ],
            },
        }

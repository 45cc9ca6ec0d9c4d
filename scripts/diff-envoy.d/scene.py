"""Scenes: a listener with its clusters, and the cases that are played on it. Read from cases/*.yaml."""
import itertools
import json
import re
import urllib.parse
from pathlib import Path

import yaml

from upstream import Answer, pairs

HTTP = "type.googleapis.com/envoy.extensions.filters.http."
# By short name: the filter's name, its type, and that of its settings by route.
FILTERS = {
    "rbac": ("envoy.filters.http.rbac", "rbac.v3.RBAC", "rbac.v3.RBACPerRoute"),
    "cors": ("envoy.filters.http.cors", "cors.v3.Cors", "cors.v3.CorsPolicy"),
    "fault": ("envoy.filters.http.fault", "fault.v3.HTTPFault", "fault.v3.HTTPFault"),
    "limit": (
        "envoy.filters.http.local_ratelimit", "local_ratelimit.v3.LocalRateLimit", "local_ratelimit.v3.LocalRateLimit",
    ),
    "mutation": (
        "envoy.filters.http.header_mutation", "header_mutation.v3.HeaderMutation",
        "header_mutation.v3.HeaderMutationPerRoute",
    ),
    "health": ("envoy.filters.http.health_check", "health_check.v3.HealthCheck", None),
    "buffer": ("envoy.filters.http.buffer", "buffer.v3.Buffer", "buffer.v3.BufferPerRoute"),
    "compressor": ("envoy.filters.http.compressor", "compressor.v3.Compressor", "compressor.v3.CompressorPerRoute"),
    "grpc_stats": ("envoy.filters.http.grpc_stats", "grpc_stats.v3.FilterConfig", None),
    "grpc_web": ("envoy.filters.http.grpc_web", "grpc_web.v3.GrpcWeb", None),
    "ext_authz": ("envoy.filters.http.ext_authz", "ext_authz.v3.ExtAuthz", "ext_authz.v3.ExtAuthzPerRoute"),
    "jwt": ("envoy.filters.http.jwt_authn", "jwt_authn.v3.JwtAuthentication", "jwt_authn.v3.PerRouteConfig"),
    "ratelimit": ("envoy.filters.http.ratelimit", "ratelimit.v3.RateLimit", "ratelimit.v3.RateLimitPerRoute"),
}
ROUTER = {"name": "envoy.filters.http.router", "typed_config": {"@type": HTTP + "router.v3.Router"}}
PROTOCOLS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
TCP_PROXY = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
FILE_LOG = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"

LOG_FIELDS = {
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(:PATH)%",
    "original": "%REQ(X-ENVOY-ORIGINAL-PATH)%",
    "authority": "%REQ(:AUTHORITY)%",
    "scheme": "%REQ(:SCHEME)%",
    "protocol": "%PROTOCOL%",
    "code": "%RESPONSE_CODE%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "flags": "%RESPONSE_FLAGS%",
    "flags_long": "%RESPONSE_FLAGS_LONG%",
    "termination": "%CONNECTION_TERMINATION_DETAILS%",
    "received": "%BYTES_RECEIVED%",
    "sent": "%BYTES_SENT%",
    "cluster": "%UPSTREAM_CLUSTER%",
    "host": "%UPSTREAM_HOST%",
    "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "upstream_protocol": "%UPSTREAM_PROTOCOL%",
    "route": "%ROUTE_NAME%",
    "grpc": "%GRPC_STATUS%",
    "grpc_number": "%GRPC_STATUS_NUMBER%",
    "remote": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "direct": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
    "local": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "forwarded": "%REQ(X-FORWARDED-FOR)%",
    "server": "%RESP(SERVER)%",
    "id": "%REQ(X-REQUEST-ID)%",
    "type": "%ACCESS_LOG_TYPE%",
}
TCP_LOG_FIELDS = (
    "flags flags_long termination received sent cluster host failure remote direct local type protocol code details"
).split()


class Scene:
    """A scene: its parts of the bootstrap and its cases."""

    def __init__(self, area, spec, ports):
        spec = dict(spec)
        self.area = area
        self.name = spec.pop("scene")
        if "_" in self.name or "_" in area:
            raise ValueError(f"{area}/{self.name}: no underscores in names")
        self.ident = f"{area}_{self.name}"
        self.http = spec.pop("http", 1)
        self.host = spec.pop("host", "d.test")
        self.up_http = spec.pop("up_http", 1)
        # `exact`: hosts are compared by name; `order`: by the order of their first use; `any`: they are not compared.
        self.hosts = spec.pop("hosts", "exact")
        self.without_pools = spec.pop("without_pools", False)
        # Statistics (regular expressions) that this scene leaves out, each with its reason in the file.
        self.ignore_stats = [re.compile(text) for text in spec.pop("ignore_stats", [])]
        # Clusters whose requests come beside others, in no order; and those whose bodies are protobuf with times in it.
        self.beside = spec.pop("beside", [])
        self.protobuf = spec.pop("protobuf", [])
        self.manager = spec.pop("hcm", {})
        self.tcp = spec.pop("tcp", None)
        self.opaque = self.tcp is not None
        self.filters = spec.pop("filters", [])
        self.routes = spec.pop("routes", [{"match": {"prefix": "/"}, "route": {"cluster": "$up"}}])
        self.vhosts = spec.pop("vhosts", None)
        self.route_config = spec.pop("route_config", {})
        self.listener = spec.pop("listener", {})
        self.log = spec.pop("log", {})
        self.clusters = spec.pop("clusters", {"up": {}})
        self.default_answer = spec.pop("up", None)
        self.pause = spec.pop("pause", 0)
        self.port = next(ports)
        self.endpoints = {}
        for cluster, options in self.clusters.items():
            options = self.clusters[cluster] = dict(options or {})
            kinds = options.pop("endpoints", 1)
            kinds = [{}] * kinds if isinstance(kinds, int) else [{"kind": k} if isinstance(k, str) else dict(k) for k in kinds]
            options["kinds"] = kinds
            self.endpoints |= {f"{cluster}.{n}": next(ports) for n in range(len(kinds))}
        self.cases = [Case(self, case) for case in self.expand(spec.pop("cases"))]
        if spec:
            raise ValueError(f"{self.ident}: unknown members {sorted(spec)}")
        names = [case.name for case in self.cases]
        for name in {n for n in names if names.count(n) > 1}:
            for number, case in enumerate([c for c in self.cases if c.name == name], 1):
                case.name += f" #{number}"

    @staticmethod
    def expand(cases):
        """Cases with `for` are a product: {for: {x: [1, 2]}, send: "GET /{x}"}."""
        for case in cases:
            if isinstance(case, dict) and "for" in case:
                case = dict(case)
                axes = case.pop("for")
                text = json.dumps(case)
                for values in itertools.product(*axes.values()):
                    one = text
                    for name, value in zip(axes, values):
                        value = value if isinstance(value, str) else json.dumps(value)
                        one = one.replace(f'"<<{name}>>"', value if not isinstance(value, str) or value.lstrip("-").isdigit() else json.dumps(value))
                        one = one.replace(f"<<{name}>>", json.dumps(value)[1:-1])
                    yield json.loads(one)
            else:
                yield case

    def fill(self, value):
        """Names of this scene: $cluster, $$ its own name, @cluster.0 a port."""
        text = json.dumps(value)
        text = text.replace("$$", self.ident)
        text = re.sub(r"\$(\w+)", lambda m: f"{self.ident}_{m[1]}" if m[1] in self.clusters else m[0], text)
        text = re.sub(r'"@([\w-]+\.\d+)"', lambda m: str(self.endpoints[m[1]]), text)
        text = re.sub(r"@([\w-]+\.\d+)", lambda m: str(self.endpoints[m[1]]) if m[1] in self.endpoints else m[0], text)
        return json.loads(text.replace("@port", str(self.port)))

    def bootstrap_listener(self, address, log_path):
        log = [{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": FILE_LOG, "path": log_path,
                "log_format": {"text_format_source": {"inline_string": self.log_line()}},
            },
        } | self.log.get("filter", {})]
        if self.opaque:
            config = {"stat_prefix": self.ident, "access_log": log} | self.tcp
            network = config.pop("network", [])
            chain = [*network, {"name": "envoy.filters.network.tcp_proxy", "typed_config": {"@type": TCP_PROXY, **config}}]
        else:
            chain = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": self.manager_config(log)}]
        listener = {
            "name": self.ident,
            "stat_prefix": self.ident,
            "address": {"socket_address": {"address": address, "port_value": self.port}},
            "filter_chains": [{"filters": chain}],
        }
        return self.fill(merged(listener, self.listener))

    def log_line(self):
        wanted = TCP_LOG_FIELDS if self.opaque else LOG_FIELDS
        fields = {name: LOG_FIELDS[name] for name in wanted} | self.log.get("fields", {})
        for name in self.log.get("without", []):
            fields.pop(name)
        return self.ident + "".join(f"\t{name}={operator}" for name, operator in fields.items()) + "\n"

    def manager_config(self, log):
        hosts = self.vhosts or [{"name": "all", "domains": ["*"], "routes": self.routes}]
        hosts = [self.with_settings(dict(host)) for host in hosts]
        for host in hosts:
            host["routes"] = [self.with_settings(route) for route in host.get("routes", [])]
        config = {
            "@type": MANAGER,
            "stat_prefix": self.ident,
            "codec_type": "AUTO",
            "access_log": log,
            "route_config": self.with_settings({"name": "r", "virtual_hosts": hosts} | self.route_config),
            "http_filters": [self.filter(spec) for spec in self.filters] + [ROUTER],
        }
        return merged(config, self.manager)

    def filter(self, spec):
        """`{short name: configuration}`, or a filter as Envoy writes it."""
        if "name" in spec:
            return spec
        [(short, config)] = spec.items()
        config = dict(config or {})
        kind = short.split("/")[0]
        name, message, _ = FILTERS[kind]
        outer = {key: config.pop("_" + key) for key in ("disabled", "is_optional", "name") if "_" + key in config}
        return {"name": name if kind == short else short, "typed_config": {"@type": HTTP + message, **config}} | outer

    @staticmethod
    def with_settings(level):
        """`per: {short name: settings}` becomes typed_per_filter_config; so in weighted clusters."""
        level = dict(level)
        if "per" in level:
            typed = {}
            for short, config in level.pop("per").items():
                name, _, message = FILTERS[short.split("/")[0]]
                name = name if "/" not in short else short
                if set(config) <= {"disabled", "config", "is_optional"} and config:
                    inner = dict(config)
                    if "config" in inner:
                        inner["config"] = {"@type": HTTP + message, **inner["config"]}
                    typed[name] = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", **inner}
                else:
                    typed[name] = {"@type": HTTP + message, **config}
            level["typed_per_filter_config"] = typed
        weighted = level.get("route", {}).get("weighted_clusters")
        if weighted:
            clusters = [Scene.with_settings(cluster) for cluster in weighted["clusters"]]
            level["route"] = level["route"] | {"weighted_clusters": weighted | {"clusters": clusters}}
        return level

    def bootstrap_clusters(self):
        result = []
        for name, options in self.clusters.items():
            options = dict(options)
            localities = {}
            for number, endpoint in enumerate(options.pop("kinds")):
                endpoint = dict(endpoint)
                endpoint.pop("kind", None)
                key = json.dumps({k: endpoint.pop(k) for k in ("locality", "priority", "locality_weight") if k in endpoint})
                inner = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": self.endpoints[f"{name}.{number}"]}}}
                if "hostname" in endpoint:
                    inner["hostname"] = endpoint.pop("hostname")
                if "health_check_config" in endpoint:
                    inner["health_check_config"] = endpoint.pop("health_check_config")
                localities.setdefault(key, []).append({"endpoint": inner} | endpoint)
            groups = []
            for key, hosts in localities.items():
                group = json.loads(key)
                if "locality_weight" in group:
                    group["load_balancing_weight"] = group.pop("locality_weight")
                groups.append(group | {"lb_endpoints": hosts})
            full = f"{self.ident}_{name}"
            http = options.pop("http", self.up_http)
            protocols = options.pop("protocols", {})
            assignment = {"cluster_name": full, "endpoints": groups} | options.pop("assignment", {})
            cluster = {"name": full, "connect_timeout": "2s", "type": "STATIC", "load_assignment": assignment}
            if http == 2:
                protocols = merged({"explicit_http_config": {"http2_protocol_options": {}}}, protocols)
            elif http == "downstream":
                protocols = merged({"use_downstream_protocol_config": {"http2_protocol_options": {}}}, protocols)
            elif protocols:
                protocols = merged({"explicit_http_config": {"http_protocol_options": {}}}, protocols)
            if protocols:
                cluster["typed_extension_protocol_options"] = {
                    PROTOCOLS: {"@type": "type.googleapis.com/" + PROTOCOLS} | protocols,
                }
            cluster |= options
            cluster = {key: value for key, value in cluster.items() if value is not None}
            result.append(self.fill(cluster))
        return result

    def stats_filter(self):
        return rf"(^|\.){re.escape(self.ident)}([._]|$)"


def merged(base, over):
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: merged(base.get(key), value) for key, value in over.items()}
    return over


class Case:
    """Exchanges, and what upstreams answer."""

    def __init__(self, scene, spec):
        spec = {"send": spec} if isinstance(spec, str) else dict(spec)
        self.scene = scene
        send = spec.pop("send", None)
        self.raw = spec.pop("raw", None)
        self.http = spec.pop("http", scene.http)
        self.method = spec.pop("method", "GET")
        times = spec.pop("times", 1)
        sends = [send] if isinstance(send, str) else list(send or [])
        self.sends = sends * times
        # On one connection after one another; otherwise each has a connection of its own.
        self.keep = spec.pop("keep", False)
        self.pause = spec.pop("pause", 0)
        up = spec.pop("up", scene.default_answer)
        self.answers = {}
        if isinstance(up, dict) and up and set(up) <= set(scene.endpoints) | set(scene.clusters):
            self.answers = {key: self.list(value) for key, value in up.items()}
            up = None
        self.answer = self.list(up)
        default = sends[0] if sends else (self.raw if isinstance(self.raw, str) else str(self.raw))
        self.name = str(spec.pop("name", default.strip().replace("\r\n", "|").replace("\n", "|")))[:110]
        self.same_conn = spec.pop("same", None)
        options = "abandon responses tunnel together code pause_body endless trailers count goaway".split()
        self.options = {key: spec.pop(key) for key in options if key in spec}
        if "pause_body" in self.options:
            self.options["pause"] = self.options.pop("pause_body")
        if spec:
            raise ValueError(f"{scene.ident}: {self.name}: unknown members {sorted(spec)}")
        if self.raw is None:
            self.requests = [self.request(text) for text in self.sends]
        else:
            parts = [self.raw] if isinstance(self.raw, str) else self.raw
            self.requests = [(scene.fill(parts), self.method, self.options)]

    @staticmethod
    def list(up):
        for answer in up if isinstance(up, list) else [up]:
            Answer(answer)
        return up if isinstance(up, list) else [up]

    def request(self, text):
        """A request of its short form: method and path, header fields, an empty line, the body."""
        text = self.scene.fill(text)
        head, has_body, body = text.partition("\n\n")
        lines = head.strip("\n").split("\n")
        method, _, path = lines[0].partition(" ")
        fields = pairs(lines[1:])
        names = [name.lower() for name, _ in fields]
        if self.http == 2:
            plain = [(name.lower(), value) for name, value in fields if not name.startswith(":") and name != "host"]
            pseudo = {":method": method, ":scheme": "http", ":authority": self.scene.host, ":path": path}
            if method == "CONNECT" and ":protocol" not in names:
                pseudo = {":method": method, ":authority": path}
            host = [value for name, value in fields if name.lower() == "host"]
            if host:
                pseudo[":authority"] = host[0]
            pseudo |= {name: value for name, value in fields if name.startswith(":")}
            pseudo = {name: value for name, value in pseudo.items() if value != "-"}
            body_or_none = body if has_body else None
            return list(pseudo.items()) + plain, body_or_none, pairs(self.options.get("trailers", [])), self.options
        if "host" not in names:
            fields.insert(0, ("Host", self.scene.host))
        fields = [(name, value) for name, value in fields if value != "-"]
        if has_body and "content-length" not in names and "transfer-encoding" not in names:
            fields.append(("Content-Length", str(len(body))))
        wire = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields) + "\r\n"
        parts = [wire + body]
        if "pause" in self.options:
            parts = [wire, self.options["pause"], body]
        return parts, method, self.options


def load(directory, ports, only=None):
    scenes = []
    for path in sorted(Path(directory).glob("*.yaml")):
        document = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for spec in document["scenes"]:
            scenes.append(Scene(path.stem, spec, ports))
    if only:
        pattern = re.compile(only)
        scenes = [scene for scene in scenes if pattern.search(scene.ident)]
    idents = [scene.ident for scene in scenes]
    doubles = {ident for ident in idents if idents.count(ident) > 1}
    if doubles:
        raise ValueError(f"scenes of the same name: {doubles}")
    return scenes


__all__ = ["Scene", "Case", "load", "urllib"]

"""What must differ between two proxies is made equal here; the rest is compared."""
import re

# A trace and a span that requests of the cases name.
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
# Each of these must differ between two runs of the same proxy. Everything else is compared as it is, and so is what a
# group of the pattern keeps.
VARIABLE_HEADERS = {
    "date": (r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", "<now>"),
    # random but for the digit that says why it is traced
    "x-request-id": (r"[0-9a-f]{8}-[0-9a-f]{4}-([49ab])[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", r"<uuid \1>"),
    "traceparent": (rf"00-(?:({TRACE})|[0-9a-f]{{32}})-[0-9a-f]{{16}}-(0[01])", r"00-<\1>-<span>-\2"),
    "x-b3-traceid": (rf"(?:({TRACE})|[0-9a-f]{{16}}|[0-9a-f]{{32}})", r"<\1>"),
    "x-b3-spanid": (r"[0-9a-f]{16}", "<span>"),
    "x-b3-parentspanid": (rf"(?:({SPAN})|[0-9a-f]{{16}})", r"<\1>"),
    "x-envoy-upstream-service-time": (r"\d+", "<measured>"),
    # what is left of the default of 15 s after an attempt, which may have taken less than a millisecond
    "x-envoy-expected-rq-timeout-ms": (r"14\d{3}|15000", "<15 s>"),
}
VARIABLE_HEADERS = {name: (re.compile(pattern), text) for name, (pattern, text) in VARIABLE_HEADERS.items()}
# The proxies listen on the same ports of different addresses.
ADDRESSES = re.compile(r"127\.0\.0\.[23]\b")
# The number that a request has in `envoy.service.auth.v3.CheckRequest`.
REQUEST_ID = "1.4.2.1: "
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[49ab][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

# Statistics that are not compared, and why.
# Process-wide ones (`http1.`, `http2.`, `server.`, `runtime.`, `listener_manager.`, ...) are none of a scene's: the scenes
# play side by side. Gauges and histograms are states and times, not what a request touched.
NOT_COMPARED = [
    (r"\.(downstream|upstream)_cx_(rx|tx)_bytes_(total|buffered)$", "bytes of HTTP/2 framing depend on the codec"),
    (r"\.http[12]\.", "events inside the codec: oghttp2 and Balsa count other ones than h2 and Culvert's parser"),
    (r"\.default\.total_match_count$", "how often a transport socket was looked for, a matter of the implementation"),
    (r"\.downstream_cx_delayed_close_timeout$",
     "Culvert half-closes after its last response, so a client that waits for the end needs no timeout to see it"),
]


def headers(fields):
    """By name, the values in their order; which of two different names comes first means nothing."""
    result = {}
    for name, value in fields:
        pattern, text = VARIABLE_HEADERS.get(name.lower(), (None, None))
        if pattern and (found := pattern.fullmatch(value)):
            value = found.expand(text)
        result.setdefault(name, []).append(ADDRESSES.sub("<proxy>", value))
    return dict(sorted(result.items()))


def exchange(result):
    result = dict(result)
    for key in ("headers", "trailers"):
        if key in result:
            result[key] = headers(result[key])
    if "informational" in result:
        result["informational"] = [one | {"headers": headers(one["headers"])} for one in result["informational"]]
    for key in ("body", "bytes"):
        if key in result:
            result[key] = ADDRESSES.sub("<proxy>", result[key])
    return result


class Names:
    """Endpoints and connections of a scene, by the rule of the scene."""

    def __init__(self, scene):
        self.scene, self.hosts, self.conns = scene, {}, {}

    def host(self, label):
        if self.scene.hosts == "any":
            return "<any>"
        if self.scene.hosts == "order":
            return self.hosts.setdefault(label, f"host-{len(self.hosts)}")
        return label

    def connection(self, ident):
        """By the order of their first use in a case; whether a case found one open shows in `upstream_cx_total`."""
        return self.conns.setdefault(ident, f"connection-{len(self.conns)}")


def received(record, names):
    result = {key: value for key, value in record.items() if key not in ("answer", "open")}
    if record["host"].rpartition(".")[0] in names.scene.protobuf:
        # Times and ports are in it, so the texts in it are compared.
        texts = protobuf_texts(result["body"].encode("latin-1")[5:])
        result["body"] = sorted(UUID.sub("<uuid>", ADDRESSES.sub("<proxy>", text)) for text in texts)
    result["host"] = names.host(record["host"])
    if names.scene.hosts == "any" or names.scene.without_pools:
        result.pop("conn")
    else:
        result["conn"] = names.connection(record["conn"])
    for key in ("headers", "trailers"):
        if key in result:
            result[key] = headers(result[key])
    return result


def protobuf_texts(data, path=""):
    """The texts in a message of protobuf, each behind the numbers of the fields that lead to it."""
    texts, at = [], 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        here = f"{path}.{key >> 3}" if path else str(key >> 3)
        if key & 7 == 0:
            varint()
        elif key & 7 == 2:
            size = varint()
            part = data[at : at + size]
            at += size
            if len(part) < size:
                raise ValueError("cut")
            try:
                texts += protobuf_texts(part, here) if part else []
            except (ValueError, IndexError):
                texts.append(f"{here}: {part.decode('latin-1')}")
        else:
            raise ValueError("no message")
    return [text for text in texts if not text.startswith(REQUEST_ID)]


def log_line(text, names):
    fields = dict(field.partition("=")[::2] for field in text.split("\t"))
    for name, value in fields.items():
        value = ADDRESSES.sub("<proxy>", value)
        if name == "host":
            ports = {str(port): label for label, port in names.scene.endpoints.items()}
            port = value.rpartition(":")[2]
            value = names.host(ports[port]) if port in ports else value
        fields[name] = UUID.sub("<uuid>", value)
    return fields


def excluded(name, scene):
    return any(re.search(pattern, name) for pattern, _ in NOT_COMPARED) or any(p.search(name) for p in scene.ignore_stats)


def differences(expected, got, path=""):
    """Where two results differ: (path, expected, got)."""
    if expected == got:
        return
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in sorted(set(expected) | set(got), key=str):
            yield from differences(expected.get(key), got.get(key), f"{path}/{key}")
    elif isinstance(expected, list) and isinstance(got, list) and any(isinstance(x, dict) for x in expected + got):
        for index in range(max(len(expected), len(got))):
            one = [side[index] if index < len(side) else None for side in (expected, got)]
            yield from differences(*one, f"{path}/{index}")
    else:
        yield path, expected, got

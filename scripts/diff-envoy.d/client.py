"""Clients that send exactly what a case says and keep what comes back."""
import asyncio
import socket
import struct

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

# How long a client waits for the next byte. A guard: no case depends on it.
PATIENCE = 8
CLIENT = "127.0.0.9"


class Reader(asyncio.StreamReader):
    """What arrived before a reset can still be read; a reset is then an end like any other."""

    def set_exception(self, _error):
        self.feed_eof()


async def connect(address, port):
    loop = asyncio.get_running_loop()
    reader = Reader(limit=1 << 20)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.create_connection(lambda: protocol, address, port, local_addr=(CLIENT, 0))
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def abort(writer):
    """A reset: a FIN would only say that there are no more requests."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def send_parts(writer, parts):
    """Strings are bytes, numbers are pauses in seconds, `half-close` is a FIN."""
    for part in parts:
        if isinstance(part, (int, float)):
            await asyncio.sleep(part)
        elif part == "half-close":
            writer.write_eof()
        else:
            writer.write(part.encode("latin-1"))
            await writer.drain()


async def http1(address, port, requests, once_answered):
    """Requests after one another on one connection; each is (parts, method, options). Gives a list of what came back."""
    reader, writer = await connect(address, port)
    results = []
    try:
        for parts, method, options in requests:
            sending = asyncio.ensure_future(send_parts(writer, parts))
            try:
                if "abandon" in options:
                    await asyncio.wait_for(sending, PATIENCE)
                    await asyncio.sleep(options["abandon"])
                    results.append({"abandoned": True})
                    abort(writer)
                    break
                for _ in range(options.get("responses", 1)):
                    result = await asyncio.wait_for(response(reader, method), PATIENCE)
                    results.append(result)
                    if result.get("upgraded"):
                        await exchange_bytes(reader, writer, options, result)
                    if result.get("closed"):
                        break
            except (asyncio.TimeoutError, ConnectionError) as error:
                results.append({"error": type(error).__name__})
                break
            finally:
                if not sending.done():
                    sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            if results[-1].get("closed"):
                break
            await once_answered()
    finally:
        writer.close()
    return results


async def exchange_bytes(reader, writer, options, result):
    """The bytes of an upgraded connection."""
    text = options.get("tunnel", "")
    writer.write(text.encode("latin-1"))
    got = b""
    while len(got) < len(text):
        part = await asyncio.wait_for(reader.read(65536), PATIENCE)
        if not part:
            break
        got += part
    result["tunnel"] = got.decode("latin-1")
    result["closed"] = True


async def opaque(address, port, parts, count):
    """Sends bytes and reads until `count` came, or the connection ended."""
    reader, writer = await connect(address, port)
    got, result = b"", {}
    try:
        await send_parts(writer, parts)
        while len(got) < count:
            data = await asyncio.wait_for(reader.read(65536), PATIENCE)
            if not data:
                result["closed"] = True
                break
            got += data
    except (asyncio.TimeoutError, ConnectionError) as error:
        result["error"] = type(error).__name__
    finally:
        writer.close()
    result["bytes"] = got.decode("latin-1")
    return [result]


async def response(reader, method):
    result = {}
    while True:
        line = await reader.readline()
        if not line:
            return {"closed": True, "status": None}
        status = line.rstrip(b"\r\n").decode("latin-1")
        fields = await head(reader)
        code = int(status.split(" ")[1])
        if code >= 200 or code == 101:
            break
        result.setdefault("informational", []).append({"line": status, "headers": fields})
    result |= {"line": status, "headers": fields, "status": code}
    lower = {}
    for name, value in fields:
        lower.setdefault(name.lower(), []).append(value)
    if code == 101 or (method == "CONNECT" and code == 200):
        return result | {"upgraded": True, "body": ""}
    closes = "close" in lower.get("connection", [])
    body = b""
    if method == "HEAD" or code in (204, 304):
        pass
    elif lower.get("transfer-encoding") == ["chunked"]:
        try:
            while size := int((await reader.readline()).split(b";")[0] or b"x", 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            trailers = await head(reader)
            if trailers:
                result["trailers"] = trailers
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            result |= {"cut": True, "closed": True}
    elif "content-length" in lower:
        try:
            body += await reader.readexactly(int(lower["content-length"][0]))
        except asyncio.IncompleteReadError as error:
            body += error.partial
            result |= {"cut": True, "closed": True}
        except ConnectionError:
            result |= {"cut": True, "closed": True}
    else:
        body = await reader.read(-1)
        result["closed"] = True
    result["body"] = body.decode("latin-1")
    if closes and not result.get("closed"):
        rest = await reader.read(-1)
        result["closed"] = True
        if rest:
            result["more"] = rest.decode("latin-1")
    return result


async def head(reader):
    fields = []
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.rstrip(b"\r\n").decode("latin-1").partition(":")
        fields.append((name, value.strip(" \t")))
    return fields


async def http2(address, port, requests, once_answered):
    """Requests after one another, or at the same time with the option `together`, on one connection. Each is
    (fields, body, trailers, options)."""
    reader, writer = await connect(address, port)
    config = h2.config.H2Configuration(
        client_side=True, header_encoding="latin-1", validate_outbound_headers=False,
        normalize_outbound_headers=False, validate_inbound_headers=False, normalize_inbound_headers=False,
    )
    conn = h2.connection.H2Connection(config)
    conn.local_settings.enable_push = 0
    conn.initiate_connection()
    results, streams = [], {}

    async def read_until(done):
        while not done():
            writer.write(conn.data_to_send())
            data = await asyncio.wait_for(reader.read(65536), PATIENCE)
            if not data:
                for result in streams.values():
                    if "ended" not in result:
                        result["closed"] = True
                return
            for event in conn.receive_data(data):
                handle(event)

    def handle(event):
        result = streams.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.ConnectionTerminated):
            for result in streams.values():
                if "ended" not in result:
                    result["goaway"] = int(event.error_code)
        if result is None:
            return
        if isinstance(event, h2.events.InformationalResponseReceived):
            result.setdefault("informational", []).append({"headers": list(event.headers)})
        elif isinstance(event, h2.events.ResponseReceived):
            result["headers"] = list(event.headers)
            result["status"] = int(dict(event.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived):
            result["body"] += event.data.decode("latin-1")
            conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            result["trailers"] = list(event.headers)
        elif isinstance(event, h2.events.StreamReset):
            result |= {"reset": int(event.error_code), "ended": True}
        elif isinstance(event, h2.events.StreamEnded):
            result["ended"] = True

    async def start(fields, body, trailers, options):
        stream = conn.get_next_available_stream_id()
        result = streams[stream] = {"body": ""} | ({"say_goodbye": True} if options.get("goaway") else {})
        results.append(result)
        conn.send_headers(stream, fields, end_stream=body is None and not trailers)
        data = (body or "").encode("latin-1")
        if "pause" in options:
            writer.write(conn.data_to_send())
            await asyncio.sleep(options["pause"])
        while data and "ended" not in result:
            room = min(conn.local_flow_control_window(stream), conn.max_outbound_frame_size)
            if room <= 0:
                before = conn.local_flow_control_window(stream)
                await read_until(lambda: conn.local_flow_control_window(stream) != before or "ended" in result)
                continue
            conn.send_data(stream, data[:room])
            data = data[room:]
        if "ended" not in result:
            if trailers:
                conn.send_headers(stream, trailers, end_stream=True)
            elif body is not None and not options.get("endless"):
                conn.end_stream(stream)
        writer.write(conn.data_to_send())
        return stream, result

    try:
        for fields, body, trailers, options in requests:
            stream, result = await start(fields, body, trailers, options)
            if "abandon" in options:
                writer.write(conn.data_to_send())
                await asyncio.sleep(options["abandon"])
                conn.reset_stream(stream, options.get("code", 8))
                writer.write(conn.data_to_send())
                await writer.drain()
                result |= {"abandoned": True, "ended": True}
            if not options.get("together"):
                await read_until(lambda: all("ended" in r or "closed" in r for r in results))
                await once_answered()
        await read_until(lambda: all("ended" in r or "closed" in r for r in results))
    except (asyncio.TimeoutError, ConnectionError, h2.exceptions.ProtocolError) as error:
        results.append({"error": type(error).__name__})
    finally:
        try:
            if results and results[-1].get("say_goodbye"):
                conn.close_connection()
            writer.write(conn.data_to_send())
        except (ConnectionError, h2.exceptions.ProtocolError):
            pass
        writer.close()
    for result in results:
        result.pop("ended", None)
    return results

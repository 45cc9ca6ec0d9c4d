"""Upstreams that answer as a case says and keep what they received."""
import asyncio
import socket
import struct

import h2.config
import h2.connection
import h2.events
import h2.exceptions

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Answer:
    """What an upstream does with one request. A bare number is a status."""

    def __init__(self, spec):
        spec = {} if spec is None else {"status": spec} if isinstance(spec, int) else dict(spec)
        self.status = spec.pop("status", 200)
        self.reason = spec.pop("reason", "OK")
        self.headers = pairs(spec.pop("headers", []))
        self.body = spec.pop("body", "ok").encode("latin-1")
        self.chunked = spec.pop("chunked", False)
        self.trailers = pairs(spec.pop("trailers", []))
        self.informational = spec.pop("informational", [])
        # Seconds before the head; seconds between the first half of the body and the second.
        self.delay = spec.pop("delay", 0)
        self.body_delay = spec.pop("body_delay", 0)
        # Where the connection ends: "before" the answer, in the "middle" of its body, "after" it. With a reset or not.
        self.close = spec.pop("close", None)
        self.reset = spec.pop("reset", False)
        # HTTP/2: the error code of a RST_STREAM in place of the answer, or a GOAWAY after it.
        self.rst = spec.pop("rst", None)
        self.goaway = spec.pop("goaway", False)
        # Answers at the head of the request, and does not wait for its body.
        self.early = spec.pop("early", False)
        # Exact bytes in place of everything.
        self.raw = spec.pop("raw", None)
        self.never = spec.pop("never", False)
        if spec:
            raise ValueError(f"unknown members of an answer: {sorted(spec)}")


def pairs(fields):
    """Header fields of a mapping, a list of pairs or a list of 'name: value'."""
    if isinstance(fields, dict):
        return [(str(k), str(v)) for k, v in fields.items()]
    return [split(field) if isinstance(field, str) else (str(field[0]), str(field[1])) for field in fields]


def split(field):
    """A field line; a name may begin with a colon."""
    at = field.index(":", 1)
    return field[:at], field[at + 1 :].strip()


class Upstream:
    """One endpoint: a listening socket whose connections report to the scene."""

    def __init__(self, scene, label, port):
        self.scene, self.label, self.port = scene, label, port
        self.server = None
        self.writers = set()

    async def start(self):
        self.server = await asyncio.start_server(self.connection, "127.0.0.1", self.port, backlog=128)

    async def connection(self, reader, writer):
        self.writers.add(writer)
        ident = self.scene.connection_opened(self.label)
        try:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.scene.opaque:
                await self.opaque(reader, writer, ident)
                return
            first = await reader.read(4)
            while first and len(first) < 4:
                more = await reader.read(4 - len(first))
                if not more:
                    break
                first += more
            if first == PREFACE[:4]:
                await Http2(self, reader, writer, ident).serve(first)
            elif first:
                await Http1(self, reader, writer, ident).serve(first)
        except (ConnectionError, asyncio.IncompleteReadError, h2.exceptions.ProtocolError):
            pass
        finally:
            self.writers.discard(writer)
            self.scene.connection_closed(ident)
            writer.close()

    async def opaque(self, reader, writer, ident):
        record = {"conn": ident, "host": self.label, "bytes": ""}
        self.scene.received.append(record)
        answer = self.scene.next_answer(self.label)
        if answer.raw is not None and answer.early:
            writer.write(answer.raw.encode("latin-1"))
        while data := await reader.read(65536):
            record["bytes"] += data.decode("latin-1")
            if answer.close == "before":
                return
            if record["bytes"].endswith("\n") and answer.raw is not None and not answer.early:
                writer.write(answer.raw.encode("latin-1"))
                if answer.close == "after":
                    return

    def stop(self):
        self.server.close()
        for writer in self.writers:
            writer.close()


def abort(writer):
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Http1:
    def __init__(self, upstream, reader, writer, ident):
        self.upstream, self.reader, self.writer, self.ident = upstream, reader, writer, ident
        self.scene = upstream.scene

    async def serve(self, first):
        while True:
            line = first + await self.reader.readline()
            first = b""
            if not line.endswith(b"\n"):
                return
            head = []
            while (field := await self.reader.readline()) not in (b"\r\n", b""):
                name, _, value = field.rstrip(b"\r\n").decode("latin-1").partition(":")
                head.append((name, value.strip(" \t")))
            record = {
                "conn": self.ident,
                "host": self.upstream.label,
                "line": line.rstrip(b"\r\n").decode("latin-1"),
                "headers": head,
                "body": "",
            }
            self.scene.received.append(record)
            answer = self.scene.next_answer(self.upstream.label)
            record["open"] = True
            try:
                if not await self.exchange(record, answer):
                    return
            finally:
                del record["open"]

    async def exchange(self, record, answer):
        fields = {}
        for name, value in record["headers"]:
            fields.setdefault(name.lower(), []).append(value)
        if "100-continue" in fields.get("expect", []):
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not answer.early:
            await self.body(record, fields)
        if answer.never:
            await self.reader.read(1)
            record["cut"] = True
            return False
        if answer.delay:
            if not await self.pause(answer.delay):
                record["cut"] = True
                return False
        if answer.close == "before":
            if answer.reset:
                abort(self.writer)
            return False
        await self.answer(record, answer)
        if answer.early and not answer.close:
            await self.body(record, fields)
        return answer.close is None and answer.raw is None or answer.raw is not None and answer.close is None

    async def pause(self, seconds):
        """False when the other side closed meanwhile."""
        end = asyncio.get_running_loop().time() + seconds
        while (now := asyncio.get_running_loop().time()) < end:
            if self.reader.at_eof() or self.reader.exception():
                return False
            await asyncio.sleep(min(0.01, end - now))
        return True

    async def body(self, record, fields):
        body = b""
        try:
            if "chunked" in fields.get("transfer-encoding", []):
                while size := int((await self.reader.readline()).split(b";")[0], 16):
                    body += await self.reader.readexactly(size)
                    record["body"] = body.decode("latin-1")
                    await self.reader.readexactly(2)
                trailers = []
                while (field := await self.reader.readline()) not in (b"\r\n", b""):
                    name, _, value = field.rstrip(b"\r\n").decode("latin-1").partition(":")
                    trailers.append((name, value.strip()))
                if trailers:
                    record["trailers"] = trailers
            elif "content-length" in fields:
                left = int(fields["content-length"][0])
                while left:
                    part = await self.reader.read(left)
                    if not part:
                        raise asyncio.IncompleteReadError(b"", left)
                    body += part
                    record["body"] = body.decode("latin-1")
                    left -= len(part)
            elif "upgrade" in fields or record["line"].startswith("CONNECT"):
                pass
        except (asyncio.IncompleteReadError, ValueError):
            record["cut"] = True
            raise ConnectionResetError from None
        record["body"] = body.decode("latin-1")

    async def answer(self, record, answer):
        if answer.raw is not None:
            self.writer.write(answer.raw.encode("latin-1"))
            await self.writer.drain()
            if answer.raw.startswith("HTTP/1.1 101") or record["line"].startswith("CONNECT"):
                while data := await self.reader.read(65536):
                    record["body"] += data.decode("latin-1")
                    self.writer.write(data)
            return
        for status in answer.informational:
            self.writer.write(f"HTTP/1.1 {status} Info\r\nx-info: {status}\r\n\r\n".encode())
        names = {name.lower() for name, _ in answer.headers}
        text = f"HTTP/1.1 {answer.status} {answer.reason}\r\n"
        text += "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
        chunked = answer.chunked or bool(answer.trailers)
        bare = record["line"].startswith("HEAD") or answer.status in (204, 304)
        if answer.status != 204 and answer.status != 304 and "content-length" not in names:
            text += "transfer-encoding: chunked\r\n" if chunked else f"content-length: {len(answer.body)}\r\n"
        self.writer.write(text.encode("latin-1") + b"\r\n")
        if bare:
            return
        body = answer.body
        parts = [body]
        if answer.body_delay or answer.close == "middle":
            parts = [body[: len(body) // 2], body[len(body) // 2 :]]
        for index, part in enumerate(parts):
            if index == 1:
                await self.writer.drain()
                if answer.close == "middle":
                    await asyncio.sleep(0.05)
                    if answer.reset:
                        abort(self.writer)
                    return
                if not await self.pause(answer.body_delay):
                    record["cut"] = True
                    return
            if part:
                self.writer.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
        if chunked:
            ends = "".join(f"{name}: {value}\r\n" for name, value in answer.trailers)
            self.writer.write(b"0\r\n" + ends.encode("latin-1") + b"\r\n")
        await self.writer.drain()


class Http2:
    def __init__(self, upstream, reader, writer, ident):
        self.upstream, self.reader, self.writer, self.ident = upstream, reader, writer, ident
        self.scene = upstream.scene
        config = h2.config.H2Configuration(
            client_side=False, header_encoding="latin-1", validate_inbound_headers=False,
            normalize_inbound_headers=False, validate_outbound_headers=False, normalize_outbound_headers=False,
        )
        self.conn = h2.connection.H2Connection(config)
        self.streams = {}
        self.tasks = set()

    async def serve(self, first):
        self.conn.initiate_connection()
        self.flush()
        data = first
        while data:
            for event in self.conn.receive_data(data):
                self.handle(event)
            self.flush()
            data = await self.reader.read(65536)
        for record in self.streams.values():
            record.pop("open", None)

    def flush(self):
        self.writer.write(self.conn.data_to_send())

    def handle(self, event):
        if isinstance(event, h2.events.RequestReceived):
            record = {"conn": self.ident, "host": self.upstream.label, "headers": list(event.headers), "body": "",
                      "open": True}
            self.streams[event.stream_id] = record
            record["answer"] = self.scene.next_answer(self.upstream.label)
            self.scene.received.append(record)
            if record["answer"].early:
                self.start(event.stream_id)
        elif isinstance(event, h2.events.DataReceived):
            self.streams[event.stream_id]["body"] += event.data.decode("latin-1")
            self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            self.streams[event.stream_id]["trailers"] = list(event.headers)
        elif isinstance(event, h2.events.StreamReset):
            record = self.streams.get(event.stream_id)
            if record is not None:
                record["reset"] = int(event.error_code)
                record.pop("open", None)
        elif isinstance(event, h2.events.StreamEnded):
            if not self.streams[event.stream_id]["answer"].early:
                self.start(event.stream_id)

    def start(self, stream):
        task = asyncio.ensure_future(self.answer(stream))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, stream):
        record = self.streams[stream]
        answer = record.pop("answer")
        try:
            await self.send(stream, record, answer)
        except (h2.exceptions.ProtocolError, ConnectionError):
            record["cut"] = True
        record.pop("open", None)

    async def send(self, stream, record, answer):
        if answer.never:
            return
        if answer.delay:
            await asyncio.sleep(answer.delay)
        if answer.close == "before":
            if answer.reset:
                abort(self.writer)
            self.writer.close()
            return
        if answer.rst is not None:
            self.conn.reset_stream(stream, answer.rst)
            self.flush()
            return
        for status in answer.informational:
            self.conn.send_headers(stream, [(":status", str(status)), ("x-info", str(status))])
        names = {name.lower() for name, _ in answer.headers}
        fields = [(":status", str(answer.status))] + [(name.lower(), value) for name, value in answer.headers]
        bare = (":method", "HEAD") in record["headers"] or answer.status in (204, 304)
        if not answer.chunked and not answer.trailers and "content-length" not in names and not bare:
            fields.append(("content-length", str(len(answer.body))))
        body = b"" if bare else answer.body
        ends = bare or (not body and not answer.trailers)
        self.conn.send_headers(stream, fields, end_stream=ends)
        self.flush()
        if ends:
            return
        parts = [body]
        if answer.body_delay or answer.close == "middle":
            parts = [body[: len(body) // 2], body[len(body) // 2 :]]
        for index, part in enumerate(parts):
            if index == 1:
                if answer.close == "middle":
                    await asyncio.sleep(0.05)
                    self.writer.close()
                    return
                await asyncio.sleep(answer.body_delay)
            while part:
                room = min(self.conn.local_flow_control_window(stream), self.conn.max_outbound_frame_size)
                if room <= 0:
                    await asyncio.sleep(0.005)
                    continue
                self.conn.send_data(stream, part[:room])
                part = part[room:]
                self.flush()
        if answer.trailers:
            self.conn.send_headers(stream, [(name.lower(), value) for name, value in answer.trailers], end_stream=True)
        else:
            self.conn.end_stream(stream)
        if answer.goaway:
            self.conn.close_connection()
        self.flush()

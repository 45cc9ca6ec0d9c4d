"""The two proxies: their processes, statistics and access logs."""
import asyncio
import json
import os
import re
import subprocess
import urllib.parse
from collections import defaultdict
from pathlib import Path

# How long a proxy may take to start, its counters to settle, and its log lines to come.
START = 60
SETTLE = 2.0
LINES = 15.0


class Proxy:
    """A proxy on an address of its own; otherwise both have the same configuration."""

    def __init__(self, name, address, command, directory, environment=None):
        self.name, self.address, self.command = name, address, command
        self.directory = Path(directory) / name
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log_path = self.directory / "access.log"
        self.environment = environment or {}
        self.lines = defaultdict(list)
        self.read_to = 0
        self.known = set()

    async def start(self, scenes, admin):
        self.admin = admin
        self.log_path.write_text("")
        bootstrap = {
            "node": {"id": "node", "cluster": "cluster"},
            "admin": {"address": {"socket_address": {"address": self.address, "port_value": admin}}},
            "static_resources": {
                "listeners": [scene.bootstrap_listener(self.address, str(self.log_path)) for scene in scenes],
                "clusters": [cluster for scene in scenes for cluster in scene.bootstrap_clusters()],
            },
        }
        path = self.directory / "bootstrap.json"
        path.write_text(json.dumps(bootstrap, indent=1))
        output = open(self.directory / "output.log", "wb")
        self.process = subprocess.Popen(
            [*self.command, "-c", str(path), "--concurrency", "1", "--file-flush-interval-msec", "20", "-l", "info"],
            stdout=output, stderr=subprocess.STDOUT, env=os.environ | self.environment,
        )
        for _ in range(START * 20):
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended: " + (self.directory / "output.log").read_text()[-3000:])
            try:
                if "LIVE" in await self.get("/ready"):
                    return
            except OSError:
                pass
            await asyncio.sleep(0.05)
        raise RuntimeError(f"{self.name} does not start")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    async def get(self, path):
        reader, writer = await asyncio.open_connection(self.address, self.admin)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            body = await asyncio.wait_for(reader.read(-1), 30)
        finally:
            writer.close()
        if b"chunked" in head.lower():
            plain, rest = b"", body
            while rest:
                size, _, rest = rest.partition(b"\r\n")
                size = int(size, 16)
                plain, rest = plain + rest[:size], rest[size + 2 :]
                if size == 0:
                    break
            body = plain
        return body.decode()

    async def counters(self, scene):
        filter_ = urllib.parse.quote(scene.stats_filter())
        text = await self.get(f"/stats?type=Counters&usedonly&filter={filter_}")
        return {name: int(value) for name, value in re.findall(r"^(\S+): (\d+)$", text, re.M)}

    async def learn_names(self):
        """All counters that this proxy has."""
        text = await self.get("/stats?type=Counters")
        self.known = set(re.findall(r"^(\S+): \d+$", text, re.M))

    def poll_log(self):
        with open(self.log_path, "rb") as file:
            file.seek(self.read_to)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self.read_to += end
        for line in data[:end].decode("latin-1").splitlines():
            scene, _, rest = line.partition("\t")
            self.lines[scene].append(rest)

    def take_lines(self, scene):
        self.poll_log()
        return self.lines.pop(scene.ident, [])

"""Plays the same cases on Envoy and on culvert and compares what happened. `scripts/diff-envoy` starts it."""
import argparse
import asyncio
import json
import random
import re
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import yaml

import client
import compare
import scene as scenes_module
from proxy import LINES, SETTLE, Proxy
from upstream import Answer, Upstream

HERE = Path(__file__).parent
ADDRESSES = {"envoy": "127.0.0.2", "culvert": "127.0.0.3"}


def free_ports():
    """Ports below those that the kernel gives to connections, free on the addresses used."""
    numbers = list(range(16_000, 32_000))
    random.shuffle(numbers)
    for number in numbers:
        try:
            for address in ("127.0.0.1", *ADDRESSES.values()):
                with socket.socket() as one:
                    one.bind((address, number))
        except OSError:
            continue
        yield number


class Stage:
    """The upstreams of a scene while one proxy plays it."""

    def __init__(self, scene, proxy):
        self.scene, self.proxy = scene, proxy
        self.opaque = scene.opaque
        self.received, self.case, self.used = [], None, {}
        self.connections = self.open_connections = 0
        self.upstreams, self.holes = [], []
        self.names = compare.Names(scene)

    async def start(self):
        for label, port in self.scene.endpoints.items():
            cluster, number = label.rsplit(".", 1)
            kind = self.scene.clusters[cluster]["kinds"][int(number)].get("kind")
            if kind == "dead":
                continue
            if kind == "hole":
                self.holes.append(hole(port))
                continue
            upstream = Upstream(self, label, port)
            await upstream.start()
            self.upstreams.append(upstream)

    def stop(self):
        for upstream in self.upstreams:
            upstream.stop()
        for sockets in self.holes:
            for one in sockets:
                one.close()

    def connection_opened(self, label):
        self.connections += 1
        self.open_connections += 1
        return self.connections

    def connection_closed(self, _ident):
        self.open_connections -= 1

    def next_answer(self, label):
        if self.case is None:
            return Answer(None)
        for key in (label, label.rsplit(".", 1)[0]):
            if key in self.case.answers:
                answers = self.case.answers[key]
                break
        else:
            key, answers = "", self.case.answer
        number = self.used.get(key, 0)
        self.used[key] = number + 1
        return Answer(answers[min(number, len(answers) - 1)])

    async def quiet(self):
        """Until every request that was received has ended."""
        for _ in range(200):
            if not any(record.get("open") for record in self.received):
                return
            await asyncio.sleep(0.005)

    async def play(self, expected):
        before = await self.proxy.counters(self.scene)
        results = {}
        for case in self.scene.cases:
            result, before = await self.play_case(case, before, expected and expected.get(case.name))
            results[case.name] = result
            if self.scene.pause:
                await asyncio.sleep(self.scene.pause)
        return results

    async def play_case(self, case, before, expected):
        self.case, self.used, self.received = case, {}, []
        self.names.conns = {}
        address, port = self.proxy.address, self.scene.port
        if self.opaque:
            calls = [client.opaque(address, port, parts, options.get("count", 1 << 30)) for parts, _, options in case.requests]
        else:
            speak = client.http2 if case.http == 2 and case.raw is None else client.http1
            together = case.options.get("together")
            groups = [case.requests] if case.keep or together else [[request] for request in case.requests]
            calls = [speak(address, port, group, self.quiet) for group in groups]
        exchanges = []
        for call in calls:
            try:
                exchanges += await call
            except ConnectionError as error:
                exchanges.append({"error": type(error).__name__})
            if case.pause:
                await asyncio.sleep(case.pause)
        if self.scene.beside:
            await asyncio.sleep(0.15)
        await self.quiet()
        # What comes beside other requests is put behind them.
        beside = lambda record: record["host"].rpartition(".")[0] in self.scene.beside
        self.received.sort(key=lambda record: (beside(record), beside(record) and record["host"]))
        result = {
            "exchanges": [compare.exchange(one) for one in exchanges],
            "upstream": [compare.received(one, self.names) for one in self.received],
        }
        return await self.settle(result, before, expected)

    async def settle(self, result, before, expected):
        """Waits until counters and log lines are those expected; without expectation, until they stay."""
        lines, last, since, step = [], None, time.monotonic(), 0.03
        while True:
            await asyncio.sleep(step)
            lines += [compare.log_line(one, self.names) for one in self.proxy.take_lines(self.scene)]
            now = await self.proxy.counters(self.scene)
            delta = {
                name: value - before.get(name, 0)
                for name, value in sorted(now.items())
                if value != before.get(name, 0) and not compare.excluded(name, self.scene)
            }
            state = result | {"log": sorted(lines, key=str), "stats": delta}
            waited = time.monotonic() - since
            if expected is not None:
                if state["log"] == expected["log"] and not self.unequal(expected["stats"], delta):
                    return state, now
                missing = len(lines) < len(expected["log"])
                if waited > (LINES if missing else SETTLE):
                    return state, now
                step = min(step * 1.5, 0.4)
            else:
                # One line at least where there was an answer; the rest is as it stays.
                if state == last and waited > 0.25 and (lines or waited > 1.0):
                    return state, now
                if waited > SETTLE:
                    return state, now
                last, step = state, 0.1

    def unequal(self, expected, got):
        return expected != got


def hole(port):
    """A listening socket that takes no more connections: whoever connects hears nothing."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", port))
    one.listen(0)
    fill = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
        fill.append(filler)
    return [one, *fill]


async def play_all(proxy, scenes, expected, jobs, stop_early=None):
    gate = asyncio.Semaphore(jobs)
    results = {}

    async def one(scene):
        async with gate:
            if stop_early is not None and stop_early(results):
                return
            stage = Stage(scene, proxy)
            await stage.start()
            try:
                results[scene.ident] = await stage.play(expected and expected.get(scene.ident))
            finally:
                stage.stop()

    await asyncio.gather(*(one(scene) for scene in scenes))
    return results


class Table:
    """differences.yaml: what differs and stays so."""

    def __init__(self, path):
        self.rows = yaml.safe_load(path.read_text())["differences"]
        for row in self.rows:
            row["used"] = 0
            row["compiled"] = [
                {key: re.compile(str(text), re.S) for key, text in where.items()} for where in row["where"]
            ]

    def explains(self, case, path, expected, got):
        values = {"case": case, "path": path, "envoy": json.dumps(expected), "culvert": json.dumps(got)}
        for row in self.rows:
            if any(all(p.search(values[key]) for key, p in where.items()) for where in row["compiled"]):
                row["used"] += 1
                return True
        return False


def found(scenes, envoy, culvert, table):
    """Differences that no row of the table explains: (case, path, envoy, culvert)."""
    result = []
    for scene in scenes:
        for name, expected in envoy[scene.ident].items():
            if scene.ident not in culvert:
                continue
            case = f"{scene.area}/{scene.name}: {name}"
            for path, one, other in compare.differences(expected, culvert[scene.ident][name]):
                path = path.replace(scene.ident, "$$")
                if not table.explains(case, path, one, other):
                    result.append((case, path, one, other))
    return result


async def envoy_results(arguments, scenes, directory, admin):
    proxy = Proxy("envoy", ADDRESSES["envoy"], [arguments.envoy, "--use-dynamic-base-id"], directory)
    await proxy.start(scenes, admin)
    try:
        return await play_all(proxy, scenes, None, arguments.jobs)
    finally:
        proxy.stop()


async def culvert_results(arguments, scenes, directory, admin, expected, driver, fault=None, stop_early=None):
    environment = {"CULVERT_SEEDED_FAULT": fault} if fault else {}
    command = [arguments.culvert, "--io", driver]
    proxy = Proxy("culvert", ADDRESSES["culvert"], command, directory, environment)
    await proxy.start(scenes, admin)
    try:
        return await play_all(proxy, scenes, expected, arguments.jobs, stop_early)
    finally:
        proxy.stop()


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envoy", required=True)
    parser.add_argument("--culvert", required=True)
    parser.add_argument("--only", help="scenes whose name (area_scene) matches this regular expression")
    parser.add_argument("--io", default="uring,epoll", help="drivers, one run each")
    parser.add_argument("--jobs", type=int, default=12, help="scenes at the same time")
    parser.add_argument("--faults", help="the names of seeded faults, each of which must be found")
    parser.add_argument("--keep", help="where files are kept")
    parser.add_argument("--list", action="store_true", help="counts cases by area")
    arguments = parser.parse_args()

    ports = free_ports()
    admin = next(ports)
    scenes = scenes_module.load(HERE / "cases", ports, arguments.only)
    count = sum(len(scene.cases) for scene in scenes)
    by_area = {}
    for scene in scenes:
        by_area[scene.area] = by_area.get(scene.area, 0) + len(scene.cases)
    print(f"{count} cases in {len(scenes)} scenes: " + ", ".join(f"{a} {n}" for a, n in sorted(by_area.items())), flush=True)
    if arguments.list:
        return 0
    directory = Path(arguments.keep or tempfile.mkdtemp(prefix="diff-envoy-"))
    status = 1
    try:
        status = await compare_all(arguments, scenes, directory, admin, count)
    finally:
        if status == 0 and not arguments.keep:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            print(f"files: {directory}")
    return status


async def compare_all(arguments, scenes, directory, admin, count):
    started = time.monotonic()
    envoy = await envoy_results(arguments, scenes, directory, admin)
    print(f"Envoy: {time.monotonic() - started:.0f} s", flush=True)
    if arguments.faults:
        return await find_faults(arguments, scenes, directory, admin, envoy)
    passed = failed = 0
    used = {}
    for driver in arguments.io.split(","):
        started = time.monotonic()
        table = Table(HERE / "differences.yaml")
        culvert = await culvert_results(arguments, scenes, directory, admin, envoy, driver)
        print(f"culvert ({driver}): {time.monotonic() - started:.0f} s", flush=True)
        differing = found(scenes, envoy, culvert, table)
        report(differing)
        bad = len({case for case, *_ in differing})
        passed, failed = passed + count - bad, failed + bad
        for row in table.rows:
            used[row["what"]] = used.get(row["what"], 0) + row["used"]
    if arguments.only is None:
        for what in [what for what, times in used.items() if not times]:
            print(f"a row of differences.yaml explains nothing: {what}")
            failed += 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def report(differing):
    last = None
    for case, path, expected, got in differing:
        if case != last:
            print(f"\n{case}")
            last = case
        print(f"  {path}\n    envoy:   {json.dumps(expected)}\n    culvert: {json.dumps(got)}")
    if differing:
        print()


async def find_faults(arguments, scenes, directory, admin, envoy):
    passed = failed = 0
    for fault in arguments.faults.split(","):
        table = Table(HERE / "differences.yaml")

        def stop_early(results):
            return bool(found([s for s in scenes if s.ident in results], envoy, results, table))

        driver = arguments.io.split(",")[0]
        culvert = await culvert_results(arguments, scenes, directory, admin, envoy, driver, fault, stop_early)
        differing = found(scenes, envoy, culvert, table)
        if differing:
            passed += 1
            case, path, expected, got = differing[0]
            print(f"{fault}: found by {case}: {path}: {json.dumps(expected)[:80]} / {json.dumps(got)[:80]}", flush=True)
        else:
            failed += 1
            print(f"{fault}: NOT FOUND", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

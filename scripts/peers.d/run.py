"""Runs culvert between real peers, once with each driver. `scripts/peers` starts it."""
import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import checks
import scene as scene_module
from scene import Culvert, Process, free_port


class Scene:
    """The peers, which serve all drivers, and one culvert after the other."""

    def __init__(self, arguments, folder):
        self.tools, self.folder, self.binary = Path(arguments.tools), folder, arguments.culvert
        self.processes = []

    def begin(self):
        folder = self.folder
        scene_module.make_certificates(folder)
        self.web = scene_module.start_web()
        self.ports = {"web": self.web.server_address[1]} | {name: free_port() for name in ("h2c", "tls", "collector")}
        server = self.tools / "grpc-interop/server"
        keys = ["-use_tls", f"-tls_cert_file={folder / 'cert.pem'}", f"-tls_key_file={folder / 'key.pem'}"]
        self.start("h2c", [server, f"-port={self.ports['h2c']}"])
        self.start("tls", [server, f"-port={self.ports['tls']}", *keys])
        self.receiver = self.start("collector", [
            rotel(self.tools), "start", "--otlp-grpc-endpoint", f"127.0.0.1:{self.ports['collector']}",
            "--otlp-http-endpoint", f"127.0.0.1:{free_port()}", "--exporter", "blackhole", "--disable-batching",
            "--debug-log", "traces", "--debug-log", "logs", "--debug-log-verbosity", "detailed",
        ])

    def start(self, name, command):
        process = Process(self.folder, name, command)
        self.processes.append(process)
        process.ready(self.ports[name])
        return process

    def drive(self, driver):
        self.driver = driver
        self.culvert = Culvert(self.folder, self.binary, driver, self.ports)
        self.processes.append(self.culvert)

    def stop(self):
        for process in self.processes:
            process.stop()


def rotel(tools):
    """The program inside the Python package."""
    found = list((tools / "peers").glob("lib/python3*/site-packages/rotel/rotel-agent"))
    assert found, "rotel is not installed; scripts/install --for peers does it"
    found[0].chmod(0o755)
    return found[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--culvert", required=True)
    parser.add_argument("--tools", required=True, help="where scripts/install put the peers")
    parser.add_argument("--only", default="", help="checks whose name matches this regular expression")
    parser.add_argument("--io", default="uring,epoll", help="drivers, one run each")
    parser.add_argument("--keep", help="where files are kept")
    arguments = parser.parse_args()
    folder = Path(arguments.keep or tempfile.mkdtemp(prefix="peers-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    passed = failed = 0
    scene = Scene(arguments, folder)
    try:
        scene.begin()
        for driver in arguments.io.split(","):
            scene.drive(driver)
            for name, check in checks.all_checks():
                # Traffic is what the checks of metrics look at.
                if name != "traffic" and not re.search(arguments.only, name):
                    continue
                started = time.monotonic()
                try:
                    check(scene)
                    passed += 1
                    print(f"{driver} {name}: ok, {time.monotonic() - started:.1f} s", flush=True)
                except (AssertionError, OSError, subprocess.SubprocessError) as error:
                    failed += 1
                    print(f"{driver} {name}: FAILED: {error}", flush=True)
            scene.culvert.stop()
            if scene.culvert.process.returncode != 0:
                failed += 1
                print(f"{driver}: culvert ended with {scene.culvert.process.returncode}")
    finally:
        scene.stop()
        if failed or arguments.keep:
            print(f"files: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())

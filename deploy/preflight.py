"""Say in the first line what this machine lacks, before anything is installed: Python, Java, and with `--ports` a port.

Run by the Makefile with the machine's own Python, which may be an old one: standard library only, no newer syntax.
`mindstream doctor` checks more once the project is installed.
"""

import os
import re
import socket
import subprocess
import sys

OLDEST_PYTHON = (3, 11)
OLDEST_JAVA = 17
PORTS = (("SERVE_PORT", 8080), ("ENGINE_METRICS_PORT", 9101), ("TRAINER_METRICS_PORT", 9102))
BROKER_PORT = ("BROKER_PORT", 9092)


def main():
    """Return 0 if nothing known is missing, else 1 after saying what to do."""
    problems = [python_problem()]
    if not os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        problems.append(java_problem())
    if "--ports" in sys.argv:
        problems += [port_problem(name, port) for name, port in ports()]
    found = [problem for problem in problems if problem]
    for problem in found:
        sys.stderr.write(problem + "\n")
    return 1 if found else 0


def python_problem():
    """Return what is wrong with the Python that runs this."""
    if sys.version_info >= OLDEST_PYTHON:
        return None
    found = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return (
        f"Python 3.11 or newer is needed, {sys.executable} is {found}; install it and say: make PYTHON=python3.11 ..."
    )


def java_problem():
    """Return what is wrong with the Java that would run the local broker."""
    try:
        said = subprocess.run(["java", "-version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        found = re.search(r'version "(\d+)', said.stdout.decode(errors="replace"))
    except OSError:
        found = None
    if found and int(found.group(1)) >= OLDEST_JAVA:
        return None
    what = f"Java {found.group(1)}" if found else "no Java"
    return (
        f"Java {OLDEST_JAVA} or newer runs the local Kafka broker, and {what} was found.\n"
        "Install it (Debian, Ubuntu: apt-get install openjdk-17-jre-headless), "
        "or set KAFKA_BOOTSTRAP_SERVERS to use a cluster of yours."
    )


def ports():
    """Return (setting, port) of what has to be free; a broker of this data directory that still runs is used."""
    wanted = list(PORTS)
    ours = os.path.join(os.environ.get("MINDSTREAM_DATA_DIR") or "data", "broker", "node-1.pid")
    if not os.environ.get("KAFKA_BOOTSTRAP_SERVERS") and not os.path.exists(ours):
        wanted.append(BROKER_PORT)
    given = [(name, os.environ.get("MINDSTREAM_" + name) or str(port)) for name, port in wanted]
    return [(name, int(port)) for name, port in given if port.isdigit() and 0 < int(port) < 65536]


def port_problem(name, port):
    """Return who keeps *port* from being used."""
    probe = socket.socket()
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    except OSError:
        return f"Port {port} is taken; stop what listens there, or set MINDSTREAM_{name} to another port."
    finally:
        probe.close()
    return None


if __name__ == "__main__":
    sys.exit(main())

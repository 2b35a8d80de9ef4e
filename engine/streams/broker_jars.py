"""The local broker's jars: which ones exactly, and how they get into the cache.

The list is `org.apache.kafka:kafka_2.13` with all it needs at run time, as Maven resolves it, and log4j's binding
for slf4j, which Kafka's own distribution adds too. Each jar is fetched from Maven Central by jgo and kept only if its
SHA-256 is the one written here, so a broker of today and one of next year run the same bytes. The folder
`<cache_dir>/kafka-<version>` appears whole, by one rename, or not at all.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog
from jgo.maven import MavenContext

from engine.errors import SetupError
from engine.settings import Settings

KAFKA_VERSION = "4.1.1"
MARKER = "COMPLETE"
TRIES = 3

log = structlog.get_logger()


def fetch_jars(settings: Settings, *, on_progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Return the jars of the local broker, fetched into the cache where they are not there yet.

    Args:
        settings: `cache_dir` says where the jars live; about 43 MB.
        on_progress: called with (jars fetched, jars in all) after each jar, from several threads.

    Raises:
        SetupError: a jar can't be fetched, or is not the one we know.
    """
    home = jar_dir(settings)
    if not (home / MARKER).is_file():
        _fetch_all(home, on_progress or (lambda fetched, total: None))
    return sorted(home.glob("*.jar"))


def jar_dir(settings: Settings) -> Path:
    """Return the folder that holds the jars once they are fetched."""
    return settings.cache_dir / f"kafka-{KAFKA_VERSION}"


def has_jars(settings: Settings) -> bool:
    """Tell whether the jars are in the cache already."""
    return (jar_dir(settings) / MARKER).is_file()


def _fetch_all(home: Path, on_progress: Callable[[int, int], None]) -> None:
    log.info("broker_jars_fetching", jars=len(JARS), into=str(home))
    home.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
    try:
        ready = staging / "jars"
        ready.mkdir()
        pool = ThreadPoolExecutor(8, thread_name_prefix="jars")
        try:
            fetches = [pool.submit(_fetch, coordinate, staging / "repository", ready) for coordinate in JARS]
            for count, fetch in enumerate(fetches, 1):
                fetch.result()
                on_progress(count, len(JARS))
        finally:
            # After a failed jar, or Ctrl-C, those not begun are not fetched any more.
            pool.shutdown(cancel_futures=True)
        (ready / MARKER).write_text(f"{len(JARS)} jars\n", encoding="utf-8")
        _put_in_place(ready, home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fetch(coordinate: str, repository: Path, into: Path) -> None:
    """Put one checked jar into *into*; a cut connection is tried again."""
    for attempt in range(1, TRIES + 1):
        artifact = MavenContext(repo_cache=repository).create_dependency(coordinate).artifact
        problem: object
        try:
            jar = Path(artifact.resolve())
        except Exception as error:  # jgo passes on whatever requests and the file system raise
            problem = error
        else:
            found = base64.b64encode(hashlib.sha256(jar.read_bytes()).digest()).decode()
            if found == JARS[coordinate]:
                jar.rename(into / jar.name)
                return
            problem = f"it has SHA-256 {found}, expected {JARS[coordinate]}"
        if artifact.cached_path is not None:
            # A damaged file must not be taken for a fetched one by the next try.
            artifact.cached_path.unlink(missing_ok=True)
        log.warning("broker_jar_failed", jar=coordinate, attempt=attempt, problem=str(problem))
    raise SetupError(
        f"{coordinate} can't be fetched from Maven Central: {problem}",
        remedy="check the connection or the proxy, or set KAFKA_BOOTSTRAP_SERVERS to an existing cluster",
    )


def _put_in_place(ready: Path, home: Path) -> None:
    try:
        os.rename(ready, home)
    except OSError:
        # Another process was faster, or a folder without its marker is in the way.
        if (home / MARKER).is_file():
            return
        shutil.rmtree(home)
        os.rename(ready, home)


JARS: dict[str, str] = {
    "com.dynatrace.hash4j:hash4j:0.22.0": "IwKKP9AG5TC/SV9VEIMggYfK/Y+AYk0EjrpWRC8WpQ4=",
    "com.fasterxml.jackson.core:jackson-annotations:2.19.0": "6tYOnKwOQrVwkrni0If/Q1NulHfUSGujkwN6jMFWzac=",
    "com.fasterxml.jackson.core:jackson-core:2.19.0": "2o6Fm6yUh0UoEWol8gxoVg5Ch6y/J2KHEbik+WsChDA=",
    "com.fasterxml.jackson.core:jackson-databind:2.19.0": "ztoxH0dsOxjh0rJAyU4ty5yNROcPivqfrKuIusTdwDo=",
    "com.fasterxml.jackson.dataformat:jackson-dataformat-csv:2.19.0": "vsEVBCawYWu0iBSblStFoNyxbZQWsBfDj2RVrZOJvGg=",
    "com.fasterxml.jackson.dataformat:jackson-dataformat-yaml:2.19.0": "RuVNy9OdTRLNoY7JJ257iI4I/HZeoMd+cWYjBvDUq8Q=",
    "com.fasterxml.jackson.datatype:jackson-datatype-jdk8:2.19.0": "BPGj+dqBVZld0ACY1oR825t69n9KMCjJQDHv8BfI4+U=",
    "com.github.ben-manes.caffeine:caffeine:3.2.0": "7EEd/fDAPyUhhkjOiYYWMLcWgOWFippyeOusjlXKs9c=",
    "com.github.luben:zstd-jni:1.5.6-10": "tsMjfiS4JSpanDoOGuMO+PMjQS50vTWFSLep5SfWdt8=",
    "com.google.re2j:re2j:1.8": "e1LHIVbdf5izI3pbNcHTT7o4GyEEjIkgiROtgKRd+9c=",
    "com.typesafe.scala-logging:scala-logging_2.13:3.9.5": "h6MBfT9D5qznVm/kw9YVE0xpFP+HHI1kuzLKHZltBUU=",
    "com.yammer.metrics:metrics-core:2.2.0": "a3oUpvNMEPhoP3teLznfDwe1jH3/DkaOu8cTkFxGl5w=",
    "commons-beanutils:commons-beanutils:1.9.4": "fZOMgXiQKARcCMBl6UvnX8KAUnYg1b1itRnVg4UyNoo=",
    "commons-collections:commons-collections:3.2.2": "7urpF5FxRKaKdB1MDf9mqlxcX9hVk/8he87T/Iyng7g=",
    "commons-digester:commons-digester:2.1": "4LK5gKhPxlM8XOKR8ZF7MsUH9ivK1kGY//RDaMIZaj0=",
    "commons-logging:commons-logging:1.3.2": "a4WEJPUYAV8yv80Rg6Nz9Kgn1y0Ca2Ax2gyRzw6PNIk=",
    "commons-validator:commons-validator:1.9.0": "w8FHSOLXjbWN+IgIdAcRvWQ7MsRf+nuKc58A+0Z819c=",
    "net.sf.jopt-simple:jopt-simple:5.0.4": "3ybMWPI19HfbB/dTulo6skPr5Xidn4ns9o3WLqmmbCg=",
    "net.sourceforge.argparse4j:argparse4j:0.7.0": "Zc62adiPYzBsaA+AiLv3ZbvKctKIphoDcDAAB2w9P1Y=",
    "org.apache.kafka:kafka-clients:4.1.1": "ACRxIqVyw9OuTrYKUBkqWBG8AYH1GSPRMBhgD4kugh0=",
    "org.apache.kafka:kafka-coordinator-common:4.1.1": "IHL8HOfgUFFJu6IqRjpZCaiZxiNcT6aW8VwhGUp7r2A=",
    "org.apache.kafka:kafka-group-coordinator:4.1.1": "PrWmc7adWZLPqGxUNvOa2/TOKEBGpMmZ7GrwqOMcVYk=",
    "org.apache.kafka:kafka-group-coordinator-api:4.1.1": "PRgB0jKdz30nN5agNNYebH4PhR84TQr73ToubL0XqWg=",
    "org.apache.kafka:kafka-metadata:4.1.1": "polmV1FBW2RW3h7LATBCy3upmsaP2MPovyjgmP60Mhg=",
    "org.apache.kafka:kafka-raft:4.1.1": "SBDJPZPRk13VTeYcW6Ew9QHH/hG8SczT7gXshXgYpyo=",
    "org.apache.kafka:kafka-server:4.1.1": "n2r/QihVSRqtVDJuyo1gQWPW06ZQfMSP/jzm3nPK95o=",
    "org.apache.kafka:kafka-server-common:4.1.1": "IH7ezYMiz2wT122Erd6n/Q7EQdyNaYz2nfQyEMzcCpQ=",
    "org.apache.kafka:kafka-share-coordinator:4.1.1": "5r7FNCjHe/ZXkyGDbUglQqk1dffAjoYKJsnyx/YFnaw=",
    "org.apache.kafka:kafka-storage:4.1.1": "H4W4KFPq7AFD777346TUvokp/4OjhjJkMeDC0KVX5Yw=",
    "org.apache.kafka:kafka-storage-api:4.1.1": "jApxJHIYXXBsa/WuJL9dhKjjlv1HRccI5hRqQV9/p/c=",
    "org.apache.kafka:kafka-tools-api:4.1.1": "VCsI/iDPhyothmrN/2HqM4tGkhncLr+ucnodnqVzfho=",
    "org.apache.kafka:kafka-transaction-coordinator:4.1.1": "omG1cwrJ4yBd969dRRgNhR6dX3Kc4SdcZ1Eab1H3N1U=",
    "org.apache.kafka:kafka_2.13:4.1.1": "6JQoEmzHYwqAISO6J6rERCgWhAtm1gZwIm/q/2XyT9E=",
    "org.apache.logging.log4j:log4j-api:2.24.3": "W0oKDNDnUd7UMcFiRCvb3VMyjR+Lsrrl/Bu+7g9m2A8=",
    "org.apache.logging.log4j:log4j-core:2.24.3": "frQIRZauJb08YWmOSOjQq2WpJgdYiE7Vy7nG5VxEpWo=",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3": "QN7CURZNFXbgAJaM0C5WoRJfRrkftpSgbfoWjxM12kg=",
    "org.bitbucket.b_c:jose4j:0.9.6": "cxSvUM3pyZ6Or0Pu5heiPtzGu0MDYiEGQ1UJSZnYN+8=",
    "org.hdrhistogram:HdrHistogram:2.2.2": "ItHUMWxOwTpotVnpjIJW1pBxWTcx2pYTZkD4ZPoU+tg=",
    "org.jspecify:jspecify:1.0.0": "H61ua+dVd4Hk0zcp1Jrhzcj92m/kd7sMxozjUer9+6s=",
    "org.lz4:lz4-java:1.8.0": "10ozNPs1GVAJszipUfkYID1rvKPR01kDPcM+3Rytye8=",
    "org.pcollections:pcollections:4.0.2": "K77vV5eiQTAMT3UTzVRiOWKe197aT8DDHfkLuV9fE+8=",
    "org.scala-lang:scala-library:2.13.16": "Hrsrb55OtAIkl8GbHh6CUBnAhRT5YqqsGXFF+I7XMPE=",
    "org.scala-lang:scala-reflect:2.13.16": "+0nM2crHRkSGq5k82iCjwVadjvJvBS6JdXetKklw+x0=",
    "org.slf4j:slf4j-api:1.7.36": "0+9XXj5JeWeNwBvx3M5RAhSTtNEft/G+itmCh3wWocA=",
    "org.xerial.snappy:snappy-java:1.1.10.7": "THZss/hVQV7nNLI5KUmgtvEqYIeTNKdFGN6vYnDTLjY=",
    "org.yaml:snakeyaml:2.4": "73ea9dKand6MxwzgNB9cb3c14j7f+Whc6qnTU1m3u38=",
}
"""Maven coordinate -> SHA-256 of the jar, in base64."""

#!/bin/sh
# Say what to do where Java 17+ is missing; the local broker runs on it.
version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
if [ "${version:-0}" -lt 17 ]; then
  echo "Java 17 or newer runs the local Kafka broker, and ${version:-no Java} was found." >&2
  echo "Install it (Debian, Ubuntu: apt-get install openjdk-17-jre-headless), or set KAFKA_BOOTSTRAP_SERVERS to use a cluster of yours." >&2
  exit 1
fi

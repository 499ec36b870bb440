"""HTTP/1.1 as raw bytes, for what client libraries do not let one send."""

import socket

# What Java's HttpClient and `curl --http2` add to the first request on a cleartext connection.
H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"


def request(method: str, path: str, headers: str = "", body: bytes = b"") -> list[bytes]:
    """Head and body, to be sent as packets of their own."""
    head = f"{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return [f"{head}\r\n".encode(), *([body] if body else [])]


def talk(port: int, *requests: list[bytes], together: bool = False) -> list[tuple[int, dict[str, list[str]], bytes]]:
    """Send requests on one connection, each after the response to the last; (status, headers, body) of each."""
    found = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection, connection.makefile("rb") as answers:
        for packets in requests:
            for packet in [b"".join(packets)] if together else packets:
                connection.sendall(packet)
            status = int(answers.readline().split()[1])
            headers: dict[str, list[str]] = {}
            while line := answers.readline().decode().strip():
                name, _, value = line.partition(": ")
                headers.setdefault(name.lower(), []).append(value)
            assert "content-length" in headers, (status, headers)
            found.append((status, headers, answers.read(int(headers["content-length"][0]))))
    return found

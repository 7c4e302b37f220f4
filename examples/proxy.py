"""Spreads requests over several servers in turn: any proxy that passes bodies on as they are will do.

    vllm serve FOLDER --port 8001
    vllm serve FOLDER --port 8002
    python examples/proxy.py http://localhost:8001 http://localhost:8002 --port 8000

It uses the standard library alone, and is an example: it knows nothing of servers that do not answer.
"""

import argparse
import itertools
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import Request, urlopen


def make(servers: list[str], port: int) -> ThreadingHTTPServer:
    """Makes a proxy.

    Args:
        servers: their addresses, without a path.
        port: of the proxy, on this machine; 0: one that is free.
    """
    turns = itertools.cycle(servers)

    class Proxy(BaseHTTPRequestHandler):
        """Passes each request on to the next server, and its response back as it comes."""

        def do_POST(self) -> None:
            """Passes a request on with its body."""
            self.forward(self.rfile.read(int(self.headers["Content-Length"])))

        def do_GET(self) -> None:
            """Passes a request on that has no body."""
            self.forward(None)

        def forward(self, body: bytes | None) -> None:
            headers = {name: self.headers[name] for name in ("Content-Type", "Authorization") if name in self.headers}
            request = Request(next(turns) + self.path, body, headers, method=self.command)
            try:
                answer = urlopen(request)
            except HTTPError as error:  # a refusal has a body, too
                answer = error
            with answer:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers["Content-Type"])
                self.end_headers()
                while part := answer.read1():
                    self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            """Writes nothing."""

    return ThreadingHTTPServer(("127.0.0.1", port), Proxy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    make(arguments.servers, arguments.port).serve_forever()


if __name__ == "__main__":
    main()

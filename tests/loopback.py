"""Serve HTTP on loopback, in place of the Hub."""

from http.server import BaseHTTPRequestHandler


class Handler(BaseHTTPRequestHandler):
    """A request handler that logs nothing."""

    def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
        """Answer a request; HEAD gets no content."""
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass

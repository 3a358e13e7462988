"""A Responses API on the loopback: examples and README blocks run against it exactly as they are written.

The SDK's real client talks to it because OPENAI_BASE_URL says so; no key, no network, nothing patched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from agents.testing import assistant_message
from openai.types.responses import Response, ResponseCompletedEvent


class ResponsesAPI(ThreadingHTTPServer):
    """Answers each request with the next of *replies*, then with "Understood."; keeps what it was asked."""

    def __init__(self, *replies: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies = list(replies)
        self.requests: list[dict[str, Any]] = []

    @property
    def environment(self) -> dict[str, str]:
        """What to set so that the OpenAI client finds it, and no trace is exported."""
        return {
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.server_port}/v1",
            "OPENAI_API_KEY": "nobody checks it",
            "OPENAI_AGENTS_DISABLE_TRACING": "true",
        }

    def answer(self, request: dict[str, Any]) -> tuple[str, str]:
        """Return content type and body: a response, or the one event of a stream the SDK cannot do without."""
        self.requests.append(request)
        response = Response.model_construct(
            id=f"resp_{len(self.requests)}",
            created_at=0,
            model=request["model"],
            object="response",
            output=[assistant_message(self.replies.pop(0) if self.replies else "Understood.")],
            parallel_tool_calls=True,
            tool_choice="auto",
            tools=[],
        )
        if not request.get("stream"):
            return "application/json", response.model_dump_json()
        event = ResponseCompletedEvent(response=response, sequence_number=0, type="response.completed")
        return "text/event-stream", f"event: {event.type}\ndata: {event.model_dump_json()}\n\n"


class _Handler(BaseHTTPRequestHandler):
    # HTTP/1.0: the connection closes after each answer, so none outlives its event loop.
    server: ResponsesAPI

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        content_type, body = self.server.answer(json.loads(self.rfile.read(length)))
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Say nothing."""


@contextmanager
def responses_api(*replies: str) -> Iterator[ResponsesAPI]:
    """Run the API in a thread for as long as the block lasts."""
    with ResponsesAPI(*replies) as api:
        thread = Thread(target=api.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield api
        finally:
            api.shutdown()
            thread.join()

"""A web server for tests: tells what it was sent, echoes on a WebSocket, sets a cookie."""

import base64
import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(sys.argv[1])
PAGE = f"<!doctype html><title>port {PORT}</title><h1>port {PORT}</h1>"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, form, *arguments):
        print(form % arguments, flush=True)

    def answer(self, kind, text, status=200):
        body = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("set-cookie", f"app=of-{PORT}; Path=/")
        self.send_header("set-cookie", "wide=x; Domain=localhost")
        self.send_header("set-cookie", "choir_runtime=mine")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if "websocket" in self.headers.get("upgrade", "").lower():
            return self.echo()
        if self.path.startswith("/headers"):
            return self.answer("application/json", json.dumps({k.lower(): v for k, v in self.headers.items()}))
        if self.path == "/sw.js":
            return self.answer("text/javascript", "self.addEventListener('fetch', () => {});")
        return self.answer("text/html", f"{PAGE}<p>{self.path}</p>")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.answer("text/plain", f"took {len(body)}")

    def echo(self):
        magic = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(magic.encode()).digest()).decode()
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "Upgrade")
        self.send_header("sec-websocket-accept", accept)
        self.end_headers()
        self.close_connection = True
        while True:
            head = self.rfile.read(2)
            if len(head) < 2:
                return
            opcode, length = head[0] & 15, head[1] & 127
            if length == 126:
                length = int.from_bytes(self.rfile.read(2), "big")
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            if opcode == 9:
                opcode = 10
            size = bytes([len(data)]) if len(data) < 126 else bytes([126]) + len(data).to_bytes(2, "big")
            self.wfile.write(bytes([128 | opcode]) + size + data)
            if opcode == 8:
                return


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()

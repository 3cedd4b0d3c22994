"""Notes in sqlite: a WSGI application of nothing but Python's own library, with a master that keeps workers alive."""
import json
import os
import sqlite3
from socketserver import ThreadingMixIn
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

DATABASE = "/var/lib/notes.db"
WORKERS = 3


def database():
    connection = sqlite3.connect(DATABASE, timeout=60)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT UNIQUE, worker INTEGER)")
    return connection


def application(environ, start_response):
    def answer(status, value):
        body = json.dumps(value).encode()
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    if path == "/pid":
        return answer("200 OK", os.getpid())
    connection = database()
    try:
        if method == "POST" and path == "/notes":
            form = parse_qs(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode())
            with connection:
                connection.execute("INSERT INTO notes(text, worker) VALUES(?, ?)", (form["text"][0], os.getpid()))
            return answer("201 Created", form["text"][0])
        if path == "/notes":
            return answer("200 OK", [row[0] for row in connection.execute("SELECT text FROM notes ORDER BY id")])
        return answer("404 Not Found", path)
    finally:
        connection.close()


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        pass


def work(server):
    pid = os.fork()
    if pid == 0:
        server.serve_forever()
        os._exit(1)
    return pid


def main():
    database().close()
    server = Server(("127.0.0.1", 8000), Quiet)
    server.set_app(application)
    # Several workers wait on one listener; whoever comes late must not block in accept().
    server.socket.setblocking(False)
    workers = {work(server) for _ in range(WORKERS)}
    print("ready", *workers, flush=True)
    while True:
        pid, status = os.wait()
        workers.discard(pid)
        workers.add(work(server))
        print("replaced", pid, os.waitstatus_to_exitcode(status), flush=True)


main()

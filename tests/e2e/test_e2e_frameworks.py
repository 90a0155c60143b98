# SPDX-License-Identifier: MIT
"""Unmodified Flask and Django applications, asked by curl, by requests and over a raw socket."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from harness import Server

FLASK = """
import hashlib
from flask import Flask, Response, jsonify, redirect, request

app = Flask(__name__)

@app.get("/hello")
def hello():
    return "hello"

@app.post("/json")
def json_():
    return jsonify(got=request.get_json(), host=request.host, scheme=request.scheme)

@app.post("/form")
def form():
    return jsonify(request.form.to_dict())

@app.post("/upload")
def upload():
    file = request.files["file"]
    data = file.read()
    return jsonify(name=file.filename, size=len(data), digest=hashlib.sha256(data).hexdigest())

@app.post("/bytes")
def bytes_():
    return hashlib.sha256(request.get_data()).hexdigest()

@app.get("/stream")
def stream():
    return Response((f"chunk {n}\\n" for n in range(3)), mimetype="text/plain")

@app.get("/path/<name>")
def path(name):
    return jsonify(name=name, q=request.args.get("q"))

@app.get("/cookie")
def cookie():
    answer = jsonify(seen=request.cookies.get("flavour"))
    answer.set_cookie("flavour", "oat")
    return answer

@app.get("/redirect")
def redirect_():
    return redirect("/hello")

@app.get("/empty")
def empty():
    return "", 204

@app.get("/boom")
def boom():
    raise RuntimeError("on purpose")
"""

DJANGO = """
import hashlib, json
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.urls import path as route

settings.configure(
    ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="only for a test", DEBUG=False,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)

def hello(request):
    return HttpResponse("hello")

def json_(request):
    return JsonResponse(
        {"got": json.loads(request.body), "host": request.get_host(), "scheme": request.scheme})

def form(request):
    return JsonResponse(request.POST.dict())

def upload(request):
    file = request.FILES["file"]
    data = file.read()
    return JsonResponse(
        {"name": file.name, "size": len(data), "digest": hashlib.sha256(data).hexdigest()})

def bytes_(request):
    digest = hashlib.sha256()
    while data := request.read(8192):
        digest.update(data)
    return HttpResponse(digest.hexdigest())

def stream(request):
    return StreamingHttpResponse((f"chunk {n}\\n".encode() for n in range(3)), content_type="text/plain")

def path(request, name):
    return JsonResponse({"name": name, "q": request.GET.get("q")})

def cookie(request):
    answer = JsonResponse({"seen": request.COOKIES.get("flavour")})
    answer.set_cookie("flavour", "oat")
    return answer

def redirect_(request):
    return HttpResponseRedirect("/hello")

def empty(request):
    return HttpResponse(status=204)

def boom(request):
    raise RuntimeError("on purpose")

urlpatterns = [
    route("hello", hello), route("json", json_), route("form", form), route("upload", upload),
    route("bytes", bytes_), route("stream", stream), route("path/<str:name>", path),
    route("cookie", cookie), route("redirect", redirect_), route("empty", empty), route("boom", boom),
]

app = get_wsgi_application()
"""

APPS = {"flask": FLASK, "django": DJANGO}
#: Each framework under each class, and over each kind of socket.
CASES = [
    ("flask", "sync", "tcp"),
    ("flask", "gthread", "unix"),
    ("django", "sync", "unix"),
    ("django", "gthread", "tcp"),
]


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    name, worker, bind = request.param
    pytest.importorskip(name)
    config = f"worker_class = {worker!r}\nworkers = 2\nthreads = 4\nkeepalive = 5\n"
    if worker == "sync":
        config = config.replace("threads = 4\n", "")
    with Server(APPS[name], config, bind=bind, ready_path="/hello") as running:
        running.keeps_alive = worker == "gthread"  # type: ignore[attr-defined]
        yield running


def keeps_alive(server: Server) -> bool:
    return bool(server.keeps_alive)  # type: ignore[attr-defined]


def test_raw_socket_answers_one_request(server: Server) -> None:
    data = server.raw(b"GET /hello HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b"hello"
    fields = [line.split(b":", 1)[0].lower() for line in head.split(b"\r\n")[1:]]
    assert fields.count(b"date") == 1 and fields.count(b"server") == 1 and fields.count(b"connection") == 1
    assert b"content-length: 5" in head.lower()


def test_a_chunked_upload_arrives_whole(server: Server) -> None:
    parts = [b"a" * 10, b"b" * 3000, b"c"]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    data = server.raw(
        b"POST /bytes HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        + chunks
        + b"0\r\n\r\n"
    )
    digest = hashlib.sha256(b"".join(parts)).hexdigest().encode()
    # Django reads by Content-Length alone, so it sees an empty body; it must not hang or fail on it.
    empty = hashlib.sha256(b"").hexdigest().encode()
    assert data.startswith(b"HTTP/1.1 200 OK")
    assert digest in data or (empty in data and b"django" in server.log("app.py").encode())


def test_http_client_gets_each_answer_right(server: Server) -> None:
    assert server.get("/path/n%C3%A4me?q=caf%C3%A9").json() == {"name": "näme", "q": "café"}
    assert server.get("/stream").text == "chunk 0\nchunk 1\nchunk 2\n"
    assert server.get("/nowhere").status == 404
    assert server.get("/boom").status == 500
    assert server.get("/hello").status == 200
    reply = server.get("/redirect")
    assert (reply.status, reply.headers["Location"]) == (302, "/hello")
    big = b"0123456789abcdef" * 65536
    assert server.post("/bytes", big).text == hashlib.sha256(big).hexdigest()


def test_requests_with_a_session(server: Server) -> None:
    requests = pytest.importorskip("requests")
    if server.unix_path:
        pytest.skip("requests speaks no Unix sockets")
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(f"{server.url}/hello", timeout=5).text == "hello"
        answer = session.post(f"{server.url}/json", json={"a": [1, "ä"]}, timeout=5).json()
        assert answer == {"got": {"a": [1, "ä"]}, "host": server.address, "scheme": "http"}
        assert session.post(f"{server.url}/form", data={"k": "v w"}, timeout=5).json() == {"k": "v w"}
        content = b"\x00\xff" * 200_000
        answer = session.post(f"{server.url}/upload", files={"file": ("f.bin", content)}, timeout=5).json()
        assert answer == {"name": "f.bin", "size": 400_000, "digest": hashlib.sha256(content).hexdigest()}
        assert session.get(f"{server.url}/cookie", timeout=5).json() == {"seen": None}
        assert session.get(f"{server.url}/cookie", timeout=5).json() == {"seen": "oat"}
        assert session.get(f"{server.url}/redirect", timeout=5).text == "hello"
        assert session.get(f"{server.url}/stream", timeout=5).text.count("chunk") == 3
        for _ in range(20):
            assert session.get(f"{server.url}/hello", timeout=5).status_code == 200


def test_curl(server: Server) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    base = ["curl", "-sS", "--max-time", "10", "--noproxy", "*"]
    if server.unix_path:
        base += ["--unix-socket", server.unix_path]
        url = "http://localhost"
    else:
        url = server.url

    def curl(*args: str) -> str:
        return subprocess.run([*base, *args], check=True, capture_output=True, text=True).stdout

    # Two addresses in one call: curl uses the connection again where the server keeps it.
    shown = curl("-w", " %{http_code} %{num_connects}\n", f"{url}/hello", f"{url}/hello").split()
    assert shown == ["hello", "200", "1", "hello", "200", "0" if keeps_alive(server) else "1"]
    assert json.loads(curl("-d", "k=v", f"{url}/form")) == {"k": "v"}
    # Above 1 MiB curl asks first: Expect: 100-continue.
    big = server.write("big.txt", "z" * 2_000_000)
    want = hashlib.sha256(big.read_bytes()).hexdigest()
    assert curl("-H", "Content-Type: text/x", "--data-binary", f"@{big}", f"{url}/bytes") == want
    assert curl("-H", "Expect: 100-continue", "-d", "k=v", f"{url}/form") == curl("-d", "k=v", f"{url}/form")
    assert curl("-I", f"{url}/hello").startswith("HTTP/1.1 200 OK")

"""Addresses of clusters: what is no address, and servers that are no Ray head, on real sockets."""

import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest

from data.clusters import address as address_module
from data.clusters import joining
from data.clusters.address import check_address
from data.clusters.head import ASK, ask_head
from data.errors import NoCluster


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("head", "expected HOST:PORT of the cluster's head"),
        (":6379", "expected HOST:PORT"),
        ("a b:6379", "expected HOST:PORT"),
        ("head:", "nothing is no port; expected"),
        ("head:http", "http is no port; expected"),
        ("head:0", "0 is no port; expected"),
        ("head:65536", "65536 is no port; expected"),
        ("head:٣", "٣ is no port; expected"),
        ("::1:6379", "an IPv6 address has brackets, as [::1]:6379; expected"),
        ("http://head:8265", "this is the address of a job server: use `ray job submit JOB`, or HOST:PORT of the"),
        ("ray://head:10001", "addresses that begin with ray:// are not supported; expected"),
        ("no.such.host.invalid:6379", "the host no.such.host.invalid has no address"),
        ("a" * 80 + ":6379", f"the host {'a' * 80} has no address"),
    ],
)  # fmt: skip
def test_what_is_no_address(address: str, reason: str) -> None:
    with pytest.raises(NoCluster) as error:
        check_address(address, 20)
    assert str(error.value).startswith(reason)
    assert "\n" not in str(error.value)


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_module.socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    began = time.monotonic()
    with pytest.raises(NoCluster, match=r"no name server knows the host head within 0\.2 s"):
        check_address("head:6379", 0.2)
    assert time.monotonic() - began < 4


def test_a_host_where_nothing_listens() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(NoCluster, match="Connection refused; is the cluster running"):
            check_address(f"127.0.0.1:{closed.getsockname()[1]}", 20)


def test_a_host_that_does_not_answer() -> None:
    """A listener whose queue is full: the kernel drops what comes."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        place = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(place)
        with pytest.raises(NoCluster, match="nothing answers there within 1 s"):
            check_address(f"127.0.0.1:{place[1]}", 1)
        for each in waiting:
            each.close()


@contextmanager
def grpc_server(answers: dict[str, grpc.StatusCode | None]) -> Iterator[str]:
    """A gRPC server that answers the requests named, each with nothing or an error."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            if details.method not in answers:
                return None

            def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
                if (code := answers[details.method]) is not None:
                    context.abort(code, "InvalidAuthToken")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=(Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def reason(address: str, seconds: float = 20) -> str:
    with pytest.raises(NoCluster) as error:
        ask_head(address, seconds)
    return str(error.value)


def test_servers_that_are_no_ray_head() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "the server that answers there is no Ray head" in reason(f"127.0.0.1:{server.server_port}")
        server.shutdown()
    with grpc_server({}) as address:
        assert "the server that answers there is no Ray head" in reason(address)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        port = silent.getsockname()[1]
        assert "accepts connections there and does not answer within 1 s" in reason(f"127.0.0.1:{port}", 1)
        assert time.monotonic() - began < 10


def test_a_head_and_its_token() -> None:
    with grpc_server({ASK: None}) as address:
        ask_head(address, 20)
    with grpc_server({ASK: grpc.StatusCode.UNAUTHENTICATED}) as address:
        assert "it refuses this process's token, or asks for one; set RAY_AUTH_MODE=token" in reason(address)


def test_the_error_names_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head")
    with pytest.raises(NoCluster, match=r"^RAY_ADDRESS = head: cannot join that cluster: expected HOST:PORT"):
        joining.check()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TMPDIR", os.devnull)
    with pytest.raises(NoCluster, match="`ray start` has begun none on this machine"):
        joining.check()

"""Whether a Ray head answers at an address, and takes this process's token. Ray itself would ask for minutes."""

import os

from data.errors import NoCluster

ASK = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The first request of every process that joins; its empty form is valid."""
TOKEN_HELP = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token of that cluster, or put it into "
    "~/.ray/auth_token (`ray get-auth-token` prints it on the head)"
)


def ask_head(address: str, seconds: float) -> None:
    """Ask the server at an address for its cluster. One with TLS is not asked: Ray has the certificates.

    Raises:
        NoCluster: no Ray head answers there within some seconds, or it refuses the token.
    """
    import grpc
    import ray
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    try:
        headers = [(name.lower(), value) for name, value in get_auth_headers_if_auth_enabled({}).items()]
    except ray.exceptions.AuthenticationError as error:
        raise NoCluster(f"RAY_AUTH_MODE asks for a token, and Ray can read none; {TOKEN_HELP}") from error
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(ASK)(b"", timeout=seconds, metadata=headers)
        except grpc.RpcError as error:
            raise NoCluster(_reason(error.code(), seconds)) from error


def _reason(code: object, seconds: float) -> str:
    import grpc

    match code:
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return f"it refuses this process's token, or asks for one; {TOKEN_HELP}"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"a server accepts connections there and does not answer within {seconds:.0f} s"
        case _:
            return (
                "the server that answers there is no Ray head; give HOST:PORT of the head, as `ray start --head` "
                "prints it, and not the address of a dashboard or job server"
            )

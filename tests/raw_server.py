"""A server of plain sockets on loopback that answers, or misbehaves, just as a test says."""

import contextlib
import datetime as dt
import ipaddress
import re
import socket
import ssl
import struct
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Peer:
    """A client's connection, as the server sees it."""

    def __init__(self, sock):
        self.sock = sock
        self._ahead = b""

    def head(self):
        """The next request's head; empty when the client has gone."""
        while b"\r\n\r\n" not in self._ahead:
            got = self.sock.recv(65536)
            if not got:
                return ""
            self._ahead += got
        head, _, self._ahead = self._ahead.partition(b"\r\n\r\n")
        return head.decode("latin-1")

    def body(self, head):
        """The body that belongs to a head."""
        found = re.search(r"(?im)^content-length: *(\d+)", head)
        length = int(found[1]) if found else 0
        content = bytearray(self._ahead[:length])
        self._ahead = self._ahead[length:]
        while len(content) < length and (got := self.sock.recv(min(1 << 20, length - len(content)))):
            content += got
        return bytes(content)

    def request(self):
        """Read a request whole, and give its head."""
        head = self.head()
        self.body(head)
        return head

    def say(self, *words):
        for word in words:
            self.sock.sendall(word.encode("latin-1") if isinstance(word, str) else word)

    def answer(self, content=b"", status="200 OK", *headers):
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers, "", ""]
        self.say("\r\n".join(lines).encode("latin-1") + content)

    def reset(self):
        """End the connection without a farewell."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class RawServer:
    """Serves each connection by a function of its :class:`Peer`, and the number of the connection.

    :param serve: what happens on a connection, which is closed after it
    :param tls: certificate and key, if it speaks TLS
    """

    def __init__(self, serve, tls=None):
        self._serve = serve
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open = set()
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        scheme = "https" if tls else "http"
        #: Where the server is, with a secret as presigned URLs have.
        self.url = f"{scheme}://127.0.0.1:{self.port}/bucket/key?X-Amz-Signature=5ec2e7"

    def __enter__(self):
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._one, args=(sock, self.connections), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _one(self, sock, number):
        self._open.add(sock)
        try:
            with contextlib.suppress(OSError, ValueError):
                if self._tls:
                    sock = self._tls.wrap_socket(sock, server_side=True)
                    self._open.add(sock)
                self._serve(Peer(sock), number)
        finally:
            self._open.discard(sock)
            sock.close()


def authority(folder, name="ca", *, identified=True):
    """A CA of its own: its certificate in a file, and the TLS of a server that it vouches for.

    If not identified, the certificates lack the key identifiers that RFC 5280 wants.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate(name, key.public_key(), name, key, ca=True, identified=identified)
    server_key = ec.generate_private_key(ec.SECP256R1())
    server = _certificate("server", server_key.public_key(), name, key, ca=False, identified=identified)
    bundle, chain = folder / f"{name}.pem", folder / f"{name}-server.pem"
    bundle.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    private = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(private + server.public_bytes(serialization.Encoding.PEM))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain)
    return bundle, tls


def _certificate(name, public, issuer, key, *, ca, identified):
    now = dt.datetime.now(dt.UTC)
    names = [x509.NameAttribute(NameOID.COMMON_NAME, one) for one in (name, issuer)]
    usage = {
        "digital_signature": not ca,
        "key_cert_sign": ca,
        "crl_sign": ca,
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "encipher_only": False,
        "decipher_only": False,
    }
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names[:1]))
        .issuer_name(x509.Name(names[1:]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(address, critical=False)
    )
    if identified:
        mine = x509.SubjectKeyIdentifier.from_public_key(public)
        issuers = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        certificate = certificate.add_extension(mine, critical=False).add_extension(issuers, critical=False)
    return certificate.sign(key, hashes.SHA256())
